"""A folder with a model's code, its config and its checkpoint, in which the tests make things go wrong."""

from __future__ import annotations

import importlib
import json
import linecache
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch

from ptsave.cli import main

PACKAGE = "nets"

NET = '''
import torch
from torch import nn
from torch.nn import functional as F

from nets.parts import Block

SCALE = 0.5


class Net(nn.Module):
    """An embedding, two blocks, a head that is tied to the embedding, a buffer outside the state dict."""

    def __init__(self, vocab=50, width=24, eps=1e-5, dropout=0.1):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.register_buffer("positions", torch.sin(torch.arange(384.0).reshape(16, 24)), persistent=False)
        self.blocks = nn.ModuleList(Block(width, eps, dropout) for _ in range(2))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens) + SCALE * self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
'''

PARTS = """
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width, eps, dropout):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.up = nn.Linear(width, 3 * width)
        self.act = nn.GELU()
        self.down = nn.Linear(3 * width, width)
        self.again = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        h = self.down(self.act(self.up(self.norm(x))))
        return x + self.drop(torch.tanh(h)) + 0.1 * self.again(h)
"""

CONFIG = """
[model]
class = "nets.net.Net"

[inputs.tokens]
shape = [2, 12]
dtype = "int64"
high = 50
"""


Saved = list[bytes]
"""The checkpoint of the workshop's model, once a test of the file has saved it."""


@dataclass(frozen=True)
class Outcome:
    """What `verify --json` said."""

    code: int
    document: dict[str, Any]

    @property
    def is_yes(self) -> bool:
        assert (self.code, self.document["verdict"]) in ((0, "yes"), (1, "no")), self.document
        return self.code == 0

    @property
    def cause(self) -> str:
        return str(self.document["cause"])

    def found(self, check: str, level: str) -> list[tuple[str, str]]:
        """(where, message) of each finding of one check and level."""
        return [
            (f["where"], f["message"])
            for f in self.document["findings"]
            if (f["check"], f["level"]) == (check, level)
        ]

    @property
    def first(self) -> list[str]:
        """The modules that are named as the first to depart."""
        return [f["where"] for f in self.document["findings"] if f["message"].startswith("first to depart")]


class Workshop:
    """Commands that run in this process, in a folder of their own."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capfd = capfd
        self.write_code(NET, PARTS)
        self.write_config(CONFIG)

    def write_code(self, net: str | None = None, parts: str | None = None) -> None:
        """Put code into the package, and forget what was imported of it."""
        package = self.folder / PACKAGE
        package.mkdir(exist_ok=True)
        for name, text in (("__init__", ""), ("net", net), ("parts", parts)):
            if text is not None:
                (package / f"{name}.py").write_text(text)
        for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
            del sys.modules[name]
        linecache.checkcache()
        importlib.invalidate_caches()

    def edit(self, file: str, old: str, new: str) -> None:
        """Change the code at one place."""
        text = (self.folder / PACKAGE / f"{file}.py").read_text()
        assert text.count(old) == 1, (old, text.count(old))
        self.write_code(**{file: text.replace(old, new)})

    def write_config(self, text: str) -> None:
        (self.folder / "net.toml").write_text(text)

    def run(self, *arguments: object) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of one command."""
        self._capfd.readouterr()
        code = main.run([str(a) for a in arguments])
        out, err = self._capfd.readouterr()
        assert "Traceback" not in err, err
        return code, out, err

    def save(self, path: str = "net.safetensors", *flags: object) -> str:
        code, out, err = self.run("save", "net.toml", path, *flags)
        assert code == 0, (out, err)
        return path

    def save_once(self, saved: Saved) -> None:
        """Save `net.safetensors`; after the first test of a file, write what that one saved."""
        path = self.folder / "net.safetensors"
        if not saved:
            self.save(path.name)
            saved.append(path.read_bytes())
        path.write_bytes(saved[0])

    def verify(
        self, path: str = "net.safetensors", *flags: object, config: str | None = "net.toml"
    ) -> Outcome:
        named = ["-c", config] if config is not None else []
        code, out, err = self.run("verify", path, *named, "--json", *flags)
        assert code in (0, 1), (code, out, err)
        return Outcome(code, json.loads(out))


def rewrite(path: Path, change: Any) -> None:
    """Have safetensors itself write the file anew, with the old record kept, after `change(tensors)`."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors)
    safetensors.torch.save_file(tensors, path, metadata)


def flip_bit(path: Path, name: str, byte: int = 6, bit: int = 6) -> None:
    """Flip one bit of one tensor in a safetensors file."""
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8 : 8 + size]))
    data[8 + size + header[name]["data_offsets"][0] + byte] ^= 1 << bit
    path.write_bytes(data)


def edit_record(path: Path, **fields: Any) -> None:
    """Change fields of the record in a safetensors file; None takes one out."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    record = {**json.loads(metadata["ptsave"]), **fields}
    metadata["ptsave"] = json.dumps({key: value for key, value in record.items() if value is not None})
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata)

"""From every format to every format, checked against torch, safetensors, DCP and NumPy themselves."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from ptsave.cli import main
from tests.formats.write_cases import assert_same
from tests.support import some

TARGETS = {
    "safetensors": "to.safetensors",
    "safetensors-sharded": "to-shards",
    "pt": "to.pt",
    "dcp": "to-dcp",
    "npz": "to.npz",
}


class Net(nn.Module):
    """Ties, strides, an empty tensor, one without dimensions, several dtypes."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(7, 5)
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.turned = nn.Parameter(torch.randn(4, 6).t())
        self.halves = nn.Parameter(torch.randn(3, 33).half())
        self.large = nn.Parameter(torch.randn(300, 100))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("steps", torch.tensor(2**40 + seed))
        self.register_buffer("empty", torch.zeros(0, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.norm(self.embed(x)))
        return y


TIED = {"head.weight", "embed.weight"}


def quietly(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Torch warns of what is old (TorchScript) and of saving from one process (DCP)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*arguments, **named)


# --- the sources, each made by the library whose format it is


def save_shards(net: Net, folder: Path) -> None:
    folder.mkdir()
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items() if name != "head.weight"}
    names = list(state)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file_name = f"model-{i:05}-of-00002.safetensors"
        save_file({n: state[n] for n in part}, folder / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file_name)
    index = {"metadata": {"head.weight": "embed.weight"}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def save_arrays(net: Net, path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, **{name: tensor.numpy() for name, tensor in net.state_dict().items()})


SOURCES: dict[str, Callable[[Net, Path], Any]] = {
    "pt": lambda net, path: torch.save(net.state_dict(), path),
    "legacy": lambda net, path: torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False),
    "module": lambda net, path: torch.save(net, path),
    "torchscript": lambda net, path: quietly(lambda: torch.jit.save(torch.jit.script(net), path)),
    "safetensors": lambda net, path: save_model(net, str(path)),
    "safetensors-sharded": save_shards,
    "dcp": lambda net, path: quietly(dcp.save, net.state_dict(), checkpoint_id=path),
    "npz": save_arrays,
}


# --- what the libraries read


def read_shards(folder: Path, net: Net) -> dict[str, torch.Tensor]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = {name: load_file(folder / name) for name in set(index["weight_map"].values())}
    assert len(shards) > 1
    return {name: shards[file_name][name] for name, file_name in index["weight_map"].items()}


def read_dcp(folder: Path, net: Net) -> dict[str, torch.Tensor]:
    quietly(dcp_to_torch_save, folder, folder.with_suffix(".all.pt"))
    whole: dict[str, torch.Tensor] = torch.load(folder.with_suffix(".all.pt"), weights_only=True)
    wanted = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in net.state_dict().items()}
    quietly(dcp.load, wanted, checkpoint_id=folder)
    for name, tensor in wanted.items():
        assert_same(tensor, whole[name])
    return wanted


def read_safetensors(path: Path, net: Net) -> dict[str, torch.Tensor]:
    found = load_file(path)
    if found.keys() >= TIED:  # from a format without ties; load_model wants one of the two
        return found
    other = Net(seed=1)
    assert load_model(other, path) == (set(), [])
    assert other.head.weight is other.embed.weight
    for name, tensor in other.state_dict().items():
        assert_same(tensor, net.state_dict()[name])
    return found


def read_npz(path: Path, net: Net) -> dict[str, torch.Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


READERS: dict[str, Callable[[Path, Net], Mapping[str, torch.Tensor]]] = {
    "safetensors": read_safetensors,
    "safetensors-sharded": read_shards,
    "pt": lambda path, net: torch.load(path, weights_only=True, mmap=True),
    "dcp": read_dcp,
    "npz": read_npz,
}


@pytest.fixture(scope="module")
def net() -> Net:
    return Net().eval()


@pytest.fixture(scope="module")
def sources(net: Net, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    for name, save in SOURCES.items():
        save(net, folder / name)
    return {name: folder / name for name in SOURCES}


@pytest.mark.parametrize(("source", "target"), some(product(SOURCES, TARGETS), 3))
def test_every_pair_of_formats(
    source: str, target: str, net: Net, sources: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / TARGETS[target]
    flags = ["--extras", "drop"] if source == "torchscript" else []
    flags += ["--shard-size", "100KB"] if target == "safetensors-sharded" else []
    command = ["convert", sources[source], path, "--format", target, "-q", *flags]
    assert main.run([str(word) for word in command]) == 0
    found = READERS[target](path, net)
    expected = net.state_dict()
    left_out = expected.keys() - found.keys()
    assert found.keys() <= expected.keys()
    if target in ("safetensors", "safetensors-sharded") and source not in ("npz", "dcp"):
        assert len(left_out & TIED) == len(left_out) == 1
    else:
        assert not left_out
    for name, tensor in found.items():
        assert_same(tensor, expected[name])
    if target == "pt" and source not in ("npz", "dcp"):
        assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr()
    other = Net(seed=1).eval()
    missing, unexpected = other.load_state_dict(found, strict=False)
    assert not unexpected
    assert set(missing) == left_out
    assert_same(other(torch.arange(5)), net(torch.arange(5)))


@pytest.mark.parametrize(("source", "target"), some(product(["pt", "safetensors", "dcp"], TARGETS), 4))
def test_a_second_round_trip_changes_no_byte(
    source: str, target: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    """What the first one through a format has made of a checkpoint stays."""

    def convert(start: Path, name: str, to: str) -> Path:
        size = ["--shard-size", "100KB"] if to == "safetensors-sharded" else []
        words = ["convert", start, tmp_path / name, "--format", to, "-q", *size]
        assert main.run([str(word) for word in words]) == 0
        return tmp_path / name

    first = convert(convert(sources[source], "1", target), "2", "pt")
    again = convert(convert(first, "3", target), "4", "pt")
    assert again.read_bytes() == first.read_bytes()

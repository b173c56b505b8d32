"""Texts beside tensors survive every format that has a place for them; where one has none, that is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import ptsave
from ptsave.cli.main import run
from ptsave.errors import UsageError
from ptsave.formats import open_checkpoint
from ptsave.verbs.texts import parse_metadata

SIMPLE = Path(__file__).parents[2] / "configs" / "simple_net.toml"
TEXTS = {"author": "me", "note": "a=b", "empty": "", "ünï": "→"}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.ones(3)}, "a.safetensors", metadata={"format": "pt", "author": "somebody"})
    return Path("a.safetensors")


@pytest.mark.parametrize(
    "way", [["b.pt"], ["b.safetensors"], ["b.shards"], ["b.dcp"], ["b.pt", "c.dcp", "d.pt"]]
)
def test_they_come_back(source: Path, capsys: pytest.CaptureFixture[str], way: list[str]) -> None:
    """Through any formats, and on to safetensors, where its own library reads them."""
    formats = {".shards": "safetensors-sharded", ".dcp": "dcp"}
    flags = [word for key, text in TEXTS.items() for word in ("--metadata", f"{key}={text}")]
    here = str(source)
    for step in way:
        named = ["--format", formats[Path(step).suffix]] if Path(step).suffix in formats else []
        assert run(["convert", here, step, *named, *flags]) == 0
        here, flags = step, []
        capsys.readouterr()
        assert run(["inspect", step, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["metadata"].items() >= TEXTS.items()
    assert run(["convert", here, "last.safetensors"]) == 0
    with safe_open("last.safetensors", "pt") as file:
        assert file.metadata().items() >= TEXTS.items()
    assert run(["inspect", here]) == 0
    assert "note    'a=b'" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_save_has_them(source: Path, suffix: str) -> None:
    destination = f"net{suffix}"
    assert run(["save", str(SIMPLE), destination, "--metadata", "license=MIT"]) == 0
    with open_checkpoint(destination) as checkpoint:
        assert checkpoint.texts["license"] == "MIT"
    ptsave.save(f"own{suffix}", {"w": torch.ones(1)}, metadata={"license": "MIT"})
    with open_checkpoint(f"own{suffix}") as checkpoint:
        assert checkpoint.texts["license"] == "MIT"
    ptsave.convert(f"own{suffix}", "again.safetensors", metadata={"license": "BSD"})
    with open_checkpoint("again.safetensors") as checkpoint:
        assert checkpoint.texts["license"] == "BSD"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["b.npz", "--metadata", "a=b"], "npz has no place for it"),
        (["b.pt", "--metadata", "a=b", "--no-record"], "which --no-record leaves out"),
        (["b.pt", "--metadata", "w=b"], "'w' is the name of a tensor"),
        (["b.pt", "--metadata", "ptsave=b"], "is written by ptsave"),
        (["b.pt", "--metadata", "format=b"], "is written by ptsave"),
        (["b.pt", "--metadata", "a"], "'a' is not KEY=VALUE"),
        (["b.pt", "--metadata", "=a"], "'=a' is not KEY=VALUE"),
        (["b.pt", "--metadata", "a=b", "--metadata", "a=c"], "given twice"),
    ],
)
def test_what_no_file_would_hold(
    source: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert run(["convert", str(source), *flags]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "\nhint: " in err
    assert not Path(flags[0]).exists()


def test_a_text_that_is_no_unicode() -> None:
    with pytest.raises(UsageError, match="no Unicode text"):
        parse_metadata(["a=\udcff"])
    with pytest.raises(UsageError, match="is not a text"):
        ptsave.save("never.pt", {"w": torch.ones(1)}, metadata={"epoch": 3})  # type: ignore[dict-item]


def test_what_is_lost_is_said(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", str(source), "b.npz"]) == 0
    assert "left out the metadata author: npz has no place for it" in capsys.readouterr().err
    assert run(["convert", str(source), "b.pt", "--no-record"]) == 0
    assert "left out the metadata author" in capsys.readouterr().err
    assert run(["convert", str(source), "b.safetensors", "--no-record"]) == 0
    assert "left out" not in capsys.readouterr().err


TRAINING: dict[str, Any] = {
    "epoch": 3,
    "best": 0.5,
    "name": "x",
    "seen": [1, 2, [True, None]],
    "odd": torch.float16,
    "model_state_dict": {"w": torch.ones(3)},
}


def test_kept_values_come_back(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(TRAINING, "t.pt")
    assert run(["convert", "t.pt", "t.safetensors", "--extras", "keep"]) == 0
    assert run(["inspect", "t.safetensors"]) == 0
    said = capsys.readouterr().out
    assert "data, kept in the record" in said
    assert "epoch" in said.partition("kept in the record")[2]
    assert run(["convert", "t.safetensors", "back.pt"]) == 0
    back = torch.load("back.pt", weights_only=True)
    values = {key: value for key, value in back.items() if not isinstance(value, torch.Tensor)}
    assert values == {"epoch": 3, "best": 0.5, "name": "x", "seen.0": 1, "seen.1": 2, "seen.2": [True, None]}
    assert run(["convert", "t.safetensors", "bare.pt", "--extras", "drop"]) == 0
    assert list(torch.load("bare.pt", weights_only=True)) == ["model_state_dict.w"]


def test_a_kept_training_is_still_one(source: Path) -> None:
    """What comes back in a .pt hides nothing of the optimizer, which the record puts together."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}, "t.pt")
    ptsave.convert("t.pt", "t.safetensors", extras="keep")
    ptsave.convert("t.safetensors", "back.pt")
    assert ptsave.inspect("back.pt").training == ptsave.inspect("t.safetensors").training


def test_files_beside_the_weights_are_named(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home, other = Path("home"), Path("other")
    home.mkdir()
    other.mkdir()
    save_file({"w": torch.ones(3)}, home / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "README.md", "train.py", "vocab.txt"):
        (home / name).write_text("{}")
    (other / "config.json").write_text("{}")
    for path in (home, home / "model.safetensors"):
        assert run(["convert", str(path), "b.pt", "--overwrite"]) == 0
        assert (
            "not copied, beside the weights: config.json, tokenizer.json, vocab.txt"
            in capsys.readouterr().err
        )
    assert ptsave.convert(home, other / "b.pt").not_copied == ["tokenizer.json", "vocab.txt"]
    assert ptsave.convert(home / "model.safetensors", home / "b.pt").not_copied == []

"""Which file of a folder is read, checked against what transformers takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ptsave.errors import CorruptError, LimitError, MissingFileError
from ptsave.formats import open_checkpoint
from ptsave.formats.safetensors import main_file
from tests.formats.torch_reading import assert_same

KEY = "transformers_weights"


def folder_of(home: Path, config: Any, **files: float) -> Path:
    """A folder of one-tensor files with the values `files`, and a config (its text, or what it says)."""
    home.mkdir(exist_ok=True)
    for stem, value in files.items():
        save_file({"w": torch.full((3,), value)}, home / f"{stem}.safetensors")
    (home / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return home


def value_in(home: Path) -> tuple[float, list[str]]:
    """The value of the file that was read, and the notes."""
    with open_checkpoint(home) as checkpoint:
        buffer = bytearray(12)
        checkpoint.tensors["w"].storage.read_into(0, memoryview(buffer))
        return torch.frombuffer(buffer, dtype=torch.float32)[0].item(), checkpoint.notes


@pytest.mark.parametrize(
    "config",
    [{KEY: "other.safetensors"}, '{"transformers\\u005fweights": "other.safetensors"}'],
    ids=["plain", "escaped"],
)
def test_the_file_that_the_config_names(config: Any, tmp_path: Path) -> None:
    home = folder_of(tmp_path / "m", config, model=1.0, other=2.0)
    value, notes = value_in(home)
    assert value == 2
    assert "the folder also holds model.safetensors, which a loader could take" in notes[0]


@pytest.mark.parametrize(
    "config",
    ["{", "[]", {}, {KEY: None}, {KEY: 3}, {KEY: "other.bin"}, {"text_config": {KEY: "other.safetensors"}}],
    ids=str,
)
def test_a_config_that_names_none(config: Any, tmp_path: Path) -> None:
    assert value_in(folder_of(tmp_path / "m", config, model=1.0, other=2.0)) == (1, [])


def test_an_index_that_the_config_names(tmp_path: Path) -> None:
    home = folder_of(tmp_path / "m", {KEY: "b.safetensors.index.json"}, model=1.0, one=2.0, two=3.0)
    for stem, shard in {"a": "one", "b": "two"}.items():
        index = {"weight_map": {"w": f"{shard}.safetensors"}}
        (home / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    assert value_in(home)[0] == 3


@pytest.mark.parametrize("name", ["gone.safetensors", "../m/other.safetensors", "sub/other.safetensors"])
def test_a_file_that_is_not_there(name: str, tmp_path: Path) -> None:
    home = folder_of(tmp_path / "m", {KEY: name}, model=1.0, other=2.0)
    with pytest.raises(MissingFileError, match="is not in the folder"):
        open_checkpoint(home)


def test_a_config_that_says_two_things(tmp_path: Path) -> None:
    text = f'{{"{KEY}": "model.safetensors", "{KEY}": "other.safetensors"}}'
    with pytest.raises(CorruptError, match="two keys"):
        open_checkpoint(folder_of(tmp_path / "m", text, model=1.0, other=2.0))


def test_a_huge_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_file, "MAX_CONFIG_BYTES", 8)
    with pytest.raises(LimitError, match="config_bytes"):
        open_checkpoint(folder_of(tmp_path / "m", {KEY: "other.safetensors"}, model=1.0, other=2.0))


@pytest.mark.slow
def test_what_transformers_loads(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    model = BertModel(BertConfig(vocab_size=5, **sizes))
    model.save_pretrained(tmp_path)
    other = {name: torch.full_like(value, 7) for name, value in model.state_dict().items()}
    save_file(other, tmp_path / "other.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {KEY: "other.safetensors"}))
    loaded = BertModel.from_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        for name, value in loaded.state_dict().items():
            assert_same(checkpoint.tensors[name], value)

"""What `HuggingFaceStorageWriter` leaves when every rank writes for itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from ptsave import convert
from ptsave.cli import main
from ptsave.errors import CorruptError
from ptsave.formats import open_checkpoint
from tests.formats.torch_reading import assert_same

STATE = {
    "rows": torch.randn(7, 3),
    "columns": torch.randn(4, 8),
    "one": torch.arange(5),
    "scalar": torch.tensor(2.0),
}


def put(folder: Path, rank: int, chunks: dict[str, tuple[Any, list[int]]]) -> Path:
    """One rank's file: name → (tensor, offsets)."""
    about = {name: {"saved_offsets": offsets} for name, (_, offsets) in chunks.items()}
    metadata = {"format": "pt", "DCP_SHARDING_INFO": json.dumps(about), "DCP_VERSION": "1.0"}
    path = folder / f"shard-{rank:05}-model-00001-of-00001.safetensors"
    save_file({name: tensor.contiguous() for name, (tensor, _) in chunks.items()}, path, metadata)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows, columns = STATE["rows"], STATE["columns"]
    put(tmp_path, 1, {"rows": (rows[:4], [0, 0]), "columns": (columns[:, :4], [0, 0])})
    rest = {"one": (STATE["one"], [0]), "scalar": (STATE["scalar"], [])}
    put(tmp_path, 2, {"rows": (rows[4:], [4, 0]), "columns": (columns[:, 4:], [0, 4])} | rest)
    return tmp_path


@pytest.mark.filterwarnings("ignore")
def test_as_torch_reads_it(folder: Path) -> None:
    loaded: dict[str, Any] = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
    dcp.load(loaded, storage_reader=HuggingFaceStorageReader(str(folder)))
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.format == "dcp-safetensors"
        assert checkpoint.tensors.keys() == STATE.keys()
        for name, entry in checkpoint.tensors.items():
            assert_same(entry, loaded[name])
            assert_same(entry, STATE[name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options", [{"save_distributed": True}, {}], ids=["one rank's file", "with an index"]
)
def test_what_torch_writes(options: dict[str, Any], tmp_path: Path) -> None:
    dcp.save(dict(STATE), storage_writer=HuggingFaceStorageWriter(str(tmp_path), **options))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == ("dcp-safetensors" if options else "safetensors-sharded")
        for name, tensor in STATE.items():
            assert_same(checkpoint.tensors[name], tensor)


def test_a_rank_that_is_missing(folder: Path) -> None:
    put(folder, 4, {"more": (torch.ones(1), [0])})
    with open_checkpoint(folder) as checkpoint:
        assert "1 rank has no file (first: 3)" in checkpoint.notes
    (folder / "shard-00001-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(CorruptError, match="do not cover it"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ({"rows": (torch.ones(4, 3), [0, 0])}, "overlap"),
        ({"rows": (torch.ones(1, 3), [2**62, 0])}, "do not cover"),
        ({"rows": (torch.ones(1, 3), [7])}, "does not say where 'rows' belongs"),
        ({"rows": (torch.ones(1, 3), [-1, 0])}, "does not say where 'rows' belongs"),
        ({"rows": (torch.ones(1, 3, dtype=torch.int32), [7, 0])}, "differ in dtype"),
        ({"rows": (torch.ones(3), [0])}, "differ in dtype or rank"),
    ],
)
def test_what_is_refused(chunks: dict[str, Any], message: str, folder: Path) -> None:
    put(folder, 3, chunks)
    with pytest.raises(CorruptError, match=message):
        open_checkpoint(folder)


def test_a_file_without_offsets(folder: Path) -> None:
    save_file({"x": torch.ones(1)}, folder / "shard-00003-model-00001-of-00001.safetensors")
    with pytest.raises(CorruptError, match="DCP_SHARDING_INFO"):
        open_checkpoint(folder)


def test_a_rank_s_file_alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A later chunk is no whole tensor; of the first one the file does not say whether more follow."""
    first, second = sorted(folder.iterdir())
    out = tmp_path_factory.mktemp("out") / "out.pt"
    with open_checkpoint(first) as checkpoint:
        assert not checkpoint.accounts.left_out
        assert any("may be a chunk" in note for note in checkpoint.notes)
    with open_checkpoint(second) as checkpoint:
        (left,) = checkpoint.accounts.left_out
        assert "'rows' from [4, 0] on" in left.what
        assert "'columns' from [0, 4] on" in left.what
        assert "'one'" not in left.what
    assert main.run(["convert", str(second), str(out), "-q"]) == 4
    assert main.run(["convert", str(folder), str(out), "-q"]) == 0


def test_an_index_of_a_rank_s_file(folder: Path) -> None:
    """Its loaders take each chunk for a whole tensor."""
    table = dict.fromkeys(STATE, "shard-00002-model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    with open_checkpoint(folder / "model.safetensors.index.json") as checkpoint:
        assert any("'columns'" in left.what for left in checkpoint.accounts.left_out)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{"save_distributed": True}, {}], ids=["ranks", "with an index"])
def test_every_safetensors_file_of_the_folder_counts(options: dict[str, Any], tmp_path: Path) -> None:
    """torch's reader takes all of them, and the last of two chunks of one place."""
    dcp.save(dict(STATE), storage_writer=HuggingFaceStorageWriter(str(tmp_path), **options))
    save_file({"one": torch.zeros_like(STATE["one"])}, tmp_path / "zzz.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        (left,) = checkpoint.accounts.left_out
    assert "zzz.safetensors" in left.what


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", [None, {}, {"saved_offsets": [True]}, {"saved_offsets": [0, 0, 0, 0]}])
def test_a_whole_tensor_whose_place_is_not_said(place: Any, tmp_path: Path) -> None:
    """torch's reader looks for the place of each tensor of a file that has a table of them."""
    table = {} if place is None else {"w": place}
    metadata = {"DCP_SHARDING_INFO": json.dumps(table)}
    save_file({"w": torch.ones(3)}, tmp_path / "m.safetensors", metadata)
    with pytest.raises(CorruptError, match="does not say where 'w' belongs"):
        open_checkpoint(tmp_path / "m.safetensors")


def test_a_converted_file_says_nothing_of_chunks(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_file({"w": torch.ones(3)}, path, {"DCP_SHARDING_INFO": json.dumps({"w": {"saved_offsets": [0]}})})
    convert(path, tmp_path / "two.safetensors", rename=["w=v"])
    with open_checkpoint(tmp_path / "two.safetensors") as checkpoint:
        assert [*checkpoint.tensors] == ["v"]
        assert "DCP_SHARDING_INFO" not in checkpoint.metadata

"""The sharded writer, checked against safetensors and huggingface_hub's layout."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ptsave.core.record import Digests, Record
from ptsave.errors import CorruptError, ExistsError, LossyError
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.dcp import write as dcp_write
from ptsave.formats.safetensors import sharded_write
from ptsave.formats.safetensors.sharded_write import split, write
from ptsave.formats.safetensors.write import PAGE_BYTES, header_bytes, lay_out
from ptsave.storage.scan import tensor_digest
from tests.formats.write_cases import SAFETENSORS_DTYPES, assert_same, checkpoint_of, state_dicts
from tests.support import examples

OPTIONS = WriteOptions(overwrite=True)
INDEX = "model.safetensors.index.json"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_index_that_would_not_be_read_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharded_write, "MAX_INDEX_BYTES", 100)
    with pytest.raises(LossyError, match="index_bytes = 100"):
        write(checkpoint_of(OrderedDict(w=torch.ones(2))), tmp_path / "f", OPTIONS)
    assert not list(tmp_path.iterdir())


@given(state_dicts(SAFETENSORS_DTYPES), st.integers(1, 300))
@settings(max_examples=examples(30), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_what_is_read(
    tmp_path: Path, state: OrderedDict[str, torch.Tensor], shard_bytes: int
) -> None:
    assume(state)
    source = checkpoint_of(state)
    folder = tmp_path / "f"
    write(source, folder, replace(OPTIONS, shard_bytes=shard_bytes))
    index = json.loads((folder / INDEX).read_text())
    found = {}
    for name in set(index["weight_map"].values()):
        found |= load_file(folder / name)
    assert found.keys() == index["weight_map"].keys()
    aliases = index["metadata"]["ptsave"].get("aliases", {})
    for name, tensor in state.items():
        assert_same(found[aliases.get(name, name)], tensor)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.notes == []
        assert list(checkpoint.tensors) == list(state)
        for name, entry in checkpoint.tensors.items():
            assert tensor_digest(entry) == tensor_digest(source.tensors[name])


def test_shards_are_cut_as_the_hub_cuts_them() -> None:
    from huggingface_hub import split_torch_state_dict_into_shards

    state = {f"w{i}": torch.zeros(size) for i, size in enumerate((5, 9, 30, 2, 2, 2, 8, 1))}
    theirs = split_torch_state_dict_into_shards(state, max_shard_size=40)
    ours = split(checkpoint_of(state).tensors, 40)
    assert [list(shard) for shard in ours] == list(theirs.filename_to_tensors.values())


def test_no_shard_has_a_header_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library reads 100 MB of header; a million small tensors have more."""
    most = PAGE_BYTES + 2000
    monkeypatch.setattr("ptsave.formats.safetensors.sharded_write.MAX_HEADER_BYTES", most)
    state = {f"wörter.{i}" * (1 + i % 3): torch.zeros((1,) * (i % 9)) for i in range(100)}
    shards = split(checkpoint_of(state).tensors, 10**9)
    assert [name for shard in shards for name in shard] == list(state)
    sizes = [len(header_bytes(lay_out(shard), {"format": "pt"})) for shard in shards]
    assert 2 < len(shards) < 20
    assert max(sizes) <= most


def test_names_and_index_are_those_of_the_hub(tmp_path: Path) -> None:
    state = {f"w{i}": torch.full((10,), float(i)) for i in range(3)}
    written = write(
        checkpoint_of(state, metadata={"by": "me"}), tmp_path / "f", replace(OPTIONS, shard_bytes=80)
    )
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert names(tmp_path / "f") == [*shards, INDEX]
    index = json.loads((tmp_path / "f" / INDEX).read_text())
    assert index["weight_map"] == {"w0": shards[0], "w1": shards[0], "w2": shards[1]}
    assert index["metadata"]["total_size"] == 120
    assert index["metadata"]["by"] == "me"
    assert written.num_bytes == sum(path.stat().st_size for path in (tmp_path / "f").iterdir())


def test_an_old_set_gives_way_and_other_files_stay(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    options = replace(OPTIONS, shard_bytes=40)
    write(checkpoint_of({"a": torch.ones(10), "b": torch.ones(10)}), folder, options)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ExistsError):
        write(checkpoint_of({"a": torch.zeros(10)}), folder, replace(options, overwrite=False))
    with open_checkpoint(folder) as old:
        write(old, folder, options)  # onto the very files that are being read
        assert tensor_digest(old.tensors["a"])
    tagged = [f"model-ptsave2-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert names(folder) == ["config.json", *tagged, INDEX]
    write(checkpoint_of({"a": torch.zeros(10)}), folder, options)
    assert names(folder) == ["config.json", "model-00001-of-00001.safetensors", INDEX]
    with open_checkpoint(folder) as found:
        assert found.tensors.keys() == {"a"}


@pytest.mark.parametrize(
    "leftover", ["model.safetensors", "model-ptsave2-00001-of-00009.safetensors", "__0_0.distcp"]
)
def test_leftovers_never_hide_the_new_set(tmp_path: Path, leftover: str) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / leftover).write_bytes(b"old")
    write(checkpoint_of({"a": torch.zeros(3)}), folder, OPTIONS)
    assert names(folder) == ["model-00001-of-00001.safetensors", INDEX]


def test_dcp_and_shards_replace_each_other(tmp_path: Path) -> None:
    source = checkpoint_of({"a": torch.zeros(3)})
    for writer, format_name in ((write, "safetensors-sharded"), (dcp_write.write, "dcp")) * 2:
        writer(source, tmp_path / "f", OPTIONS)
        with open_checkpoint(tmp_path / "f") as found:
            assert found.format == format_name
            assert list(found.tensors) == ["a"]
    assert names(tmp_path / "f") == [".metadata", "__0_0.distcp", "ptsave.json"]


def test_a_failure_leaves_the_old_set(tmp_path: Path) -> None:
    write(checkpoint_of({"a": torch.zeros(3)}), tmp_path / "f", OPTIONS)
    before = {path: path.read_bytes() for path in (tmp_path / "f").iterdir()}
    record = Record(digests=Digests("xxh3_128", {"b": "0" * 32}))
    with pytest.raises(CorruptError, match="'b' is damaged"):
        write(checkpoint_of({"a": torch.ones(3), "b": torch.ones(3)}, record=record), tmp_path / "f", OPTIONS)
    assert {path: path.read_bytes() for path in (tmp_path / "f").iterdir()} == before
    for nothing in ({"a": 1}, {}):
        with pytest.raises(LossyError):
            write(checkpoint_of(nothing), tmp_path / "g", OPTIONS)
    assert names(tmp_path) == ["f"]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    source = checkpoint_of({f"w{i}": torch.full((10,), float(i)) for i in range(9)})
    for name in ("a", "b"):
        write(source, tmp_path / name, replace(OPTIONS, shard_bytes=100))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()

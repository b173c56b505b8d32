"""Folders of shards, reconciled with their index."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ptsave.errors import CorruptError, MissingFileError, UnreadableError
from ptsave.formats import open_checkpoint
from ptsave.verbs.checks.safe import safe
from ptsave.verbs.checks.subject import Subject
from tests.attacks import torch_files as tf
from tests.attacks.pickles import dump
from tests.formats.payload import PAYLOAD
from tests.formats.torch_reading import assert_same

INDEX = "model.safetensors.index.json"
STATE = {"a": torch.arange(4.0), "b": torch.ones(2, 3, dtype=torch.bfloat16), "c": torch.tensor(5)}


def shard_name(i: int, count: int = 2, stem: str = "model", suffix: str = "safetensors") -> str:
    return f"{stem}-{i:05}-of-{count:05}.{suffix}"


def write_index(folder: Path, weight_map: Mapping[str, str], name: str = INDEX, **metadata: object) -> None:
    (folder / name).write_text(json.dumps({"metadata": metadata, "weight_map": dict(weight_map)}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards as huggingface_hub writes them."""
    home = tmp_path / "model"
    home.mkdir()
    save_file({"a": STATE["a"]}, home / shard_name(1), metadata={"format": "pt"})
    save_file({"b": STATE["b"], "c": STATE["c"]}, home / shard_name(2), metadata={"format": "pt"})
    write_index(home, {"c": shard_name(2), "a": shard_name(1), "b": shard_name(2)}, total_size=36)
    return home


def test_the_folder_and_its_index(folder: Path) -> None:
    for path in (folder, folder / INDEX):
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.format == "safetensors-sharded"
            assert list(checkpoint.tensors) == ["c", "a", "b"]
            for name, tensor in STATE.items():
                assert_same(checkpoint.tensors[name], tensor)
            assert checkpoint.metadata == {"format": "pt"}
            assert checkpoint.notes == []
            assert [finding.level for check in checkpoint.checks for finding in check()] == ["ok"]


@pytest.mark.parametrize("place", ["index", "shard"])
def test_a_tie_that_was_left_out_is_restored_and_noted(folder: Path, place: str) -> None:
    """As huggingface_hub says it: in the index's metadata, and in every shard's."""
    tie = {"d": "a"}
    weight_map = {"a": shard_name(1), "b": shard_name(2), "c": shard_name(2)}
    if place == "index":
        write_index(folder, weight_map, total_size=36, **tie)
    else:
        save_file({"a": STATE["a"]}, folder / shard_name(1), metadata={"format": "pt", **tie})
        save_file(
            {"b": STATE["b"], "c": STATE["c"]}, folder / shard_name(2), metadata={"format": "pt", **tie}
        )
    with open_checkpoint(folder) as checkpoint:
        assert sorted(checkpoint.tensors) == ["a", "b", "c", "d"]
        assert checkpoint.tensors["d"].view == checkpoint.tensors["a"].view
        assert checkpoint.metadata == {"format": "pt"}
        assert checkpoint.notes == ["d is taken to be a: only one is stored, because they share memory"]
        assert [finding.level for check in checkpoint.checks for finding in check()] == ["ok"]


def test_shards_of_torch(tmp_path: Path) -> None:
    """`pytorch_model.bin.index.json`; one shard in the legacy format, with a tie inside."""
    tied = torch.ones(3)
    names = [shard_name(i, stem="pytorch_model", suffix="bin") for i in (1, 2)]
    torch.save({"a": STATE["a"]}, tmp_path / names[0], _use_new_zipfile_serialization=False)
    torch.save({"x": tied, "y": tied}, tmp_path / names[1])
    weight_map = {"a": names[0], "x": names[1], "y": names[1]}
    write_index(tmp_path, weight_map, "pytorch_model.bin.index.json", total_size=28)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "pt-sharded"
        assert_same(checkpoint.tensors["a"], STATE["a"])
        assert checkpoint.tensors["x"].storage is checkpoint.tensors["y"].storage
        assert checkpoint.notes == []


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "adapter_model.safetensors"])
def test_a_folder_with_one_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    if name.endswith(".bin"):
        torch.save(STATE, tmp_path / name)
    else:
        save_file(STATE, tmp_path / name)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == ("pt" if name.endswith(".bin") else "safetensors")
        assert_same(checkpoint.tensors["a"], STATE["a"])


def test_safetensors_come_first(folder: Path) -> None:
    torch.save({"other": torch.ones(1)}, folder / "pytorch_model.bin")
    with open_checkpoint(folder) as checkpoint:
        assert "a" in checkpoint.tensors
    save_file({"one": torch.ones(1)}, folder / "model.safetensors")
    with open_checkpoint(folder) as checkpoint:
        assert list(checkpoint.tensors) == ["one"]
        assert any("pytorch_model.bin, which a loader could take" in note for note in checkpoint.notes)


def test_a_cache_of_links_as_huggingface_hub_lays_it_out(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / f"blob{i}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob{i}")
    for path in (snapshot, snapshot / INDEX):
        with open_checkpoint(path) as checkpoint:
            assert len(checkpoint.tensors) == 3


def extra_tensor(folder: Path) -> None:
    save_file({"a": STATE["a"], "more": torch.ones(1)}, folder / shard_name(1))


def extra_shard(folder: Path) -> None:
    save_file({"z": torch.ones(1)}, folder / shard_name(3, 3))


def wrong_total(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    write_index(folder, index["weight_map"], total_size=35)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (extra_tensor, r"model-00001-of-00002.safetensors has 1 tensor that is not in the index.*more"),
        (extra_shard, "also holds model-00003-of-00003.safetensors"),
        (wrong_total, "35 bytes, they have 36"),
    ],
)
def test_what_is_noted(change: Callable[[Path], None], note: str, folder: Path) -> None:
    change(folder)
    with open_checkpoint(folder) as checkpoint:
        assert sorted(checkpoint.tensors) == ["a", "b", "c"]
        (found,) = checkpoint.notes
        (finding,) = [finding for check in checkpoint.checks for finding in check()]
    assert re.search(note, found)
    assert (finding.level, finding.message) == ("warn", found)


def missing_shard(folder: Path) -> None:
    (folder / shard_name(2)).unlink()


def swapped_shards(folder: Path) -> None:
    (folder / shard_name(1)).rename(folder / "swap")
    (folder / shard_name(2)).rename(folder / shard_name(1))
    (folder / "swap").rename(folder / shard_name(2))


def in_two_shards(folder: Path) -> None:
    save_file({"a": STATE["a"], "b": STATE["b"]}, folder / shard_name(1))


def not_in_its_shard(folder: Path) -> None:
    save_file({"x": STATE["a"]}, folder / shard_name(1))


def no_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def truncated_shard(folder: Path) -> None:
    os.truncate(folder / shard_name(2), 100)


def empty_index(folder: Path) -> None:
    write_index(folder, {})


def pickle_in_disguise(folder: Path) -> None:
    torch.save({"a": STATE["a"]}, folder / shard_name(1))


def several_indexes(folder: Path) -> None:
    shutil.copy(folder / INDEX, folder / "model.fp16.safetensors.index.json")


def outside(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        save_file({"a": STATE["a"]}, folder.parent / "outside.safetensors")
        write_index(folder, {"a": name.format(folder.parent)})

    return change


def link_to_outside(folder: Path) -> None:
    save_file({"a": STATE["a"]}, folder.parent / "outside.safetensors")
    (folder / shard_name(1)).unlink()
    (folder / shard_name(1)).symlink_to("../outside.safetensors")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (missing_shard, MissingFileError, "1 of 2 shards are missing: model-00002"),
        (swapped_shards, CorruptError, "and the index says"),
        (in_two_shards, CorruptError, "in two shards"),
        (not_in_its_shard, CorruptError, "'a' is not in its shard"),
        (no_index, UnreadableError, "half written: 2 of 2 shards are present, and the index is missing"),
        (truncated_shard, CorruptError, "truncated|missing|header"),
        (empty_index, CorruptError, "names no tensors"),
        (pickle_in_disguise, CorruptError, "is a pickle"),
        (several_indexes, UnreadableError, "several checkpoints"),
        (outside("../outside.safetensors"), CorruptError, "outside its folder"),
        (outside("{}/outside.safetensors"), CorruptError, "outside its folder"),
        (link_to_outside, CorruptError, "symbolic link out"),
    ],
)
def test_what_is_refused(
    change: Callable[[Path], None], kind: type[Exception], message: str, folder: Path
) -> None:
    change(folder)
    with pytest.raises(kind, match=message):
        open_checkpoint(folder)


@pytest.mark.slow
def test_200_shards_of_a_tebibyte_open_at_once(tmp_path: Path) -> None:
    count, per_shard = 200, 100
    num_bytes = 2**40 // count // per_shard // 4 * 4
    weight_map = {}
    for i in range(1, count + 1):
        names = [f"layers.{i}.part{j}.weight" for j in range(per_shard)]
        header = json.dumps(
            {
                name: {
                    "dtype": "F32",
                    "shape": [num_bytes // 4],
                    "data_offsets": [j * num_bytes, (j + 1) * num_bytes],
                }
                for j, name in enumerate(names)
            }
        ).encode()
        with (tmp_path / shard_name(i, count)).open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + per_shard * num_bytes)
        weight_map |= dict.fromkeys(names, shard_name(i, count))
    write_index(tmp_path, weight_map)
    start = time.process_time()
    with open_checkpoint(tmp_path) as checkpoint:
        assert len(checkpoint.tensors) == count * per_shard
    assert time.process_time() - start < 2


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux lists them")
def test_more_shards_than_a_process_may_open(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 60
    for i in range(1, count + 1):
        save_file({f"t{i}": torch.ones(1)}, tmp_path / shard_name(i, count))
    write_index(tmp_path, {f"t{i}": shard_name(i, count) for i in range(1, count + 1)})
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, limits[1]))
    try:
        with open_checkpoint(tmp_path) as checkpoint:
            assert len(checkpoint.tensors) == count
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_every_truncation_of_the_index_is_refused(folder: Path) -> None:
    data = (folder / INDEX).read_bytes()
    for num_bytes in range(len(data)):
        (folder / INDEX).write_bytes(data[:num_bytes])
        with pytest.raises(UnreadableError):
            open_checkpoint(folder)


def test_tensors_of_one_shard_share_nothing_with_another(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        storages: set[int] = {id(entry.storage) for entry in checkpoint.tensors.values()}
        assert len(storages) == 3


def beside(folder: Path, name: str) -> None:
    """A file with a payload that some loader of the folder would take."""
    if name == ".metadata":
        (folder / name).write_bytes(dump(PAYLOAD))
    elif name == "a shard of a pickled index":
        (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"w": "x.bin"}}')
        (folder / "x.bin").write_bytes(tf.pt({"w": PAYLOAD}))
    else:
        (folder / name).write_bytes(dump(PAYLOAD) if name.endswith(".metadata") else tf.pt({"w": PAYLOAD}))


TAKEN = [
    ".metadata",
    "__0.metadata",
    "pytorch_model.bin",
    "pytorch_model.fp16.bin",
    "diffusion_pytorch_model.bin",
    "adapter_model.bin",
    "a shard of a pickled index",
]


@pytest.mark.parametrize("name", TAKEN)
def test_what_another_loader_of_the_folder_takes_is_judged(name: str, tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert [finding.level for finding in safe(Subject(checkpoint))] == ["ok"]
    beside(tmp_path, name)
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["w"]
        assert "fail" in [finding.level for finding in safe(Subject(checkpoint))]


def test_a_file_that_no_loader_takes_is_told(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"w": 1}, tmp_path / "optimizer.pt")
    with open_checkpoint(tmp_path) as checkpoint:
        (found,) = safe(Subject(checkpoint))
        assert (found.level, found.message) == (
            "warn",
            "1 file beside it (such as optimizer.pt) was not looked at",
        )


def test_two_whole_checkpoints_in_one_folder(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as checkpoint:
        assert [finding.level for finding in safe(Subject(checkpoint))] == ["ok"]
        assert any("its values were not compared" in note for note in checkpoint.notes)


@pytest.mark.parametrize("beside_it", [False, True])
def test_the_index_of_a_variant(beside_it: bool, tmp_path: Path) -> None:
    shard = "model.fp16-00001-of-00001.safetensors"
    save_file({"w": torch.ones(2)}, tmp_path / shard)
    (tmp_path / "model.safetensors.index.fp16.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    if beside_it:
        plain = "model-00001-of-00001.safetensors"
        save_file({"v": torch.ones(2)}, tmp_path / plain)
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"v": plain}}))
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["v" if beside_it else "w"]

"""DCP folders, checked against what torch.distributed.checkpoint loads."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from ptsave.errors import CorruptError, LimitError, MissingFileError, UnreadableError
from ptsave.formats import open_checkpoint
from ptsave.formats.dcp.chunks import Box, ConcatenatedStorage, TiledStorage
from ptsave.formats.dcp.metadata import parse_metadata
from ptsave.storage.windows import FileStorage
from ptsave.verbs.checks.safe import safe
from ptsave.verbs.checks.subject import Subject
from tests.attacks import torch_files as tf
from tests.attacks.pickles import Call, Name, New, Raw, Shared, dump
from tests.formats.dcp.test_chunks import grid
from tests.formats.torch_reading import assert_same, flat

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed")

STATE: dict[str, Any] = {
    "w": torch.randn(4, 6),
    "b": torch.arange(6, dtype=torch.int32),
    "cube": torch.randn(3, 4, 5).to(torch.bfloat16),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
}
CUTS = {"w": ([0, 1, 4], [0, 6]), "cube": ([0, 3], [0, 1, 4], [0, 2, 5]), "b": ([0, 2, 3, 6],)}


def boxes_of(name: str) -> list[Box]:
    if name in CUTS:
        return list(grid([list(cut) for cut in CUTS[name]]))
    return [Box((0,) * STATE[name].dim(), tuple(STATE[name].shape))]


def write_sharded(folder: Path, change: Callable[[Metadata], None] = lambda metadata: None) -> Path:
    """What several ranks write: the chunks of CUTS in turn in two files, and some plain data."""
    folder.mkdir()
    items: dict[str, Any] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    files = [(folder / f"__{rank}_0.distcp").open("wb") for rank in range(2)]
    turn = 0

    def put(index: MetadataIndex, value: Any) -> None:
        nonlocal turn
        file = files[turn % 2]
        turn += 1
        start = file.tell()
        torch.save(value, file)
        places[index] = _StorageInfo(Path(file.name).name, start, file.tell() - start)

    for name, tensor in STATE.items():
        chunks = []
        for box in boxes_of(name):
            part = tensor[tuple(slice(o, o + s) for o, s in zip(box.offsets, box.sizes, strict=True))]
            put(MetadataIndex(name, box.offsets), part.clone() if part.numel() else torch.empty(0, 0))
            chunks.append(ChunkStorageMetadata(torch.Size(box.offsets), torch.Size(box.sizes)))
        properties = TensorProperties.create_from_tensor(tensor)
        items[name] = TensorStorageMetadata(properties, tensor.shape, chunks)
    items["epoch"] = BytesStorageMetadata()
    put(MetadataIndex("epoch"), 7)
    for file in files:
        file.close()
    metadata = Metadata(items, {name: (name,) for name in items}, places)
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


def test_chunks_of_several_ranks_are_presented_whole(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "dcp")
    loaded: dict[str, Any] = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
    dcp.load(loaded, checkpoint_id=folder)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.format == "dcp"
        assert list(checkpoint.tensors) == list(STATE)
        for name, entry in checkpoint.tensors.items():
            assert_same(entry, loaded[name])
            assert_same(entry, STATE[name])
        kinds = {name: type(entry.storage) for name, entry in checkpoint.tensors.items()}
        assert (kinds["w"], kinds["b"]) == (ConcatenatedStorage, ConcatenatedStorage)
        assert (kinds["cube"], kinds["scalar"]) == (TiledStorage, FileStorage)
        assert checkpoint.data["epoch"] == 7
        assert checkpoint.globals == {}
        assert [finding.level for check in checkpoint.checks for finding in check()] == ["ok"]


def test_a_training_checkpoint_of_torch(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    state = {
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "epoch": 3,
        "history": [torch.ones(2), {"loss": 0.5}],
        "hyper": {"lr": 1e-3, "betas": (0.9, 0.99), "nothing": None},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=tmp_path / "dcp")
    with open_checkpoint(tmp_path / "dcp") as checkpoint:
        for name, tensor in flat(state).items():
            assert_same(checkpoint.tensors[name], tensor)
        assert len(checkpoint.tensors) == len(flat(state))
        root = checkpoint.root
        assert list(root["optimizer_state_dict"]["state"]) == [0, 1, 2, 3]
        assert root["optimizer_state_dict"]["param_groups"] == state["optimizer_state_dict"]["param_groups"]
        assert (root["epoch"], root["hyper"]) == (3, state["hyper"])
        assert root["history"][1] == {"loss": 0.5}
        assert checkpoint.globals == {}


def test_damage_in_a_chunk_is_found(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "dcp")
    with open_checkpoint(folder) as checkpoint:
        storage = checkpoint.tensors["w"].storage
        assert isinstance(storage, ConcatenatedStorage)
        part = storage.parts[1][0]
        assert isinstance(part, FileStorage)
        path, position = part.file.path, part.offset_bytes + 5
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)
    with open_checkpoint(folder) as checkpoint:
        (finding,) = [finding for check in checkpoint.checks for finding in check()]
        assert (finding.level, finding.where) == ("fail", "w")


def place(metadata: Metadata, name: str) -> _StorageInfo:
    return next(info for index, info in metadata.storage_data.items() if index.fqn == name)


def outside(path: str) -> Callable[[Metadata], None]:
    def change(metadata: Metadata) -> None:
        place(metadata, "b").relative_path = path

    return change


def set_place(**fields: Any) -> Callable[[Metadata], None]:
    def change(metadata: Metadata) -> None:
        for key, value in fields.items():
            setattr(place(metadata, "scalar"), key, value)

    return change


def drop_chunk(metadata: Metadata) -> None:
    metadata.state_dict_metadata["w"].chunks.pop()  # type: ignore[union-attr]


def drop_place(metadata: Metadata) -> None:
    del metadata.storage_data[MetadataIndex("epoch")]


def other_dtype(metadata: Metadata) -> None:
    metadata.state_dict_metadata["w"].properties.dtype = torch.int32  # type: ignore[union-attr]


def other_chunk(metadata: Metadata) -> None:
    """The scalar's place holds the data of `epoch`."""
    metadata.storage_data[MetadataIndex("scalar", ())] = metadata.storage_data[MetadataIndex("epoch")]


def larger(metadata: Metadata) -> None:
    about = metadata.state_dict_metadata["scalar"]
    about.size = torch.Size([2**40])  # type: ignore[union-attr]
    about.chunks[0].sizes = torch.Size([2**40])  # type: ignore[union-attr]
    about.chunks[0].offsets = torch.Size([0])  # type: ignore[union-attr]
    metadata.storage_data[MetadataIndex("scalar", (0,))] = metadata.storage_data[MetadataIndex("scalar", ())]


def renamed(old: str, *path: str | int) -> Callable[[Metadata], None]:
    def change(metadata: Metadata) -> None:
        name = ".".join(map(str, path))
        metadata.state_dict_metadata[name] = metadata.state_dict_metadata.pop(old)
        metadata.planner_data[name] = path
        for index in [index for index in metadata.storage_data if index.fqn == old]:
            metadata.storage_data[replace(index, fqn=name)] = metadata.storage_data.pop(index)

    return change


def two_swapped(metadata: Metadata) -> None:
    """torch's own `dcp.load` goes by the items' names, and `dcp_to_torch_save` by these paths."""
    metadata.planner_data["w"], metadata.planner_data["b"] = ("b",), ("w",)


def no_metadata(metadata: Metadata) -> None:
    metadata.state_dict_metadata = [1]  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (outside("../__0_0.distcp"), CorruptError, "outside its folder"),
        (outside("/etc/passwd"), CorruptError, "outside its folder"),
        (outside("__7_0.distcp"), MissingFileError, "no such file, though the metadata places 'b' in it"),
        (set_place(offset=10**15), CorruptError, "truncated"),
        (set_place(length=10**15), CorruptError, "truncated"),
        (set_place(offset=1), CorruptError, "item 'scalar'"),
        (set_place(offset=-1), CorruptError, "place in its file is malformed"),
        (set_place(transform_descriptors=["zstd"]), UnreadableError, "went through zstd"),
        (drop_chunk, CorruptError, "do not cover it: 6 elements"),
        (drop_place, CorruptError, "does not say where 'epoch' lies"),
        (other_dtype, CorruptError, "should be int32"),
        (other_chunk, CorruptError, "is no tensor"),
        (larger, CorruptError, "should be float32"),
        (renamed("scalar", "w", "scalar"), CorruptError, "inside a value"),
        (renamed("w", "list", 10**15), LimitError, "list_places"),
        (two_swapped, CorruptError, "the path of another item"),
        (no_metadata, CorruptError, "not the metadata"),
    ],
)
def test_metadata_that_lies(
    change: Callable[[Metadata], None], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        open_checkpoint(write_sharded(tmp_path / "dcp", change))


def test_a_half_written_folder(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "dcp")
    (folder / ".metadata").unlink()
    with pytest.raises(UnreadableError, match=r"half written: it has \.distcp files but no \.metadata"):
        open_checkpoint(folder)


class Evil:
    """What torch's own reader of `.metadata` would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_metadata_that_would_run_code(tmp_path: Path) -> None:
    """It is described when it lies beside what is read, and refused where it stands in its place."""
    canary = tmp_path / "canary"

    def beside(metadata: Metadata) -> None:
        metadata.storage_meta = Evil(canary)  # type: ignore[assignment]

    def in_place(metadata: Metadata) -> None:
        metadata.storage_data = Evil(canary)

    with open_checkpoint(write_sharded(tmp_path / "beside", beside)) as checkpoint:
        assert [use.used_for for use in checkpoint.globals.values()] == ["called"]
    with pytest.raises(CorruptError):
        open_checkpoint(write_sharded(tmp_path / "in_place", in_place))
    assert not canary.exists()
    with (tmp_path / "beside" / ".metadata").open("rb") as file:
        pickle.load(file)
    assert canary.exists()


def test_a_place_that_the_pickle_changes_afterwards() -> None:
    """BUILD copies the state, so that what is written into the dictionary later is in no place."""
    place = tf.dcp_place()
    shared = Shared(dict(place.state))
    root = tf.dcp_metadata(places={tf.dcp_index(): New(place.cls, place.args, shared)})
    root.state["later"] = Raw(b"j\x01\0\0\0X\x06\0\0\0offsetK\x63s")
    (found,) = parse_metadata(dump(root), "test").places.values()
    assert found.offset_bytes == place.state["offset"] == 0


EVIL_ITEM = tf.pt(Call(Name("os", "system"), ("true",)))
ITEM = New(Name(tf.META, "BytesStorageMetadata"))
ITS_PLACE = {tf.dcp_index("x", None, None): tf.dcp_place("__1_0.distcp", 0, len(EVIL_ITEM))}
FILES = {"__0_0.distcp": tf.DCP_ITEM, "__1_0.distcp": EVIL_ITEM}
TENSOR, TENSORS_PLACE = {"w": tf.dcp_tensor()}, {tf.dcp_index(): tf.dcp_place()}


def levels_of(home: Path) -> list[tuple[str, str]]:
    with open_checkpoint(home) as checkpoint:
        return [(finding.level, finding.where) for finding in safe(Subject(checkpoint))]


@pytest.mark.parametrize("is_listed", [True, False], ids=["an item", "an item that has a place only"])
def test_an_item_that_runs_something(is_listed: bool, tmp_path: Path) -> None:
    """Plain data is unpickled by `dcp.load`, in whichever file it lies."""
    items = TENSOR | {"x": ITEM} if is_listed else TENSOR
    home = tf.dcp(tmp_path, tf.dcp_metadata(items, TENSORS_PLACE | ITS_PLACE), FILES)
    assert levels_of(home) == [("fail", "os.system")]


def test_an_item_of_a_rank_s_own_metadata(tmp_path: Path) -> None:
    """Of which `dcp.load(no_dist)` takes rank 0's; it may hold a part of each tensor alone."""
    home = tf.dcp(tmp_path, tf.dcp_metadata(TENSOR, TENSORS_PLACE), FILES)
    half = {"w": tf.dcp_tensor((8,)), "x": ITEM}
    (home / "__0.metadata").write_bytes(dump(tf.dcp_metadata(half, TENSORS_PLACE | ITS_PLACE)))
    assert levels_of(home) == [("fail", "os.system")]


def test_a_file_that_no_metadata_names(tmp_path: Path) -> None:
    home = tf.dcp(tmp_path, tf.dcp_metadata(TENSOR, TENSORS_PLACE), FILES)
    assert [level for level, _ in levels_of(home)] == ["warn"]


def test_a_use_is_counted_in_every_item(tmp_path: Path) -> None:
    items = TENSOR | {"x": ITEM, "y": ITEM}
    places = TENSORS_PLACE | ITS_PLACE
    places |= {tf.dcp_index("y", None, None): tf.dcp_place("__2_0.distcp", 0, len(EVIL_ITEM))}
    home = tf.dcp(tmp_path, tf.dcp_metadata(items, places), FILES | {"__2_0.distcp": EVIL_ITEM})
    with open_checkpoint(home) as checkpoint:
        assert checkpoint.globals["os.system"].count == 2

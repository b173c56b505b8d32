"""What is stored of a checkpoint, and that damage in its source is found whatever the way it takes."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import pytest
import torch

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import BY_NAME
from ptsave.core.nodes import TensorEntry
from ptsave.core.record import Digests, Record
from ptsave.core.storage import MemoryStorage
from ptsave.core.values.cast import cast
from ptsave.errors import CorruptError, LossyError
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.dcp import write as dcp_write
from ptsave.formats.dcp.chunks import Box, assemble
from ptsave.formats.npz import write as npz_write
from ptsave.formats.safetensors import sharded_write
from ptsave.formats.safetensors import write as safetensors_write
from ptsave.formats.stored import distinct, overlaps, with_source_checks
from ptsave.formats.torch import write as torch_write
from ptsave.storage.move import Move
from tests.formats.write_cases import checkpoint_of
from tests.support import some

OPTIONS = WriteOptions(overwrite=True)
MARK = b"\x11\x22\x33\x44" * 8


def marked_state() -> dict[str, torch.Tensor]:
    """A tensor with bytes that are found in any file, among others."""
    hurt = torch.frombuffer(bytearray(MARK), dtype=torch.float32)
    return {
        "a": torch.ones(50),
        "hurt": torch.cat([torch.zeros(20_000), hurt, torch.zeros(20_000)]),
        "z": torch.ones(3),
    }


def deflated(source: Checkpoint, path: Path, options: WriteOptions) -> None:
    torch_write.write(source, path, options)
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records:
            kind = zipfile.ZIP_DEFLATED if "/data/" in name else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(name), data, kind, 0)


SOURCES = {
    "pt": torch_write.write,
    "pt-deflated": deflated,
    "safetensors": safetensors_write.write,
    "safetensors-sharded": sharded_write.write,
    "npz": npz_write.write,
    "dcp": dcp_write.write,
}
TARGETS = {
    "pt": torch_write.write,
    "safetensors": safetensors_write.write,
    "safetensors-sharded": sharded_write.write,
    "npz": npz_write.write,
    "dcp": dcp_write.write,
}
CHANGES: dict[str, Callable[[TensorEntry], TensorEntry]] = {
    "whole": lambda entry: entry,
    "part": lambda entry: replace(entry, shape=(30_000,)),
    "strided": lambda entry: replace(entry, shape=(20_000,), strides=(2,)),
    "cast": lambda entry: cast(entry, BY_NAME["float16"]),
}


# safetensors has no CRC, and a digest is of the whole tensor as it is
WAYS = [
    (source, change)
    for source in SOURCES
    for change in CHANGES
    if change == "whole" or not source.startswith("safetensors")
]


def flip_one_bit(path: Path) -> None:
    """Damage the marked tensor, in whichever file of `path` it lies."""
    files = [file for file in path.iterdir() if MARK in file.read_bytes()] if path.is_dir() else [path]
    data = bytearray(files[0].read_bytes())
    data[data.index(MARK) + 5] ^= 4
    files[0].write_bytes(data)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("source", "change"), some(WAYS))
def test_one_flipped_bit_stops_the_conversion(tmp_path: Path, source: str, target: str, change: str) -> None:
    path = tmp_path / "source"
    SOURCES[source](checkpoint_of(marked_state()), path, OPTIONS)
    flip_one_bit(path)
    (tmp_path / "out").mkdir()
    with open_checkpoint(path) as found:
        root = {
            name: CHANGES[change](entry) if name == "hurt" else entry for name, entry in found.tensors.items()
        }
        record = found.record if change == "whole" else None
        edited = Checkpoint(found.format, found.path, root, record=record)
        with pytest.raises(CorruptError, match="tensor 'hurt' is damaged"):
            TARGETS[target](edited, tmp_path / "out" / "m", OPTIONS)
    assert list((tmp_path / "out").iterdir()) == []


def test_chunks_of_a_tensor_are_checked_as_it_passes() -> None:
    """Two chunks end to end take one reading; tiles are read once more, each alone."""
    halves = [bytes(range(100)), bytes(range(100, 200))]
    storages = [MemoryStorage(memoryview(half), None, crc32(half)) for half in halves]
    dtype = BY_NAME["uint8"]
    rows = [TensorEntry("t", dtype, (2, 50), (50, 1), storage, 0) for storage in storages]
    boxes = [Box((0, 0), (2, 50)), Box((2, 0), (2, 50))]
    whole = assemble("t", (4, 50), list(zip(boxes, rows, strict=True)))
    (item,) = with_source_checks([Move("t", whole.storage, 0, 200, 0)])
    assert item.expected_crc32 == crc32(b"".join(halves))
    side_by_side = [Box((0, 0), (2, 50)), Box((0, 50), (2, 50))]
    tiled = assemble("t", (2, 100), list(zip(side_by_side, rows, strict=True)))
    item, *checks = with_source_checks([Move("t", tiled.storage, 0, 200, 0)])
    assert item.expected_crc32 is None
    assert [(check.source, check.expected_crc32, check.target_offset) for check in checks] == [
        (storage, storage.crc32, None) for storage in storages
    ]


def test_identical_views_are_one_and_overlapping_ones_are_told() -> None:
    base = torch.arange(10.0)
    source = checkpoint_of({"a": base, "b": base[:], "c": base[8:], "d": base.view(2, 5), "e": base[:0]})
    found = distinct(source.tensors)
    assert list(found.kept) == ["a", "c", "d", "e"]
    assert found.aliases == {"b": "a"}
    assert overlaps(found.kept.values()) == [("a", "d"), ("a", "c")]
    assert source.tensors["c"].byte_range == (32, 40)
    assert checkpoint_of({"x": base[1::3]}).tensors["x"].byte_range == (4, 32)


def test_tied_names_with_two_digests_are_a_contradiction(tmp_path: Path) -> None:
    weight = torch.ones(3)
    record = Record(digests=Digests("xxh3_128", {"a": "0" * 32, "b": "1" * 32}))
    with pytest.raises(CorruptError, match="'b' is damaged"):
        safetensors_write.write(
            checkpoint_of({"a": weight, "b": weight}, record=record), tmp_path / "m", OPTIONS
        )


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "npz"])
def test_a_record_that_is_not_read_back_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr("ptsave.formats.stored.LONGEST_BYTES", 1000)
    torch.save({f"layers.{i}": torch.ones(1) for i in range(30)}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as source:
        with pytest.raises(LossyError, match="cap record_bytes = 1000"):
            TARGETS[target](source, tmp_path / "m", OPTIONS)
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
        TARGETS[target](source, tmp_path / "m", replace(OPTIONS, record=False))


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_more_than_its_elements_is_refused(tmp_path: Path, target: str) -> None:
    source = checkpoint_of({"w": torch.ones(3)})
    source = Checkpoint("x", Path("x"), {"w": replace(source.tensors["w"], kind="quantized")})
    with pytest.raises(LossyError, match="'w': it is quantized"):
        TARGETS[target](source, tmp_path / "m", OPTIONS)

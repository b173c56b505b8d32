"""DCP folders of many ranks in a bucket: what they give on a disk, for few requests."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

import ptsave
from ptsave.core.address import Address
from ptsave.core.values.gather import contiguous
from ptsave.errors import CorruptError, MissingFileError, UnreadableError
from ptsave.formats import open_checkpoint
from ptsave.formats.dcp.chunks import Box, window
from ptsave.formats.dcp.remote import FRAME_BYTES
from ptsave.models.weights.tensors import read_tensors
from ptsave.storage.remote.pieces import HELD_BYTES, LEAST_BYTES, PIECE_BYTES
from ptsave.storage.scan import tensor_digest
from ptsave.verbs.inspect import Inspection, inspect_path
from tests.servers.stores import S3
from tests.storage.upload.objects import address
from tests.support import some


def write_ranks(folder: Path, num_ranks: int, num_tensors: int, rows: int, columns: int) -> Path:
    """What `num_ranks` ranks write that have `rows` rows each of every tensor, and a number."""
    folder.mkdir()
    shape = torch.Size((num_ranks * rows, columns))
    items: dict[str, Any] = {"epoch": BytesStorageMetadata()}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for rank in range(num_ranks):
        with (folder / f"__{rank}_0.distcp").open("wb") as file:
            if not rank:
                torch.save(7, file)
                places[MetadataIndex("epoch")] = _StorageInfo(Path(file.name).name, 0, file.tell())
            for number in range(num_tensors):
                begin, name = file.tell(), f"layers.{number}.weight"
                torch.save(torch.full((rows, columns), number + rank / 16), file)
                about = _StorageInfo(Path(file.name).name, begin, file.tell() - begin)
                places[MetadataIndex(name, torch.Size((rank * rows, 0)))] = about
    for number in range(num_tensors):
        chunks = [
            ChunkStorageMetadata(torch.Size((rank * rows, 0)), torch.Size((rows, columns)))
            for rank in range(num_ranks)
        ]
        properties = TensorProperties.create_from_tensor(torch.empty(0))
        items[f"layers.{number}.weight"] = TensorStorageMetadata(properties, shape, chunks)
    metadata = Metadata(items, {name: (name,) for name in items}, places)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


def upload(store: S3, folder: Path) -> Address:
    """Put the files of `folder` into the bucket, and forget the requests so far."""
    for path in folder.iterdir():
        store.put(f"run/{path.name}", path.read_bytes())
    store.server.reset()
    return address(f"{store.address}/run")


@pytest.fixture
def bucket(one_s3: S3, found_by_ptsave: None) -> S3:
    """A bucket that ptsave finds."""
    return one_s3


SMALL = (16, 12, 2, 64)
"""Ranks, tensors, rows of each rank, columns: of 512 bytes a chunk."""
MIDDLE = (8, 12, 32, 2048)
"""Of 256 KiB a chunk, 24 MiB in all."""
LARGE = (2, 2, 640, 4096)
"""Of 10 MiB a chunk, 40 MiB in all."""


def num_bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("layout", some([SMALL, MIDDLE]))
def test_the_table_of_contents_is_enough_to_list(
    bucket: S3, tmp_path: Path, layout: tuple[int, int, int, int]
) -> None:
    """And the file that has what is not a tensor."""
    local = write_ranks(tmp_path / "dcp", *layout)
    where = upload(bucket, local)
    there, here = inspect_path(where), inspect_path(local)
    assert isinstance(there, Inspection)
    assert isinstance(here, Inspection)
    assert bucket.server.count(r"GET .*/\.metadata") == 1
    assert bucket.server.count(r"GET .*distcp") == 1
    assert len(bucket.server.log) <= 5
    about = [(row.entry.name, row.entry.dtype, row.entry.shape, row.alias_of) for row in there.rows]
    assert about == [(row.entry.name, row.entry.dtype, row.entry.shape, row.alias_of) for row in here.rows]
    assert (there.num_bytes, there.data, there.left_out) == (here.num_bytes, {"epoch": 7}, ())
    assert any("only the table of contents" in note for note in there.notes)


@pytest.mark.parametrize("layout", some([SMALL, MIDDLE, LARGE]))
def test_reading_takes_few_requests_and_each_byte_once(
    bucket: S3, tmp_path: Path, layout: tuple[int, int, int, int]
) -> None:
    local = write_ranks(tmp_path / "dcp", *layout)
    where = upload(bucket, local)
    num_ranks = layout[0]
    ptsave.convert(str(where), tmp_path / "there.pt")
    piece_bytes = max(min(PIECE_BYTES, HELD_BYTES // num_ranks // 2), LEAST_BYTES)
    num_pieces = num_bytes_of(local) / piece_bytes
    assert len(bucket.server.log) <= 5 + 3 * num_ranks + 2 * num_pieces
    assert bucket.server.num_bytes_out <= 1.1 * num_bytes_of(local) + 8 * FRAME_BYTES * num_ranks
    ptsave.convert(local, tmp_path / "here.pt")
    assert (tmp_path / "there.pt").read_bytes() == (tmp_path / "here.pt").read_bytes()
    bucket.server.reset()
    verdict = ptsave.verify(str(where), checks=["bytes"])
    assert verdict.is_yes
    assert len(bucket.server.log) <= 5 + 5 * num_ranks + 2 * num_pieces
    assert bucket.server.num_bytes_out <= 1.1 * num_bytes_of(local) + 8 * FRAME_BYTES * num_ranks


def read(where: Address) -> None:
    """Read every tensor, as a load does."""
    with open_checkpoint(where) as checkpoint:
        for _ in read_tensors(checkpoint.tensors):
            pass


@pytest.mark.parametrize("where_in", some(["data", "head", "tail"]))
@pytest.mark.parametrize(("layout", "rank", "number"), [(SMALL, 3, 0), (SMALL, 3, 7), (LARGE, 1, 1)])
def test_damage_in_an_item_is_found_by_whoever_reads_it(
    bucket: S3, tmp_path: Path, layout: tuple[int, int, int, int], rank: int, number: int, where_in: str
) -> None:
    """In the first item of its kind, in one that is looked into later, and in one whose end is read last."""
    local = write_ranks(tmp_path / "dcp", *layout)
    path, metadata = local / f"__{rank}_0.distcp", pickle.loads((local / ".metadata").read_bytes())
    (place,) = (
        about
        for index, about in metadata.storage_data.items()
        if index.fqn == f"layers.{number}.weight" and about.relative_path == path.name
    )
    data = bytearray(path.read_bytes())
    data[place.offset + {"data": place.length // 2, "head": 40, "tail": place.length - 3}[where_in]] ^= 4
    path.write_bytes(data)
    where = upload(bucket, local)
    with pytest.raises(CorruptError):
        ptsave.convert(str(where), tmp_path / "a.pt")
    if (number, where_in) != (0, "data"):  # checksums of parts say nothing of a tensor that is read whole
        with pytest.raises(CorruptError):
            read(where)
    assert not (tmp_path / "a.pt").exists()


def test_part_of_a_tensor_takes_its_files_alone(bucket: S3, tmp_path: Path) -> None:
    where = upload(bucket, write_ranks(tmp_path / "dcp", *MIDDLE))
    with open_checkpoint(where) as checkpoint:
        bucket.server.reset()
        entry = checkpoint.tensors["layers.5.weight"]
        rows = window(entry, Box((33, 0), (10, 2048)))  # in the second rank's
        buffer = bytearray(rows.num_bytes)
        source, begin = contiguous(rows)
        source.expect(begin, rows.num_bytes)
        source.read_into(begin, memoryview(buffer))
    assert bytes(buffer) == torch.full((10, 2048), 5 + 1 / 16).numpy().tobytes()
    assert bucket.server.count(r"GET .*__1_0") == len(bucket.server.log) <= 3
    assert bucket.server.num_bytes_out < 4 * rows.num_bytes


def opened(bucket: S3) -> set[str]:
    """The data files that were asked for since the last time, by rank."""
    found = {match[1] for one in bucket.server.log if (match := re.search(r"__(\d+)_0\.distcp", one.target))}
    bucket.server.reset()
    return found


@pytest.mark.parametrize("layout", [MIDDLE, LARGE])
def test_who_reads_some_of_it_opens_the_files_of_that(
    bucket: S3, tmp_path: Path, layout: tuple[int, int, int, int]
) -> None:
    """As a rank does: beside the first file, which has the first chunk of each shape."""
    ranks, _, rows, columns = layout
    local = write_ranks(tmp_path / "dcp", *layout)
    where = upload(bucket, local)
    with open_checkpoint(where, in_part=True) as checkpoint:
        assert opened(bucket) == {"0"}
        entry = checkpoint.tensors["layers.1.weight"]
        ((_, part),) = read_tensors({"a": window(entry, Box(((ranks - 1) * rows, 0), (rows, columns)))})
        assert torch.equal(part, torch.full((rows, columns), 1 + (ranks - 1) / 16))
        assert opened(bucket) == {str(ranks - 1)}
        for number, check in enumerate(checkpoint.parts_of_checks[1:ranks], start=1):
            assert not any(finding.level == "fail" for finding in check())
            assert opened(bucket) == {str(number)}
        assert not checkpoint.accounts.left_out
    with (local / f"__{ranks - 1}_0.distcp").open("ab") as file:
        file.write(b"more")
    with open_checkpoint(upload(bucket, local), in_part=True) as checkpoint:
        assert len(checkpoint.accounts.left_out) == 1
        assert opened(bucket) == {"0", str(ranks - 1)}


@pytest.mark.parametrize("rows", [2, 8192])
def test_an_item_that_is_written_in_another_way(bucket: S3, tmp_path: Path, rows: int) -> None:
    """Of the same length, dtype and shape: a parameter is none of its neighbours' form."""
    local = write_ranks(tmp_path / "dcp", 1, 3, rows, 64)
    metadata = pickle.loads((local / ".metadata").read_bytes())
    data = bytearray((local / "__0_0.distcp").read_bytes())
    place = next(about for index, about in metadata.storage_data.items() if index.fqn == "layers.2.weight")
    made = io.BytesIO()
    torch.save(torch.full((rows, 64), 2.0, requires_grad=True), made)
    assert len(made.getvalue()) == place.length
    data[place.offset : place.offset + place.length] = made.getvalue()
    (local / "__0_0.distcp").write_bytes(data)
    where = upload(bucket, local)
    with open_checkpoint(where) as there, open_checkpoint(local) as here:
        digests = {name: tensor_digest(entry) for name, entry in here.tensors.items()}
        assert digests == {name: tensor_digest(entry) for name, entry in there.tensors.items()}


@pytest.mark.parametrize("how", [{}, {"at_a_glance": True}, {"in_part": True}])
def test_files_that_are_missing_or_short(bucket: S3, tmp_path: Path, how: dict[str, bool]) -> None:
    local = write_ranks(tmp_path / "dcp", *SMALL)
    short = local / "__4_0.distcp"
    short.write_bytes(short.read_bytes()[:-600])
    where = upload(bucket, local)
    with pytest.raises(CorruptError, match="truncated"):
        open_checkpoint(where, **how)
    bucket.client.delete_object(Bucket=bucket.bucket, Key="run/__4_0.distcp")
    with pytest.raises(MissingFileError, match="though the metadata places 'layers"):
        open_checkpoint(where, **how)


def test_what_was_only_glanced_at_has_no_values(bucket: S3, tmp_path: Path) -> None:
    where = upload(bucket, write_ranks(tmp_path / "dcp", *SMALL))
    with (
        open_checkpoint(where, at_a_glance=True) as checkpoint,
        pytest.raises(UnreadableError, match="only the table of contents was read"),
    ):
        tensor_digest(checkpoint.tensors["layers.5.weight"])


def test_what_no_item_has_is_named(bucket: S3, tmp_path: Path) -> None:
    local = write_ranks(tmp_path / "dcp", *SMALL)
    with (local / "__2_0.distcp").open("ab") as file:
        file.write(b"more")
    (local / "__77_0.distcp").write_bytes(b"and more")
    where = upload(bucket, local)
    with open_checkpoint(where) as there, open_checkpoint(local) as here:
        assert len(there.accounts.left_out) == 2
        assert there.accounts.left_out == here.accounts.left_out

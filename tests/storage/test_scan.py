"""The one loop over blocks: what it reads, sums up, reports, and when it stops."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import pytest
import torch
import xxhash

from ptsave.core.dtypes import BY_NAME
from ptsave.core.nodes import TensorEntry
from ptsave.core.storage import BLOCK_BYTES, MemoryStorage, Storage
from ptsave.core.values.digest import hasher, prefix
from ptsave.errors import CorruptError
from ptsave.storage.local.file import LocalFile
from ptsave.storage.scan import Check, Reading, Sums, crc32_of, read_all, scan, tensor_digest
from ptsave.storage.windows import FileStorage
from ptsave.storage.workers import CancelledError
from tests.formats.write_cases import bits, checkpoint_of

DATA = bytes(i * i % 251 for i in range(2 * BLOCK_BYTES + 100))


class Unreadable(Storage):
    """A storage that is damaged from its second block on."""

    num_bytes = len(DATA)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        if offset_bytes:
            raise CorruptError("damaged", "t")
        buffer[:] = DATA[: len(buffer)]


def entry(tensor: torch.Tensor) -> TensorEntry:
    return checkpoint_of({"t": tensor}).tensors["t"]


@pytest.mark.parametrize("begin", [0, 7])
def test_memory_and_files_are_read_alike(tmp_path: Path, begin: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(DATA)
    wanted = DATA[begin:-3]
    with LocalFile(path) as file:
        for source in (MemoryStorage(memoryview(DATA)), FileStorage(file, 0, len(DATA))):
            sums, done = Sums([hasher("sha256", b"x")]), []
            blocks = [bytes(block) for block in scan(source, begin, len(wanted), sums, progress=done.append)]
            assert b"".join(blocks) == wanted
            assert done == [len(block) for block in blocks] == [BLOCK_BYTES, BLOCK_BYTES, 97 - begin]
            assert (sums.crc32, sums.digests) == (crc32(wanted), (hashlib.sha256(b"x" + wanted).hexdigest(),))


def test_blocks_of_memory_are_not_copied_unless_they_are_to_go_elsewhere() -> None:
    source = MemoryStorage(memoryview(bytearray(DATA)))
    (first, *_) = scan(source, 0, len(DATA))
    assert first.obj is source.buffer.obj
    target = bytearray(len(DATA))
    assert all(block.obj is target for block in scan(source, 0, len(DATA), into=memoryview(target)))
    assert target == DATA


def test_sums_leave_out_what_is_not_wanted_and_join_what_was_summed_apart() -> None:
    half, rest = memoryview(DATA)[:1000], memoryview(DATA)[1000:]
    sums = Sums([hasher("sha256")], has_crc32=False)
    sums.update(half)
    assert sums.crc32 == 0
    whole = Sums([hasher("sha256")])
    for part in (half, rest):
        apart = Sums()
        apart.update(part)
        whole.join(apart, part)
    assert (whole.crc32, whole.digests) == (crc32(DATA), (hashlib.sha256(DATA).hexdigest(),))


def test_a_stop_ends_it_before_the_next_block() -> None:
    passed = []
    blocks = scan(MemoryStorage(memoryview(DATA)), 0, len(DATA), stopped=lambda: bool(passed))
    passed.append(next(blocks))
    with pytest.raises(CancelledError):
        next(blocks)


def test_what_cannot_be_read_is_told_of_one_reading_and_the_others_go_on() -> None:
    whole = MemoryStorage(memoryview(DATA))
    hurt, fine = Reading(Unreadable(), 0, len(DATA)), Reading(whole, 0, len(DATA), ("sha256",), b"x")
    read_all([hurt, fine])
    assert hurt.error is not None
    assert hurt.error.what == "damaged"
    assert (fine.crc32, fine.digests) == (crc32(DATA), {"sha256": hashlib.sha256(b"x" + DATA).hexdigest()})
    assert crc32_of(whole) == crc32(DATA)


def test_small_neighbours_in_a_file_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(DATA)
    reads: list[int] = []

    def read_into(at: int, to: memoryview) -> None:
        reads.append(at)
        LocalFile.read_into(file, at, to)

    with LocalFile(tmp_path / "a") as file:
        monkeypatch.setattr(file, "read_into", read_into)
        runs = [(begin, 100) for begin in range(0, 10_000, 200)] + [
            (20_000, 0),
            (20_000, 300),
            (40_000, 7),
            (50, 9),
        ]
        looked: list[bytes] = []
        readings = [Reading(FileStorage(file, *run), 0, run[1], ("sha256",), b"x") for run in runs]
        for one in readings:
            one.look = lambda block: looked.append(bytes(block))
        passed: list[int] = []
        read_all(readings, passed.append)
    assert sorted(reads) == [0, 50, 20_000, 40_000]
    wanted = [DATA[begin : begin + size] for begin, size in runs]
    assert sorted(looked) == sorted(filter(None, wanted))
    assert sum(passed) == sum(map(len, wanted))
    for one, data in zip(readings, wanted, strict=True):
        assert (one.crc32, one.error) == (crc32(data), None)
        assert one.digests == {"sha256": hashlib.sha256(b"x" + data).hexdigest()}


def test_where_a_remote_storage_lies_is_not_asked_before_it_is_read() -> None:
    class Far(Unreadable):
        file = SimpleNamespace(is_remote=True)

        @property
        def offset_bytes(self) -> int:
            raise CorruptError("its header is damaged", "t")

        def expect(self, offset_bytes: int, num_bytes: int) -> None:
            pass

        def remote_place(self) -> tuple[int, int]:
            return 0, 0

    far, fine = Reading(Far(), 4, 8), Reading(MemoryStorage(memoryview(DATA)), 0, 8)
    read_all([far, fine])
    assert far.error is not None
    assert fine.crc32 == crc32(DATA[:8])


def test_of_neighbours_the_one_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    with LocalFile(tmp_path / "a") as file:
        end = len(DATA)
        fine, hurt = (Reading(FileStorage(file, begin, 20), 0, 20) for begin in (end - 40, end - 10))
        read_all([fine, hurt])
    assert (fine.error, fine.crc32) == (None, crc32(DATA[-40:-20]))
    assert isinstance(hurt.error, CorruptError)


def test_a_tensor_is_checked_by_its_crc_else_by_its_digest() -> None:
    data = bytes(range(8))
    good, bad = crc32(data), crc32(data) ^ 1
    digest = tensor_digest(_floats(data, None))
    for crc, recorded, is_checked, is_damaged in (
        (good, "wrong", True, False),
        (bad, digest, True, True),
        (bad, "wrong", False, False),
        (None, digest, True, False),
        (None, "wrong", True, True),
        (None, None, True, False),
    ):
        check = Check(_floats(data, crc), recorded, "xxh3_128", is_checked)
        check.sums.update(memoryview(data))
        if is_damaged:
            with pytest.raises(CorruptError, match="tensor 't' is damaged"):
                check.finish()
        else:
            check.finish()


def _floats(data: bytes, crc: int | None) -> TensorEntry:
    storage = MemoryStorage(memoryview(data), None, crc)
    return TensorEntry("t", BY_NAME["float32"], (2,), (1,), storage, 0)


def test_the_definition_of_a_digest() -> None:
    tensor = torch.arange(6, dtype=torch.int16).reshape(2, 3)
    message = b"int16[2,3]\n" + b"".join(bytes([i, 0]) for i in range(6))
    assert tensor_digest(entry(tensor), "sha256") == hashlib.sha256(message).hexdigest()
    assert tensor_digest(entry(tensor)) == xxhash.xxh3_128_hexdigest(message)


def test_bytes_layout_and_not_storage_count() -> None:
    matrix = torch.arange(200_000.0).reshape(500, 400)
    assert tensor_digest(entry(matrix.t())) == tensor_digest(entry(matrix.t().contiguous()))
    assert tensor_digest(entry(matrix[3:5])) == tensor_digest(entry(matrix[3:5].clone()))
    flat = matrix.reshape(-1)
    assert len({tensor_digest(entry(t)) for t in (matrix, flat, matrix.view(torch.int32))}) == 3
    digest = hasher("xxh3_128", prefix(BY_NAME["float32"], (500, 400)))
    digest.update(bits(matrix))
    assert digest.hexdigest() == tensor_digest(entry(matrix))

"""Moving bytes: batches, parts and blocks give the same file; damage stops everything."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from zlib import crc32

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptsave.core.storage import MemoryStorage, Storage
from ptsave.errors import CorruptError, MissingFileError, UnreadableError, WriteError
from ptsave.storage import batch, scan, system
from ptsave.storage import move as mover
from ptsave.storage.atomic import replacing_file
from ptsave.storage.local.file import LocalFile
from ptsave.storage.move import Move, WrittenSpan, check_back, move
from ptsave.storage.system import disk
from ptsave.storage.windows import FileStorage
from ptsave.storage.workers import run_tasks
from tests.support import examples

WANTED = {"xxh3_128": None}


def random_bytes(count: int, seed: int = 0) -> bytes:
    return bytes(xxhash.xxh3_64_intdigest(i.to_bytes(8, "little"), seed) % 251 for i in range(count))


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "BLOCK_BYTES", 64)
    monkeypatch.setattr(mover, "BLOCK_BYTES", 64)
    monkeypatch.setattr(batch, "BLOCK_BYTES", 64)
    monkeypatch.setattr(mover, "SMALL_BYTES", 16)
    monkeypatch.setattr(batch, "GAP_BYTES", 4)
    monkeypatch.setattr(mover, "SPLIT_BYTES", 100)
    monkeypatch.setattr(mover, "WRITEBACK_BYTES", 128)


sizes = st.one_of(st.integers(0, 15), st.integers(16, 150), st.integers(150, 1500))


@given(
    runs=st.lists(st.tuples(sizes, st.integers(0, 6), st.integers(0, 3)), max_size=12),
    in_file=st.booleans(),
    framed=st.booleans(),
)
@settings(max_examples=examples(80), suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.usefixtures("small_units")
def test_every_byte_arrives(
    tmp_path: Path, runs: list[tuple[int, int, int]], in_file: bool, framed: bool
) -> None:
    """Runs of any size, with gaps in the source and frames in the target."""
    source = random_bytes(sum(size + gap for size, gap, _ in runs) + 1)
    (tmp_path / "source").write_bytes(source)
    progress: list[int] = []
    with LocalFile(tmp_path / "source") as file:
        items, expected, position = [], bytearray(), 0
        for i, (size, gap, frame) in enumerate(runs):
            data = source[position : position + size]
            storage: Storage = FileStorage(file, position, size, crc32(data))
            if not in_file:
                storage = MemoryStorage(memoryview(data))
            before = b"H" * frame if framed else b""
            after = b"T" * frame if framed else b""
            item = Move(f"t{i}", storage, 0, size, len(expected) + len(before), prefix=b"p")
            item.expected_crc32 = crc32(data)
            item.expected_digests = WANTED
            if framed:
                item.header, item.header_bytes = (lambda crc, b=before: b), len(before)
                item.trailer, item.trailer_bytes = (lambda crc, a=after: a), len(after)
            items.append(item)
            expected += before + data + after
            position += size + gap
        with replacing_file(tmp_path / "target", len(expected), overwrite=True, sync=False) as output:
            spans = move(items, output, "source", progress.append)
            check_back(spans, output, progress.append)
        assert (tmp_path / "target").read_bytes() == expected
        for item, (size, _, _) in zip(items, runs, strict=True):
            data = bytes(expected[item.target_offset : (item.target_offset or 0) + size])
            assert item.crc32 == crc32(data)
            assert item.digest("xxh3_128") == xxhash.xxh3_128_hexdigest(b"p" + data)
        moved = sum(size for size, _, _ in runs)
        assert sum(progress) - moved == sum(span.num_bytes for span in spans)


@pytest.mark.parametrize("size", [10, 500, 300_000, 20 * 1024 * 1024])
@pytest.mark.parametrize("kind", ["crc32", "digest"])
def test_damage_is_named_and_nothing_is_replaced(tmp_path: Path, size: int, kind: str) -> None:
    (tmp_path / "m").write_bytes(b"old")
    items = [Move(f"fine.{i}", MemoryStorage(memoryview(bytes(20))), 0, 20, 20 * i) for i in range(5)]
    hurt = Move("hurt", MemoryStorage(memoryview(bytes(size))), 0, size, 100)
    if kind == "crc32":
        hurt.expected_crc32 = 1
    else:
        hurt.expected_digests = {"xxh3_128": "0" * 32}
    message = f"'hurt' is damaged.*{kind.replace('crc', 'CRC-')}"
    with (
        pytest.raises(CorruptError, match=message) as caught,
        replacing_file(tmp_path / "m", 100 + size, overwrite=True) as output,
    ):
        move([*items, hurt], output, "source.pt")
    assert caught.value.where == "source.pt"
    assert (tmp_path / "m").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m"]


def test_a_source_that_shrinks_has_changed(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(1_000_000))
    with LocalFile(tmp_path / "source") as file:
        os.truncate(tmp_path / "source", 500_000)
        item = Move("t", FileStorage(file, 0, 1_000_000), 0, 1_000_000, 0)
        with (
            pytest.raises(UnreadableError, match="was changed while it was read"),
            replacing_file(tmp_path / "m", 1_000_000) as output,
        ):
            move([item], output, "source")
    assert os.listdir(tmp_path) == ["source"]


def test_bytes_that_did_not_reach_the_file_are_found(tmp_path: Path) -> None:
    data = memoryview(random_bytes(300_000))
    items = [Move("a", MemoryStorage(data), 0, 1000, 0), Move("b", MemoryStorage(data), 0, 300_000, 1000)]
    with replacing_file(tmp_path / "m", 301_000) as output:
        spans = move(items, output, "source")
        check_back(spans, output)
        output.write_at(200_000, b"\0\0\0\0")
        with pytest.raises(WriteError, match="'b' reads back differently"):
            check_back(spans, output)


def test_a_file_cut_short_is_found(tmp_path: Path) -> None:
    with replacing_file(tmp_path / "m", 10) as output:
        output.write_at(0, b"12345")
        with pytest.raises(WriteError, match="shorter than what was written"):
            check_back([WrittenSpan("t", 0, 10, 0)], output)


def test_threads_stop_with_the_first_error() -> None:
    started = threading.Event()
    ended = []

    def slow(buffer: memoryview, stopped: mover.Stopped) -> None:
        started.set()
        while not stopped():
            pass
        ended.append(True)

    def fails(buffer: memoryview, stopped: mover.Stopped) -> None:
        started.wait()
        raise MissingFileError("gone")

    others = set(threading.enumerate())  # those that wait for requests to other machines, of an earlier test
    with pytest.raises(MissingFileError):
        run_tasks([(2, slow), (1, fails), (0, slow)])
    assert ended == [True]
    assert set(threading.enumerate()) <= others


def test_where_blocks_cannot_be_shared_they_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "HAS_CLONE", False)
    data = random_bytes(200_000)
    (tmp_path / "source").write_bytes(bytes(4096) + data)
    with LocalFile(tmp_path / "source") as file:
        item = Move("t", FileStorage(file, 4096, len(data)), 0, len(data), 4096)
        with replacing_file(tmp_path / "m", 4096 + len(data)) as output:
            move([item], output, "source")
            assert not output.can_share
    assert item.shared_bytes == 0
    assert (tmp_path / "m").read_bytes()[4096:] == data


def test_what_is_shared_is_read_and_checked_and_the_rest_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system without reflinks, a clone that only pretends shows which bytes are left to it."""
    calls = []

    def pretend(source_fd: int, source_offset: int, num_bytes: int, fd: int, offset: int) -> bool:
        calls.append((source_offset, num_bytes, offset))
        return True

    monkeypatch.setattr(disk, "clone_range", pretend)
    data = random_bytes(300_000)
    (tmp_path / "source").write_bytes(bytes(4096) + data)
    with LocalFile(tmp_path / "source") as file:
        item = Move("t", FileStorage(file, 4096, len(data)), 0, len(data), 8192)
        unaligned = Move("u", FileStorage(file, 4097, 100_000), 0, 100_000, 400_000)
        with replacing_file(tmp_path / "m", 500_000) as output:
            move([item, unaligned], output, "source")
    assert calls == [(4096, 299_008, 8192)]
    assert item.crc32 == crc32(data)
    written = (tmp_path / "m").read_bytes()
    assert written[8192 + 262_144 :][: 300_000 - 262_144] == data[262_144:]
    assert written[400_000:] == data[1:100_001]

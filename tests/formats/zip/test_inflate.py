"""What reading a deflated record costs, counted in bytes that are inflated."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from ptsave.errors import LimitError
from ptsave.formats.zip.inflate import InflatedStorage
from ptsave.formats.zip.reader import read_directory
from ptsave.storage.local.file import LocalFile

SIZE = 8_000_000


@pytest.fixture
def record(tmp_path: Path) -> tuple[InflatedStorage, bytes]:
    data = os.urandom(1000) * (SIZE // 1000)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", data)
    storage = read_directory(LocalFile(path)).storage("a")
    assert isinstance(storage, InflatedStorage)
    return storage, data


def read(storage: InflatedStorage, offset: int, count: int) -> bytes:
    buffer = bytearray(count)
    storage.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def test_no_order_of_reading_inflates_it_more_than_thrice(record: tuple[InflatedStorage, bytes]) -> None:
    storage, data = record
    for offset in range(SIZE - 4000, -1, -4000):
        assert read(storage, offset, 4000) == data[offset : offset + 4000]
    assert storage.inflated_bytes < 3.5 * SIZE
    before = storage.inflated_bytes
    assert read(storage, 0, SIZE) == data
    assert storage.inflated_bytes == before


def test_one_pass_keeps_nothing(record: tuple[InflatedStorage, bytes]) -> None:
    storage, data = record
    assert b"".join(read(storage, offset, 4000) for offset in range(0, SIZE, 4000)) == data
    assert storage.inflated_bytes == SIZE
    assert storage._spool is None


def test_many_records_grow_together(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in range(30):
            archive.writestr(str(name), bytes(10_000_000))
    with LocalFile(path) as file, pytest.raises(LimitError, match="inflate_ratio = 20"):
        read_directory(file)

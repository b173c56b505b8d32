"""Storages that lie in files, and parts of others."""

from __future__ import annotations

from dataclasses import dataclass

from ptsave.core.storage import Storage
from ptsave.storage.files import InputFile


@dataclass(slots=True, eq=False)  # not frozen: that would take four times as long to make
class FileStorage:
    """Bytes that lie in a file as they are: readable at random, and movable by the kernel."""

    file: InputFile
    offset_bytes: int
    num_bytes: int
    crc32: int | None = None
    inner: Storage | None = None
    """The whole that this is a part of, where only the whole has a known CRC."""

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        if offset_bytes < 0 or offset_bytes + len(buffer) > self.num_bytes:
            raise self.file.too_short(self.offset_bytes + offset_bytes, len(buffer))
        self.file.read_into(self.offset_bytes + offset_bytes, buffer)


@dataclass(frozen=True, slots=True, eq=False)
class WindowStorage:
    """Some of the bytes of another storage, of which no part alone has a known CRC."""

    inner: Storage
    offset_bytes: int
    num_bytes: int
    crc32: int | None = None

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        self.inner.read_into(self.offset_bytes + offset_bytes, buffer)


def window(storage: Storage, offset_bytes: int, num_bytes: int) -> Storage:
    """`num_bytes` bytes of `storage` from `offset_bytes`; they lie in it."""
    if isinstance(storage, FileStorage):
        whole = storage if storage.crc32 is not None else storage.inner
        return FileStorage(storage.file, storage.offset_bytes + offset_bytes, num_bytes, inner=whole)
    return WindowStorage(storage, offset_bytes, num_bytes)

"""Storages that lie in files."""

from __future__ import annotations

from ptsave.core.storage import Storage
from ptsave.storage.files import InputFile


class FileStorage(Storage):
    """Bytes that lie in a file as they are: readable at random, and movable by the kernel."""

    __slots__ = ("crc32", "file", "inner", "num_bytes", "offset_bytes")
    file: InputFile

    def __init__(
        self,
        file: InputFile,
        offset_bytes: int,
        num_bytes: int,
        crc32: int | None = None,
        inner: Storage | None = None,
    ) -> None:
        """`inner`: the whole that this is a part of, where only the whole has a known CRC."""
        self.file, self.offset_bytes, self.num_bytes = file, offset_bytes, num_bytes
        self.crc32, self.inner = crc32, inner

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        if offset_bytes < 0 or offset_bytes + len(buffer) > self.num_bytes:
            raise self.file.too_short(self.offset_bytes + offset_bytes, len(buffer))
        self.file.read_into(self.offset_bytes + offset_bytes, buffer)

    def window(self, offset_bytes: int, num_bytes: int) -> Storage:
        whole = self if self.crc32 is not None else self.inner
        return FileStorage(self.file, self.offset_bytes + offset_bytes, num_bytes, inner=whole)

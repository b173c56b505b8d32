"""Storages made of parts of others."""

from __future__ import annotations

from dataclasses import dataclass

from ptsave.core.storage import FileStorage, Storage


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

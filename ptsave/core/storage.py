"""Byte windows: where a storage's bytes lie, and how to get at any part of them.

A storage is a run of little-endian bytes that one or more tensors view. Two tensors with the same
storage object are tied or views of each other; identity, not content, says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

BLOCK_BYTES = 256 * 1024
"""The unit of reading and writing. Measured: faster than 8 MiB blocks, which fall out of the cache."""


class Storage(Protocol):
    """A run of bytes that can be read in parts, from any thread."""

    @property
    def num_bytes(self) -> int: ...

    @property
    def crc32(self) -> int | None:
        """What the container says that the CRC-32 of all the bytes is; None where it says nothing."""

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill `buffer` with the storage's bytes from `offset_bytes`."""


@dataclass(frozen=True, slots=True, eq=False)
class MemoryStorage:
    """Bytes that are already in memory: a live model's, or a value inside a pickle."""

    buffer: memoryview
    owner: object = None
    """What keeps the memory alive."""
    crc32: int | None = None

    @property
    def num_bytes(self) -> int:
        return len(self.buffer)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        buffer[:] = self.buffer[offset_bytes : offset_bytes + len(buffer)]


@dataclass(frozen=True, slots=True, eq=False)
class SwappedStorage:
    """Big-endian bytes, presented little-endian."""

    inner: Storage
    word_bytes: int
    crc32: int | None = None
    """None: the container's CRC is of the bytes as they lie in the file."""

    @property
    def num_bytes(self) -> int:
        return self.inner.num_bytes

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        word = self.word_bytes
        start = offset_bytes - offset_bytes % word
        end = min(-(-(offset_bytes + len(buffer)) // word) * word, self.num_bytes)
        source = bytearray(end - start)
        self.inner.read_into(start, memoryview(source))
        swapped = bytearray(len(source))
        for i in range(word):
            swapped[i::word] = source[word - 1 - i :: word]
        buffer[:] = memoryview(swapped)[offset_bytes - start : offset_bytes - start + len(buffer)]

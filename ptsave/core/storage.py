"""Byte windows: where a storage's bytes lie, and how to get at any part of them.

A storage is a run of little-endian bytes that one or more tensors view. Two tensors with the same
storage object are tied or views of each other; identity, not content, says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

BLOCK_BYTES = 256 * 1024
"""The unit of reading and writing. Measured: faster than 8 MiB blocks, which fall out of the cache."""

Run = tuple["Storage", int, int]
"""Part of a storage: where it begins and how long it is, in bytes."""


class File(Protocol):
    """An open file, read by position."""

    fd: int
    fd_offset_bytes: int
    size_bytes: int
    is_remote: bool

    @property
    def stored_bytes(self) -> int: ...

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None: ...
    def too_short(self, offset_bytes: int, num_bytes: int) -> Exception: ...
    def expect(self, extents: Iterable[tuple[int, int]]) -> None: ...


class Storage(ABC):
    """A run of bytes that can be read in parts, from any thread; its attributes say what is known of them."""

    __slots__ = ()

    num_bytes: int
    crc32: int | None = None
    """The CRC-32 of all bytes that the container records; None where it records none."""
    checks_itself: bool = False
    """Whether reading all bytes in order raises an error where they do not match the container's checksum."""
    buffer: memoryview | None = None
    """The bytes, where they are in memory."""
    file: File | None = None
    """The file that holds the bytes unchanged, so that the kernel can move them."""
    offset_bytes: int = 0
    """Where in `file` the bytes begin."""
    inner: Storage | None = None
    """The storage that this one is a part or a changed form of."""
    sources: Sequence[Storage] = ()
    """The storages that this one is put together from."""
    parts: Sequence[Run] = ()
    """The runs of other storages that are this one when put end to end; empty where it is made otherwise."""

    @abstractmethod
    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill `buffer` with the storage's bytes from `offset_bytes`."""

    def expect(self, offset_bytes: int, num_bytes: int) -> None:
        """Announce that a part will be read, so that remote bytes can be requested together and ahead."""
        if self.file is not None:
            self.file.expect([(self.offset_bytes + offset_bytes, num_bytes)])
        elif self.inner is not None:
            self.inner.expect(0, self.inner.num_bytes)
        else:
            for source in self.sources:
                source.expect(0, source.num_bytes)

    def remote_place(self) -> tuple[int, int] | None:
        """A key that sorts storages by their place in remote files; None for bytes on this machine."""
        if self.file is not None:
            return (id(self.file), self.offset_bytes) if self.file.is_remote else None
        inner = self.inner or next(iter(self.sources), None)
        return inner.remote_place() if inner is not None else None

    def window(self, offset_bytes: int, num_bytes: int) -> Storage:
        """`num_bytes` bytes from `offset_bytes`; they lie in the storage."""
        return WindowStorage(self, offset_bytes, num_bytes)

    @property
    def is_seekable(self) -> bool:
        """Whether reading a part costs that part alone, wherever it lies."""
        return self.file is not None or self.buffer is not None

    def origins(self) -> Iterator[Storage]:
        """The storages that this one is made of, itself included."""
        pending: list[Storage] = [self]
        while pending:
            one = pending.pop()
            yield one
            pending += one.sources
            if one.inner is not None:
                pending.append(one.inner)

    def checksums(self) -> list[tuple[Storage, int]]:
        """The nearest of `origins` whose CRC-32 their container records, each with that CRC-32."""
        if self.crc32 is not None:
            return [(self, self.crc32)]
        sources = self.sources if self.inner is None else (self.inner,)
        return [pair for source in sources for pair in source.checksums()]


class MemoryStorage(Storage):
    """Bytes that are already in memory: a live model's, or a value inside a pickle."""

    __slots__ = ("buffer", "crc32", "num_bytes", "owner")
    buffer: memoryview

    def __init__(self, buffer: memoryview, owner: object = None, crc32: int | None = None) -> None:
        """`owner`: what keeps the memory alive."""
        self.buffer, self.owner, self.crc32 = buffer, owner, crc32
        self.num_bytes = len(buffer)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        buffer[:] = self.buffer[offset_bytes : offset_bytes + len(buffer)]


class WindowStorage(Storage):
    """Some of the bytes of another storage, of which no part alone has a known CRC."""

    def __init__(self, inner: Storage, begin: int, num_bytes: int) -> None:
        self.inner: Storage = inner
        self.num_bytes = num_bytes
        self._begin = begin

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        self.inner.read_into(self._begin + offset_bytes, buffer)

    def expect(self, offset_bytes: int, num_bytes: int) -> None:
        self.inner.expect(self._begin + offset_bytes, num_bytes)


class ChangedStorage(Storage):
    """The elements of another storage, each changed as it is read, wherever a read begins and ends.

    The container's CRC is of the bytes as they lie in the file.
    """

    def __init__(self, inner: Storage, element_bytes: int) -> None:
        self.inner: Storage = inner
        self.num_bytes = inner.num_bytes
        self.element_bytes = element_bytes

    @abstractmethod
    def changed(self, elements: bytearray) -> bytearray:
        """Return `elements` changed: whole elements, but for the last one where the storage ends in it."""

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        size = self.element_bytes
        skipped = offset_bytes % size
        begin, end = offset_bytes - skipped, -(-(offset_bytes + len(buffer)) // size) * size
        elements = bytearray(min(end, self.num_bytes) - begin)
        self.inner.read_into(begin, memoryview(elements))
        buffer[:] = memoryview(self.changed(elements))[skipped : skipped + len(buffer)]


class SwappedStorage(ChangedStorage):
    """Big-endian words, presented little-endian."""

    def changed(self, elements: bytearray) -> bytearray:
        word = self.element_bytes
        swapped = bytearray(len(elements))
        for i in range(word):
            swapped[i::word] = elements[word - 1 - i :: word]
        return swapped

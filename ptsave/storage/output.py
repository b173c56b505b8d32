"""Files and folders in the making, wherever they will be: written by position."""

from __future__ import annotations

import errno
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ptsave.core.address import Location
from ptsave.core.storage import Storage
from ptsave.errors import WriteError
from ptsave.storage.system import disk
from ptsave.storage.write_errors import check_room, errors_of, write_error

WRITEBACK_BYTES = 16 * 1024 * 1024
"""How often the disk is told to begin. Measured: a third less wall time until the file is durable."""


class OutputFile(ABC):
    """A file being written; every write names its position, so threads can share it."""

    destination: Location
    """What the file will be called; for messages."""
    num_bytes: int
    """How long it will be."""
    can_share: bool = False
    """Whether the file system may be able to share blocks between it and another file."""
    checked: str = ""
    """By what it was compared with what passed through; empty where it was not."""

    def share(self, source_fd: int, source_offset: int, num_bytes: int, offset_bytes: int) -> int:
        """Share blocks of another file; returns `num_bytes`, or 0 where the file system cannot."""
        return 0

    def reserve(self, shared_bytes: int = 0) -> None:
        """Make the file as long as it will be, and have the room set aside where that can be.

        `shared_bytes`: how many of them need no room, since they are shared with another file.

        Raises: WriteError when there is no room.
        """
        return

    @abstractmethod
    def write_at(self, offset_bytes: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`. No byte is written twice. Raises: WriteError."""

    def begin_writeback(self, offset_bytes: int, num_bytes: int) -> None:
        """Say that these bytes are final, so that the disk can begin with them."""
        return


class SentFile(OutputFile):
    """A file that is sent away while it is made, and cannot be read back before it is whole.

    It is written by few threads, in about the order of its bytes: what is not sent yet is in memory.
    """

    @abstractmethod
    def must_have(self, crc32: int) -> None:
        """Have the whole compared with `crc32` before it takes its name, and by the store where it can."""


class OutputFolder(ABC):
    """A folder being written: files of data first, and last the one that names all others."""

    destination: Location
    taken: set[str]
    """The names that were there before."""
    made: list[str]
    """The names of new data, in order."""
    place: Location
    """Where the files are now, for other processes that write data of the folder: `opening.data_stream`."""
    compares_data: bool = False
    """Whether what such a stream has sent is compared with what arrived, so that nobody need read it back."""

    def fresh(self, names: Callable[[int], Sequence[str]]) -> Sequence[str]:
        """The first of `names(1)`, `names(2)`, … of which none is taken."""
        generation = 1
        while not self.taken.isdisjoint(names(generation)):
            generation += 1
        return names(generation)

    def generation(self, is_of: Callable[[str, int], bool]) -> int:
        """A number for the names of data that several processes write: no file is of it, as `is_of` says."""
        number = 1
        while any(is_of(name, number) for name in self.taken):
            number += 1
        return number

    def promise(self, names: Sequence[str]) -> None:
        """Note the names of data that other processes may write, before they do: so that they are removed
        again whatever happens."""
        self.made += names

    @abstractmethod
    def data_file(self, name: str, num_bytes: int) -> AbstractContextManager[OutputFile]:
        """A new file of `num_bytes` bytes, durable when the block ends.

        Raises: WriteError.
        """

    @abstractmethod
    def small_file(self, name: str, data: bytes) -> None:
        """Write a new file that is not seen before the main file is in place.

        Raises: WriteError.
        """

    @abstractmethod
    def commit(
        self, main: tuple[str, bytes], beside: Iterable[tuple[str, bytes]] = (), old: Sequence[str] = ()
    ) -> None:
        """Make the new set the one that readers see.

        `main`: the name and the bytes of the file that names all others. `beside`: files that readers can do
        without, written after it. `old`: what is not needed any more, in the order of its removal.

        Raises: WriteError.
        """


class LocalOutputFile(OutputFile, Storage):
    """A file being written on a disk, which can be read back."""

    destination: Path

    def __init__(self, fd: int, path: Path, destination: Path, num_bytes: int, *, sync: bool) -> None:
        self.fd = fd
        self.path = path
        """Where the bytes are now."""
        self.destination = destination
        self.num_bytes = num_bytes
        self.sync = sync
        """Whether it will be made durable."""
        self.can_share = True
        """False once the file system has said that it cannot share blocks between files."""
        self._lock = threading.Lock()

    def share(self, source_fd: int, source_offset: int, num_bytes: int, offset_bytes: int) -> int:
        self.can_share = disk.clone_range(source_fd, source_offset, num_bytes, self.fd, offset_bytes)
        return num_bytes if self.can_share else 0

    def reserve(self, shared_bytes: int = 0) -> None:
        check_room(self.path.parent, self.num_bytes - shared_bytes, self.destination)
        with errors_of(self.destination, self.num_bytes):
            if shared_bytes:  # XFS would set the room of shared blocks aside as well
                os.ftruncate(self.fd, self.num_bytes)
            else:
                disk.reserve(self.fd, self.num_bytes)

    def write_at(self, offset_bytes: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        try:
            while view:
                done = disk.write_some(self.fd, view, offset_bytes, self._lock)
                if done == 0:
                    raise OSError(errno.EIO, "the system wrote nothing")
                offset_bytes += done
                view = view[done:]
        except OSError as error:
            raise write_error(self.destination, error) from None

    def begin_writeback(self, offset_bytes: int, num_bytes: int) -> None:
        if self.sync:
            disk.begin_writeback(self.fd, offset_bytes, num_bytes)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill `buffer` with what the file now holds.

        Raises: WriteError when it holds less, or the system reports an error.
        """
        try:
            while buffer:
                done = disk.read_some(self.fd, buffer, offset_bytes, self._lock)
                if done == 0:
                    raise OSError(errno.EIO, "the file is shorter than what was written")
                offset_bytes += done
                buffer = buffer[done:]
        except OSError as error:
            raise write_error(self.destination, error) from None

    def lost(self, name: str) -> WriteError:
        """The error for a file that does not hold what was written to it; `name` says what of it."""
        return WriteError(
            f"the disk does not hold what was written: {name!r} reads back differently",
            str(self.destination),
            "check the disk; nothing was replaced",
        )

"""A file in the making, written and read back by position."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from ptsave.core.storage import Storage
from ptsave.storage import system
from ptsave.storage.write_errors import check_room, errors_of, write_error


class OutputFile(Storage):
    """A file being written; every read and write names its position, so threads can share it."""

    def __init__(self, fd: int, path: Path, destination: Path, num_bytes: int, *, sync: bool) -> None:
        self.fd = fd
        self.path = path
        """Where the bytes are now."""
        self.destination = destination
        """What the file will be called; for messages."""
        self.num_bytes = num_bytes
        """How long it will be."""
        self.sync = sync
        """Whether it will be made durable."""
        self.can_share = True
        """False once the file system has said that it cannot share blocks between files."""
        self._lock = threading.Lock()

    def share(self, source_fd: int, source_offset: int, num_bytes: int, offset_bytes: int) -> int:
        """Share blocks of another file; returns `num_bytes`, or 0 where the file system cannot."""
        self.can_share = system.clone_range(source_fd, source_offset, num_bytes, self.fd, offset_bytes)
        return num_bytes if self.can_share else 0

    def reserve(self, shared_bytes: int = 0) -> None:
        """Make the file as long as it will be, and have the disk set the room aside where it can.

        `shared_bytes`: how many of them need no room, since they are shared with another file.

        Raises: WriteError when there is no room.
        """
        check_room(self.path.parent, self.num_bytes - shared_bytes, self.destination)
        with errors_of(self.destination, self.num_bytes):
            if shared_bytes:  # XFS would set the room of shared blocks aside as well
                os.ftruncate(self.fd, self.num_bytes)
            else:
                system.reserve(self.fd, self.num_bytes)

    def write_at(self, offset_bytes: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`, in as many calls as the system takes.

        Raises: WriteError.
        """
        view = memoryview(data)
        try:
            while view:
                done = system.write_some(self.fd, view, offset_bytes, self._lock)
                if done == 0:
                    raise OSError(errno.EIO, "the system wrote nothing")
                offset_bytes += done
                view = view[done:]
        except OSError as error:
            raise write_error(self.destination, error) from None

    def begin_writeback(self, offset_bytes: int, num_bytes: int) -> None:
        """Say that these bytes are final, so that the disk can begin with them."""
        if self.sync:
            system.begin_writeback(self.fd, offset_bytes, num_bytes)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill `buffer` with what the file now holds.

        Raises: WriteError when it holds less, or the system reports an error.
        """
        try:
            while buffer:
                done = system.read_some(self.fd, buffer, offset_bytes, self._lock)
                if done == 0:
                    raise OSError(errno.EIO, "the file is shorter than what was written")
                offset_bytes += done
                buffer = buffer[done:]
        except OSError as error:
            raise write_error(self.destination, error) from None

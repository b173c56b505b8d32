"""A file on a disk, open for reading by its descriptor."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from ptsave.core.address import Location
from ptsave.errors import MissingFileError, UnreadableError
from ptsave.storage import reads, system
from ptsave.storage.files import InputFile, changed
from ptsave.storage.system import disk, naming, processes

READ_CHECK_BYTES = 64 * 1024
"""From what size on a single read is followed by a look at whether the file has changed."""

MAX_NEIGHBOURS = 10_000
"""How many names beside a path to nothing are looked at for the one that was meant."""

Version = tuple[int, int, int, int]
"""What tells one content of a file from another: device, inode, bytes, time of the last change in ns."""


def version_of(status: os.stat_result) -> Version:
    """The version of a file, from its status."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class DescriptorFile(InputFile):
    """A regular file open for reading, by its descriptor."""

    def _opened(self, status: os.stat_result) -> None:
        """Record the size and the version that `fd` has now: every later read must find this version."""
        self._lock = threading.Lock()
        self.size_bytes = status.st_size
        self.version = version_of(status)
        self.memo = {}

    def check_unchanged(self) -> None:
        """Insist that nobody has written to the file since it was opened; a closed one was looked at before.

        Raises: UnreadableError.
        """
        if self.fd >= 0 and version_of(os.fstat(self.fd)) != self.version:
            raise changed(self.path)

    def read_at(self, offset_bytes: int, num_bytes: int) -> bytes:
        """Exactly `num_bytes` bytes from `offset_bytes`.

        Raises: CorruptError when the file is shorter than that; UnreadableError when it was written to.
        """
        if offset_bytes < 0 or num_bytes < 0 or offset_bytes + num_bytes > self.size_bytes:
            raise self.too_short(offset_bytes, num_bytes)
        try:  # small reads by the thousand: half the time of the loop below
            data = disk.read_small(self.fd, num_bytes, offset_bytes)
        except OSError as error:
            raise unreadable(self.path, error) from None
        if data is not None and len(data) == num_bytes:
            if num_bytes >= READ_CHECK_BYTES:
                self.check_unchanged()
            return data
        buffer = bytearray(num_bytes)
        self.read_into(offset_bytes, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill `buffer` (bytes) from `offset_bytes`.

        Raises: CorruptError at the end of the file; UnreadableError when the system reports an error, or the
        file was written to.
        """
        wanted = len(buffer)
        done = 0
        while done < wanted:
            try:
                got = disk.read_some(self.fd, buffer[done:], offset_bytes + done, self._lock)
            except OSError as error:
                raise unreadable(self.path, error) from None
            if got == 0:
                raise self.too_short(offset_bytes, wanted)
            done += got
        self.check_unchanged()

    def too_short(self, offset_bytes: int, num_bytes: int) -> UnreadableError:
        """The error for a read past the end."""
        if self.fd >= 0 and version_of(os.fstat(self.fd)) != self.version:
            return changed(self.path)
        return super().too_short(offset_bytes, num_bytes)

    def close(self) -> None:
        self.memo.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class LocalFile(DescriptorFile):
    """A regular file open for reading; every read names its position, so threads can share it.

    What was read is of one version: a file that is written to in place between its opening and a read is
    refused, since a mix of two contents may look whole.
    """

    def __init__(self, path: str | os.PathLike[str], open_fd: Callable[[int], int] | None = None) -> None:
        """Open `path`; `open_fd` does it, given the flags, where that takes more than the path.

        Raises: MissingFileError when it is not there, may not be read, or is not a regular file.
        """
        self.path: Path = Path(path)
        open_fd = open_fd or partial(os.open, self.path)
        flags = os.O_RDONLY | system.O_NONBLOCK | system.O_PLAIN
        try:
            self.fd = with_room(partial(open_fd, flags))
        except OSError as error:
            raise unreadable(self.path, error) from None
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self.fd)
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise MissingFileError(f"cannot read: {kind}", str(self.path), "name a checkpoint file")
        self._opened(status)
        reads.note(self.path, status)

    def check_in_place(self) -> None:
        """Insist that its path still leads to this file, unchanged.

        Raises: UnreadableError.
        """
        self.check_unchanged()
        try:
            found = version_of(os.stat(self.path))
        except OSError:
            found = None
        if found != self.version:
            raise changed(self.path)


Opened = TypeVar("Opened")


def with_room(opened: Callable[[], Opened]) -> Opened:
    """What `opened` opens; it is called again where the limit of open files was in the way and was raised."""
    try:
        return opened()
    except OSError as error:
        if error.errno != errno.EMFILE or not processes.allow_more_open_files():
            raise
        return opened()


def unreadable(path: Location, error: OSError) -> UnreadableError:
    """The error of ours that says what the system said about reading `path`."""
    if isinstance(path, Path) and (why_not := naming.why_not_a_name(path.name)):
        return MissingFileError(f"no such file: {why_not}", str(path), "check the path")
    if error.errno == errno.ENOENT:
        target = _target(path) if isinstance(path, Path) else None
        if target is not None:
            return MissingFileError(f"a symbolic link to nothing: {target}", str(path), "mend the link")
        return MissingFileError("no such file", str(path), _near(path))
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return UnreadableError(processes.TOO_MANY_OPEN, str(path), processes.MORE_MAY_BE_OPEN)
    if error.errno in (errno.EACCES, errno.EPERM):
        return MissingFileError("no permission to read", str(path), "check the file's owner and mode")
    return UnreadableError(
        f"cannot read: {error.strerror or error}", str(path), "check the disk and the path"
    )


def _target(path: Path) -> str | None:
    """What a symbolic link is of; None for what is none, or is gone by now."""
    try:
        return os.readlink(path) if path.is_symlink() else None
    except OSError:
        return None


def _near(path: Location) -> str:
    """What is meant by a path to nothing, in a hint: the path as a shell would have written it, or the name
    beside it that is most like it."""
    from ptsave.core.names import nearest  # only for a path that is wrong

    if isinstance(path, Path):
        text = str(path)
        for meant in (os.path.expanduser(text), text.replace("\\", "/")):
            if meant != text and os.path.lexists(meant):
                return f"did you mean {meant!r}?"
        if text == "-":
            return "standard input is not read: name a file"
        if "*" in text or "?" in text:
            return "no file fits the pattern, or the shell did not expand it: leave its quotes out"
    names: list[str] = []
    if isinstance(path, Path):
        with suppress(OSError), os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, MAX_NEIGHBOURS)]
    near = nearest(path.name, names)
    return f"did you mean {str(path.with_name(near))!r}?" if near is not None else "check the path"

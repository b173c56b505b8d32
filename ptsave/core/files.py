"""Input files: opened once, read by position, never through a path again."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

from ptsave.errors import CorruptError, MissingFileError, UnreadableError

HAS_PREAD = hasattr(os, "preadv")
"""False on Windows, where a read by position is a seek and a read under a lock."""


class InputFile:
    """A regular file open for reading; every read names its position, so threads can share it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open `path`.

        Raises: MissingFileError when it is not there, may not be read, or is not a regular file.
        """
        self.path = Path(path)
        self._lock = threading.Lock()
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            try:
                self.fd = os.open(self.path, flags)
            except OSError as error:
                if error.errno != errno.EMFILE or not _allow_more_open_files():
                    raise
                self.fd = os.open(self.path, flags)
        except OSError as error:
            raise unreadable(self.path, error) from None
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self.fd)
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise MissingFileError(f"cannot read: {kind}", str(self.path), "name a checkpoint file")
        self.size_bytes = status.st_size
        self.identity = (status.st_dev, status.st_ino)

    def read_at(self, offset_bytes: int, num_bytes: int) -> bytes:
        """Exactly `num_bytes` bytes from `offset_bytes`.

        Raises: CorruptError when the file is shorter than that.
        """
        if offset_bytes < 0 or num_bytes < 0 or offset_bytes + num_bytes > self.size_bytes:
            raise self.too_short(offset_bytes, num_bytes)
        if HAS_PREAD:
            # small reads by the thousand: half the time of the loop below
            try:
                data = os.pread(self.fd, num_bytes, offset_bytes)
            except OSError as error:
                raise unreadable(self.path, error) from None
            if len(data) == num_bytes:
                return data
        buffer = bytearray(num_bytes)
        self.read_into(offset_bytes, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill `buffer` (bytes) from `offset_bytes`.

        Raises: CorruptError at the end of the file; UnreadableError when the system reports an error.
        """
        wanted = len(buffer)
        done = 0
        while done < wanted:
            try:
                got = self._read_some(offset_bytes + done, buffer[done:])
            except OSError as error:
                raise unreadable(self.path, error) from None
            if got == 0:
                raise self.too_short(offset_bytes, wanted)
            done += got

    def _read_some(self, offset_bytes: int, buffer: memoryview) -> int:
        if HAS_PREAD:
            return os.preadv(self.fd, [buffer], offset_bytes)
        with self._lock:
            os.lseek(self.fd, offset_bytes, os.SEEK_SET)
            data = os.read(self.fd, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def too_short(self, offset_bytes: int, num_bytes: int) -> CorruptError:
        return CorruptError(
            f"truncated: needs {num_bytes} bytes at offset {offset_bytes}, the file has {self.size_bytes}",
            str(self.path),
            "copy or download the file again",
        )

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> InputFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _allow_more_open_files() -> bool:
    """Raise this process's limit on open files as far as it may: a checkpoint can have thousands.

    Returns whether there was anything to raise; there never is on Windows.
    """
    try:
        import resource
    except ImportError:
        return False
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft >= wanted:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return True


_MAX_OPEN_FILES = 65_536


def unreadable(path: Path, error: OSError) -> UnreadableError:
    """The error of ours that says what the system said about reading `path`."""
    if error.errno == errno.ENOENT:
        return MissingFileError("no such file", str(path), "check the path")
    if error.errno in (errno.EACCES, errno.EPERM):
        return MissingFileError("no permission to read", str(path), "check the file's owner and mode")
    return UnreadableError(
        f"cannot read: {error.strerror or error}", str(path), "check the disk and the path"
    )


class InputFolder:
    """A folder open for reading; its files are opened by bare name and never outside of it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """List `path`.

        Raises: MissingFileError when it is not a folder or may not be read.
        """
        self.path = Path(path)
        try:
            self.names = sorted(os.listdir(self.path))
        except OSError as error:
            raise unreadable(self.path, error) from None
        self._known = frozenset(self.names)

    def open(self, name: str) -> InputFile:
        """Open the file `name` in this folder.

        Raises: CorruptError when `name` is not a bare file name, or is a symbolic link that leads out of
        the folder; MissingFileError when it is not there.
        """
        where = str(self.path / name) if "\0" not in name else str(self.path)
        if name in ("", ".", "..") or "\0" in name or Path(name).name != name or "\\" in name:
            raise CorruptError(f"names a file outside its folder: {name!r}", str(self.path), _OUTSIDE_HINT)
        if name not in self._known:  # too long, not to be encoded, of another case: all the same
            raise MissingFileError("no such file", where, "check that the folder is complete")
        target = self.path / name
        if target.is_symlink() and not self._is_allowed_link(target):
            raise CorruptError("is a symbolic link out of its folder", where, _OUTSIDE_HINT)
        return InputFile(target)

    def _is_allowed_link(self, target: Path) -> bool:
        """Links inside the folder, and the Hugging Face cache's `snapshots/X/F → ../../blobs/H`."""
        home = self.path.resolve()
        try:
            real = target.resolve()
        except (OSError, RuntimeError):  # a loop; 3.13 leaves its discovery to the opening
            raise CorruptError("is a symbolic link to itself", str(target), _OUTSIDE_HINT) from None
        if real.is_relative_to(home):
            return True
        return home.parent.name == "snapshots" and real.parent == home.parent.parent / "blobs"


_OUTSIDE_HINT = "a checkpoint's files lie beside each other; copy them into one folder"

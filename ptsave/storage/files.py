"""Input files and folders: opened once, read by position, never through a path again.

`InputFile` and `InputFolder` are what formats read from. Local ones are here, remote ones in `remote/`.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.storage import Storage
from ptsave.errors import CorruptError, MissingFileError, UnreadableError
from ptsave.storage import reads, system

READ_CHECK_BYTES = 64 * 1024
"""From what size on a single read is followed by a look at whether the file has changed."""

MAX_NEIGHBOURS = 10_000
"""How many names beside a path to nothing are looked at for the one that was meant."""

Version = tuple[int, int, int, int]
"""What tells one content of a file from another: device, inode, bytes, time of the last change in ns."""


Extent = tuple[int, int]
"""Some bytes of a file: the offset and their number."""


class InputFile(ABC):
    """A file open for reading, wherever it lies; every read names its position, so threads can share it.

    What was read is of one version: a file that changes between its opening and a read is refused.
    """

    path: Location
    """For messages only: it is never opened a second time."""
    size_bytes: int
    fd: int = -1
    """Its descriptor, so that the kernel can move and map its bytes; -1 where there is none."""
    fd_offset_bytes: int = 0
    """Where this file begins in the file of the descriptor; not 0 for a member of an archive."""
    whole: Storage | None = None
    """All bytes of the file, where the archive around it records their CRC-32."""
    is_remote: bool = False
    """Whether each read may take a round trip to another machine."""
    memo: dict[str, object]
    """Results about the file that several readers need, by name; cleared when the file is closed."""

    @property
    def stored_bytes(self) -> int:
        """The bytes that the file takes as it is stored (fewer when compressed); caps grow with them."""
        return self.size_bytes

    @abstractmethod
    def read_at(self, offset_bytes: int, num_bytes: int) -> bytes:
        """Exactly `num_bytes` bytes from `offset_bytes`.

        Raises: CorruptError when the file is shorter than that; UnreadableError when it has changed.
        """

    @abstractmethod
    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill `buffer` (bytes) from `offset_bytes`.

        Raises: CorruptError at the end of the file; UnreadableError when it cannot be read, or has changed.
        """

    @abstractmethod
    def check_unchanged(self) -> None:
        """Insist that all that was read is of one version.

        Raises: UnreadableError.
        """

    @abstractmethod
    def check_in_place(self) -> None:
        """Insist that its path still leads to this file, unchanged.

        Raises: UnreadableError.
        """

    def expect(self, extents: Iterable[Extent]) -> None:
        """Announce what will be read, so that a remote file can request neighbours together and ahead."""
        return

    def forget(self, extents: Iterable[Extent]) -> None:
        """Announce that these will not be read again, so that a remote file can let go of them."""
        return

    def share(self, num_files: int) -> None:
        """Announce that `num_files` files, this one included, are read in turn, a little at a time."""
        return

    def holds(self, offset_bytes: int, num_bytes: int) -> bool:
        """Whether these bytes can be read without a request to another machine."""
        return not self.is_remote

    def before_tensors(self, check: Callable[[], None]) -> None:
        """Call `check` before any tensor's bytes are used: now, or at the first read if it asks for bytes."""
        check()

    def too_short(self, offset_bytes: int, num_bytes: int) -> UnreadableError:
        """The error for a read past the end."""
        return CorruptError(
            f"truncated: needs {num_bytes} bytes at offset {offset_bytes}, the file has {self.size_bytes}",
            str(self.path),
            "copy or download the file again",
        )

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> InputFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


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
            data = system.read_small(self.fd, num_bytes, offset_bytes)
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
                got = system.read_some(self.fd, buffer[done:], offset_bytes + done, self._lock)
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
            self.fd = _with_room(partial(open_fd, flags))
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


def _with_room(opened: Callable[[], Opened]) -> Opened:
    """What `opened` opens; it is called again where the limit of open files was in the way and was raised."""
    try:
        return opened()
    except OSError as error:
        if error.errno != errno.EMFILE or not system.allow_more_open_files():
            raise
        return opened()


def unreadable(path: Location, error: OSError) -> UnreadableError:
    """The error of ours that says what the system said about reading `path`."""
    if isinstance(path, Path) and (why_not := system.why_not_a_name(path.name)):
        return MissingFileError(f"no such file: {why_not}", str(path), "check the path")
    if error.errno == errno.ENOENT:
        return MissingFileError("no such file", str(path), _near(path))
    if error.errno in (errno.EACCES, errno.EPERM):
        return MissingFileError("no permission to read", str(path), "check the file's owner and mode")
    return UnreadableError(
        f"cannot read: {error.strerror or error}", str(path), "check the disk and the path"
    )


def _near(path: Location) -> str:
    """The name beside a path to nothing that is most like it, in a hint."""
    from ptsave.core.names import nearest  # only for a path that is wrong

    names: list[str] = []
    if isinstance(path, Path):
        with suppress(OSError), os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, MAX_NEIGHBOURS)]
    near = nearest(path.name, names)
    return f"did you mean {str(path.with_name(near))!r}?" if near is not None else "check the path"


def version_of(status: os.stat_result) -> Version:
    """The version of a file, from its status."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def changed(path: Location) -> UnreadableError:
    """The error for a file that somebody has written to while it was read."""
    return UnreadableError(
        "was changed while it was read", str(path), "try again when nothing writes to it any more"
    )


@contextmanager
def unchanged(file: InputFile) -> Iterator[None]:
    """What is found out about `file` in the block is found out about one version of it.

    Raises: UnreadableError where it was written to meanwhile, whatever the block made of the mix.
    """
    try:
        yield
    except UnreadableError:
        file.check_unchanged()
        raise
    file.check_unchanged()


_FOLDER_FLAGS = os.O_RDONLY | system.O_DIRECTORY | system.O_NOFOLLOW | system.O_PLAIN


class InputFolder(ABC):
    """A folder open for reading, wherever it lies; its files are opened by bare name, and none outside it."""

    path: Location
    """For messages only: it is never opened a second time."""
    names: Sequence[str]
    """The names of its files (and of a local folder's folders), sorted."""
    num_at_once: int = 1
    """How many of its files to open at the same time."""

    is_remote: bool = False
    """Whether each read of its files may take a round trip to another machine."""
    is_glanced_at: bool = False
    """Whether no tensor will be read, so that checks which take a request for each file may be left out."""
    is_read_in_part: bool = False
    """Whether some tensors will be read, or parts of them, so that files need not be opened before that."""

    def num_side_by_side(self, num_bytes: int) -> int:
        """How many of its files to read at the same time, where `num_bytes` of each are expected."""
        return 1

    _opened: list[tuple[str, Any]]
    """The files that were opened, and their names."""

    @cached_property
    def memo(self) -> dict[str, object]:
        """What readers have found out about it, by who did."""
        return {}

    @property
    def size_bytes(self) -> int:
        """The bytes of all files that were opened."""
        return sum(file.size_bytes for _, file in self._opened)

    @property
    def stored_bytes(self) -> int:
        """The bytes of all opened files as they are stored: files in a folder are never compressed."""
        return self.size_bytes

    @property
    def opened(self) -> set[str]:
        """The names of the files that were opened."""
        return {name for name, _ in self._opened}

    @abstractmethod
    def open(self, name: str, first_bytes: int = 0) -> InputFile:
        """Open the file `name` in this folder. `first_bytes`: about how many will be read at its beginning,
        where that is known, so that a remote file comes with them.

        Raises: CorruptError when `name` is not a bare file name, or leads out of the folder;
        MissingFileError when it is not there.
        """

    @abstractmethod
    def size_of(self, name: str) -> int | None:
        """The size in bytes of the file `name`, without opening it; None where there is no such file."""

    @abstractmethod
    def folders(self) -> list[str]:
        """The names of the folders in it, sorted."""

    @abstractmethod
    def inside(self, name: str, *, follows_links: bool = True) -> InputFolder:
        """List the folder `name` in this one.

        `follows_links`: whether it may be a symbolic link, which may lead anywhere.

        Raises: MissingFileError; UnreadableError; CorruptError for a link that is not followed.
        """

    @abstractmethod
    def check_unchanged(self) -> None:
        """Insist that all that was read is of one version.

        Raises: UnreadableError.
        """

    @abstractmethod
    def check_in_place(self) -> None:
        """Insist that its path still leads to the files that were opened.

        Raises: UnreadableError.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the folder; its files stay open."""

    def check_name(self, name: str) -> None:
        """Raise CorruptError when `name` is not a bare file name."""
        if name in ("", ".", "..") or "\0" in name or Path(name).name != name or "\\" in name:
            raise CorruptError(f"names a file outside its folder: {name!r}", str(self.path), _OUTSIDE_HINT)

    def __enter__(self) -> InputFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class LocalFolder(InputFolder):
    """A folder on a disk; its files are opened by bare name, in this very folder and never outside.

    Where the system has it, the folder itself is held open, and a file is opened relative to it without
    following a symbolic link. Whoever swaps a file or the folder meanwhile gets nothing opened that lies
    elsewhere. Of the links that are allowed (inside the folder, and into the Hugging Face cache's blobs) the
    steps are found first and then taken one by one without following any.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """List `path`.

        Raises: MissingFileError when it is not a folder or may not be read.
        """
        self.path: Path = Path(path)
        self._fd = -1
        self._opened: list[tuple[str, LocalFile]] = []
        try:
            if system.HAS_DIR_FD:
                flags = os.O_RDONLY | system.O_DIRECTORY | system.O_PLAIN
                self._fd = _with_room(partial(os.open, self.path, flags))
            at = self._fd if self._fd >= 0 else self.path
            self.names = sorted(_with_room(lambda: os.listdir(at)))
        except OSError as error:
            self.close()
            raise unreadable(self.path, error) from None
        self._known = frozenset(self.names)

    def open(self, name: str, first_bytes: int = 0) -> InputFile:
        """Open the file `name` in this folder.

        Raises: CorruptError when `name` is not a bare file name, or is a symbolic link that leads out of
        the folder; MissingFileError when it is not there.
        """
        self.check_name(name)
        where = str(self.path / name)
        if name not in self._known:  # too long, not to be encoded, of another case: all the same
            raise MissingFileError("no such file", where, "check that the folder is complete")
        file = LocalFile(self.path / name, partial(self._open_fd if self._fd >= 0 else self._open_path, name))
        self._opened.append((name, file))
        return file

    def size_of(self, name: str) -> int | None:
        version = self._version(name) if name in self._known else None
        return version[2] if version is not None else None

    def folders(self) -> list[str]:
        return [name for name in self.names if os.path.isdir(system.reachable(self.path / name))]

    def inside(self, name: str, *, follows_links: bool = True) -> InputFolder:
        inner = LocalFolder(system.reachable(self.path / name))
        if not follows_links and not self._has(name, inner):
            inner.close()
            raise CorruptError("is a symbolic link to a folder", str(inner.path), _OUTSIDE_HINT)
        return inner

    def _has(self, name: str, inner: LocalFolder) -> bool:
        """Whether the folder that is open as `inner` is the one that lies here under `name`."""
        at = name if self._fd >= 0 else system.reachable(self.path / name)
        found = os.stat(at, dir_fd=self._fd if self._fd >= 0 else None, follow_symlinks=False)
        opened = os.fstat(inner._fd) if inner._fd >= 0 else os.stat(inner.path)
        return os.path.samestat(found, opened)

    def _open_fd(self, name: str, flags: int) -> int:
        """Open `name` relative to the folder that is open, and take the steps of a link one by one."""
        try:
            return os.open(name, flags | system.O_NOFOLLOW, dir_fd=self._fd)
        except OSError:
            if not stat.S_ISLNK(os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mode):
                raise
        steps = self._steps_of_link(name)
        fd = self._fd
        try:
            for step in steps[:-1]:
                inner = os.open(step, _FOLDER_FLAGS, dir_fd=fd)
                if fd != self._fd:
                    os.close(fd)
                fd = inner
            return os.open(steps[-1], flags | system.O_NOFOLLOW, dir_fd=fd)
        finally:
            if fd != self._fd:
                os.close(fd)

    def _open_path(self, name: str, flags: int) -> int:
        """Open `name` on Windows, where nothing is opened relative to a folder, and look at what it was."""
        target = system.reachable(self.path / name)
        if target.is_symlink():
            self._steps_of_link(name)
        fd = os.open(target, flags)
        try:
            if target.is_symlink():
                self._steps_of_link(name)
            if not os.path.samestat(os.fstat(fd), os.stat(target)):
                raise changed(target)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _steps_of_link(self, name: str) -> list[str]:
        """The names that lead from this folder to what the link `name` is of: `..`, `..`, `blobs`, `H`.

        Raises: CorruptError where that is neither inside the folder nor a blob of the Hugging Face cache,
        whose links are `snapshots/X/F` or `snapshots/X/FOLDER/F` → `blobs/H`.
        """
        target = self.path / name
        home = self.path.resolve()
        try:
            real = target.resolve()
        except (OSError, RuntimeError):  # a loop; 3.13 leaves its discovery to the opening
            raise CorruptError("is a symbolic link to itself", str(target), _OUTSIDE_HINT) from None
        if real.is_relative_to(home):
            return list(real.relative_to(home).parts) or ["."]
        for depth, ancestor in enumerate(home.parents, start=1):
            if ancestor.name == "snapshots" and real.parent == ancestor.parent / "blobs":
                return [".."] * (depth + 1) + ["blobs", real.name]
        raise CorruptError("is a symbolic link out of its folder", str(target), _OUTSIDE_HINT)

    def check_unchanged(self) -> None:
        """Insist that the files which are open are as they were, and none was replaced under its own name.

        One that is gone is no matter: who saves a folder over with care removes the old files.

        Raises: UnreadableError.
        """
        for name, file in self._opened:
            if file.fd < 0:
                continue  # all of it was read when the folder was opened
            file.check_unchanged()
            found = self._version(name)
            if found is not None and found != file.version:
                raise changed(file.path)

    def check_in_place(self) -> None:
        """Insist that the folder's path still leads to it, and to the files of it that were opened.

        Raises: UnreadableError.
        """
        with suppress(OSError):
            is_there = self._fd < 0 or os.path.samestat(os.fstat(self._fd), os.stat(self.path))
            if is_there and all(self._version(name) == file.version for name, file in self._opened):
                return
        raise changed(self.path)

    def _version(self, name: str) -> Version | None:
        """The version of the file that has the name now; None where there is none."""
        try:
            at = name if self._fd >= 0 else system.reachable(self.path / name)
            return version_of(os.stat(at, dir_fd=self._fd if self._fd >= 0 else None))
        except OSError:
            return None

    def close(self) -> None:
        """Let go of the folder; its files stay open."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


_OUTSIDE_HINT = "a checkpoint's files lie beside each other; copy them into one folder"


def files_of(checkpoint: Checkpoint) -> list[Location]:
    """Where the files are that a checkpoint was read from."""
    files: list[Location] = []
    for held in checkpoint.held:
        if isinstance(held, InputFile):
            files.append(held.path)
        elif isinstance(held, InputFolder):
            files += [held.path / name for name in sorted(held.opened)]
    return files

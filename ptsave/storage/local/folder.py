"""A folder on a disk, open for reading."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from functools import partial
from pathlib import Path

from ptsave.errors import CorruptError, MissingFileError
from ptsave.storage import system
from ptsave.storage.files import OUTSIDE_HINT, InputFile, InputFolder, changed
from ptsave.storage.local.file import LocalFile, Version, unreadable, version_of, with_room
from ptsave.storage.system import naming

_FOLDER_FLAGS = os.O_RDONLY | system.O_DIRECTORY | system.O_NOFOLLOW | system.O_PLAIN


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
                self._fd = with_room(partial(os.open, self.path, flags))
            at = self._fd if self._fd >= 0 else self.path
            self.names = sorted(with_room(lambda: os.listdir(at)))
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
        return [name for name in self.names if os.path.isdir(naming.reachable(self.path / name))]

    def inside(self, name: str, *, follows_links: bool = True) -> InputFolder:
        inner = LocalFolder(naming.reachable(self.path / name))
        if not follows_links and not self._has(name, inner):
            inner.close()
            raise CorruptError("is a symbolic link to a folder", str(inner.path), OUTSIDE_HINT)
        return inner

    def _has(self, name: str, inner: LocalFolder) -> bool:
        """Whether the folder that is open as `inner` is the one that lies here under `name`."""
        at = name if self._fd >= 0 else naming.reachable(self.path / name)
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
        target = naming.reachable(self.path / name)
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
            raise CorruptError("is a symbolic link to itself", str(target), OUTSIDE_HINT) from None
        if real.is_relative_to(home):
            return list(real.relative_to(home).parts) or ["."]
        for depth, ancestor in enumerate(home.parents, start=1):
            if ancestor.name == "snapshots" and real.parent == ancestor.parent / "blobs":
                return [".."] * (depth + 1) + ["blobs", real.name]
        raise CorruptError("is a symbolic link out of its folder", str(target), OUTSIDE_HINT)

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
            at = name if self._fd >= 0 else naming.reachable(self.path / name)
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

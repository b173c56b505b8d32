"""Old or new, never half: how every file that ptsave writes takes its name.

A new file is written beside its destination under a temporary name, made durable, and renamed. Nothing
that happens before the rename is visible at the destination; nothing after it can undo it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptsave.core import system
from ptsave.errors import ExistsError, PtsaveError, WriteError
from ptsave.stopping import unfinished

SUFFIX = ".ptsave-tmp"
"""How the names of temporary files end: `.NAME.PID-RANDOM.ptsave-tmp`."""
MAX_NAME_BYTES = 255
"""Of one name, where the file system does not say."""


class OutputFile:
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
                done = self._write_some(view, offset_bytes)
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
                done = self._read_some(buffer, offset_bytes)
                if done == 0:
                    raise OSError(errno.EIO, "the file is shorter than what was written")
                offset_bytes += done
                buffer = buffer[done:]
        except OSError as error:
            raise write_error(self.destination, error) from None

    def _write_some(self, view: memoryview, offset_bytes: int) -> int:
        if system.HAS_PWRITE:
            return os.pwrite(self.fd, view, offset_bytes)
        with self._lock:
            os.lseek(self.fd, offset_bytes, os.SEEK_SET)
            return os.write(self.fd, view)

    def _read_some(self, buffer: memoryview, offset_bytes: int) -> int:
        if system.HAS_PWRITE:
            return os.preadv(self.fd, [buffer], offset_bytes)
        with self._lock:
            os.lseek(self.fd, offset_bytes, os.SEEK_SET)
            data = os.read(self.fd, len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def replacing_file(
    destination: str | os.PathLike[str],
    num_bytes: int,
    *,
    overwrite: bool = False,
    sync: bool = True,
    sync_name: bool = True,
) -> Iterator[OutputFile]:
    """A new file of `num_bytes` bytes that becomes `destination` when the block ends without an error.

    On any error, an interrupt included, the temporary file is removed and the destination is untouched.
    `sync_name`: whether the name is made durable as well; the caller does it otherwise.

    Raises: ExistsError; WriteError when the destination cannot be written, or could not be made durable.
    """
    target, old = check_file_destination(destination, overwrite=overwrite)
    remove_litter(target)
    old = _refuse_hard_links(target) if old else None
    path = temporary_name(target)
    fd = -1
    renamed = False
    unfinished.add(str(path))
    try:
        with errors_of(target, num_bytes):
            fd = create(path, 0o666 if old is None else stat.S_IMODE(old.st_mode) & 0o777)
            if old is not None:
                _keep_owner_and_mode(fd, old)
        yield OutputFile(fd, path, target, num_bytes, sync=sync)
        with errors_of(target, num_bytes):
            if sync:
                system.sync_file(fd)
            if system.IS_WINDOWS:  # an open file cannot be renamed there
                os.close(fd)
                fd = -1
            if overwrite:
                system.rename(path, target, replace=True)
            else:
                system.rename_new(path, target)
            renamed = True
        if sync and sync_name:
            sync_names(target)
    finally:
        if not renamed:
            with contextlib.suppress(OSError):
                system.again(os.unlink, path)
        unfinished.discard(str(path))
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)


def write_file(
    destination: str | os.PathLike[str], data: bytes, *, overwrite: bool = False, sync: bool = True
) -> None:
    """Make `data` the whole content of `destination`.

    Raises: ExistsError; WriteError.
    """
    with replacing_file(destination, len(data), overwrite=overwrite, sync=sync) as output:
        output.reserve()
        output.write_at(0, data)


def sync_names(target: Path) -> None:
    """Make the new name `target` durable.

    Raises: WriteError, which says that the new file is in place all the same.
    """
    try:
        system.sync_folder(target.parent)
    except OSError as error:
        raise WriteError(
            f"the new file is in place, but its folder could not be made durable: {error.strerror}",
            str(target),
            "check the disk, then write again with --overwrite",
        ) from None


def check_file_destination(
    destination: str | os.PathLike[str], *, overwrite: bool = False
) -> tuple[Path, os.stat_result | None]:
    """The file that writing `destination` would replace (symbolic links followed), and its status if any.

    Raises: ExistsError; WriteError when the destination or its folder cannot be written.
    """
    target = resolved(destination)
    where = str(destination)
    if os.path.isdir(target):
        raise WriteError("the destination is a directory", where, "name a file in it")
    check_parent(target, where)
    with errors_of(target):
        try:
            old = os.lstat(target)
        except FileNotFoundError:
            return target, None
    if not stat.S_ISREG(old.st_mode):
        raise WriteError("the destination is not a regular file", where, "name a regular file")
    if not overwrite:
        raise ExistsError("the destination exists", where, "--overwrite replaces it")
    _refuse_foreign_in_sticky(target, old)
    return target, old


def resolved(destination: str | os.PathLike[str]) -> Path:
    """Where `destination` really lies."""
    if "\0" in os.fspath(destination):
        raise WriteError("the destination's name has a NUL character", repr(destination), "name a file")
    target = Path(os.path.realpath(destination))
    if os.path.islink(target):
        raise WriteError("the destination is a loop of symbolic links", str(destination), "remove the link")
    return target


def check_parent(target: Path, where: str) -> None:
    """Raise WriteError unless a new name can be made in `target`'s folder."""
    folder = target.parent
    try:
        is_folder = stat.S_ISDIR(os.stat(folder).st_mode)
    except FileNotFoundError:
        raise WriteError("the folder does not exist", str(folder), "make it first: mkdir -p") from None
    except OSError as error:
        raise write_error(folder, error) from None
    if not is_folder:
        raise WriteError("the folder is not a directory", str(folder), "name another destination")
    name_bytes = len(os.fsencode(target.name))
    limit = _max_name_bytes(folder)
    if not name_bytes or name_bytes > limit:
        raise WriteError(
            f"the name has {name_bytes} bytes, the file system takes {limit}", where, "shorten it"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        if system.is_read_only(folder):
            raise WriteError("the file system is read-only", str(folder), "write elsewhere")
        raise WriteError("no permission to write in the folder", str(folder), "check its owner and mode")


def _refuse_foreign_in_sticky(target: Path, old: os.stat_result) -> None:
    """In a sticky folder (/tmp) only a file's or the folder's owner may replace it."""
    if system.IS_WINDOWS or os.geteuid() == 0:
        return
    folder = os.stat(target.parent)
    if folder.st_mode & stat.S_ISVTX and os.geteuid() not in (old.st_uid, folder.st_uid):
        raise WriteError("another user's file, in a sticky folder", str(target), "name another destination")


def _refuse_hard_links(target: Path) -> os.stat_result | None:
    """The status of `target` now that litter is gone; a second name of it would keep the old bytes."""
    with errors_of(target):
        try:
            old = os.lstat(target)
        except FileNotFoundError:
            return None
    if old.st_nlink > 1:
        raise WriteError(
            f"the destination has {old.st_nlink} hard links, and the others would keep the old bytes",
            str(target),
            "remove it first, or name another destination",
        )
    return old


def check_room(folder: Path, num_bytes: int, target: Path) -> None:
    """Raise WriteError when `num_bytes` more do not fit in `folder`'s file system."""
    with errors_of(target, num_bytes):
        free = system.free_bytes(folder)
    if free is not None and free < num_bytes:
        raise WriteError(
            f"no room: needs {num_bytes} bytes, {free} are free",
            str(target),
            "free some space, or write elsewhere",
        )


def _max_name_bytes(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        return MAX_NAME_BYTES


def _stem(target: Path) -> str:
    """What the temporary names of `target` begin with; a long name is cut and told apart by a checksum."""
    name = target.name
    room = _max_name_bytes(target.parent) - len(f"..{2**32}-12345678{SUFFIX}")
    if len(os.fsencode(name)) > room:
        tag = f"{zlib.crc32(os.fsencode(name)):08x}"
        name = f"{os.fsencode(name)[: room - 9].decode('utf-8', 'ignore')}~{tag}"
    return f".{name}."


def temporary_name(target: Path) -> Path:
    """A fresh name beside `target` that says whose it is."""
    return target.parent / f"{_stem(target)}{os.getpid()}-{os.urandom(4).hex()}{SUFFIX}"


ORPHAN_NAME = re.compile(r"(\d+)-[0-9a-f]{8}" + re.escape(SUFFIX))
"""The end of a temporary name, with the process that made it."""


def remove_litter(target: Path) -> None:
    """Remove what killed writers of `target` left beside it. A living writer's file is left alone."""
    stem = _stem(target)
    with errors_of(target):
        names = os.listdir(target.parent)
    for name in names:
        if name.startswith(stem) and (rest := ORPHAN_NAME.fullmatch(name, len(stem))):
            with contextlib.suppress(OSError):  # someone else's, or already gone: not in our way
                _remove_if_orphan(target.parent / name, int(rest[1]))


def _remove_if_orphan(path: Path, pid: int) -> None:
    if not system.HAS_FLOCK:
        if system.is_orphan(pid, os.lstat(path).st_mtime):
            remove_temporary(path)
        return
    # O_NONBLOCK: in a folder that others write to, the name may be a pipe
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        is_free = system.lock(fd)
        if is_free or (is_free is None and system.is_orphan(pid, os.fstat(fd).st_mtime)):
            remove_temporary(path)
    finally:
        os.close(fd)


def remove_temporary(path: Path) -> None:
    """Remove a temporary file, or a temporary folder with the files in it."""
    if not path.is_dir() or path.is_symlink():
        system.again(os.unlink, path)
        return
    for name in os.listdir(path):
        system.again(os.unlink, path / name)
    system.again(os.rmdir, path)


def create(path: Path, mode: int) -> int:
    """A new, empty, locked file. Its lock tells the next writer that this one lives."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_BINARY"):
        flags |= getattr(os, name, 0)
    while True:
        fd = os.open(path, flags, mode)
        is_mine = False
        try:
            system.lock(fd, wait=True)
            is_mine = os.fstat(fd).st_nlink > 0 or system.IS_WINDOWS
        finally:
            if not is_mine:
                os.close(fd)
        if is_mine:
            return fd
        # another writer took it for litter between the open and the lock: again


def _keep_owner_and_mode(fd: int, old: os.stat_result) -> None:
    if system.IS_WINDOWS:
        return
    new = os.fstat(fd)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with contextlib.suppress(PermissionError):  # only root may give files away
            os.fchown(fd, old.st_uid, old.st_gid)
    os.fchmod(fd, stat.S_IMODE(old.st_mode))


@contextmanager
def errors_of(target: Path, num_bytes: int = 0) -> Iterator[None]:
    """Turn what the system says about writing `target` into an error of ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise ExistsError("the destination exists", str(target), "--overwrite replaces it") from None
        raise write_error(target, error, num_bytes) from None


def write_error(target: Path, error: OSError, num_bytes: int = 0) -> PtsaveError:
    """The error of ours that says what the system said about writing `target`."""
    where = str(target)
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        free = None
        with contextlib.suppress(OSError):
            free = system.free_bytes(target.parent)
        need = f": needs {num_bytes} bytes" if num_bytes else ""
        have = f", {free} are free" if free is not None else ""
        kind = "the disk is full" if error.errno == errno.ENOSPC else "the quota is used up"
        return WriteError(f"{kind}{need}{have}", where, "free some space, or write elsewhere")
    if error.errno == errno.EFBIG:
        return WriteError(
            "larger than a file may be here", where, "see `ulimit -f` and the file system's limit"
        )
    if error.errno == errno.EROFS:
        return WriteError("the file system is read-only", where, "write elsewhere")
    if error.errno in (errno.EACCES, errno.EPERM):
        return WriteError("no permission to write", where, "check the folder's owner and mode")
    if error.errno == errno.ENOTDIR:
        return WriteError("the folder is not a directory", where, "name another destination")
    if error.errno == errno.ENAMETOOLONG:
        return WriteError("the name is too long", where, "shorten it")
    if error.errno == errno.ENOENT:
        return WriteError("the folder is gone", where, "make it first: mkdir -p")
    return WriteError(f"cannot write: {error.strerror or error}", where, "check the disk and the path")

"""Old or new, never half: how every file that ptsave writes takes its name.

A new file is written beside its destination under a temporary name, made durable, and renamed. Nothing
that happens before the rename is visible at the destination; nothing after it can undo it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ptsave.errors import ExistsError, Option, WriteError
from ptsave.stopping import unfinished
from ptsave.storage import system
from ptsave.storage.output import LocalOutputFile
from ptsave.storage.reads import is_in_use, refuse_input
from ptsave.storage.system import disk, naming, processes
from ptsave.storage.temporary import create, remove_litter, temporary_name
from ptsave.storage.write_errors import errors_of, in_use, write_error

_open: set[int] = set()
"""Descriptors of files in the making."""


def _let_go() -> None:
    """Close them in a fork that another thread has made (a DataLoader's worker).

    There they would keep the lock of a file whose writer was killed, and the blocks of one that was removed.
    """
    while _open:
        with contextlib.suppress(OSError):
            os.close(_open.pop())


def let_go_when_forked(fd: int) -> int:
    """`fd`, which a fork of this process closes: it would keep the lock of its parent for good."""
    _open.add(fd)
    return fd


def still_ours(fd: int) -> bool:
    """Whether `fd` is to be closed here, which is known of it no longer; a fork has closed it already."""
    is_ours = fd in _open
    _open.discard(fd)
    return is_ours


processes.after_fork(_let_go)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until nobody else is in this block for a file in the folder of `path`.

    What is read in it is so when it is written. Windows, and file systems without locks, let several in.

    Raises: WriteError.
    """
    with errors_of(path):
        fd = let_go_when_forked(os.open(path.resolve().parent, os.O_RDONLY)) if system.HAS_FLOCK else None
    try:
        if fd is not None:
            with errors_of(path):
                disk.lock(fd, wait=True)
        yield
    finally:
        if fd is not None and still_ours(fd):
            os.close(fd)


@contextmanager
def replacing_file(
    destination: str | os.PathLike[str],
    num_bytes: int,
    *,
    overwrite: bool = False,
    sync: bool = True,
    sync_name: bool = True,
    before_rename: Callable[[], None] | None = None,
) -> Iterator[LocalOutputFile]:
    """A new file of `num_bytes` bytes that becomes `destination` when the block ends without an error.

    On any error, an interrupt included, the temporary file is removed and the destination is untouched.
    `sync_name`: whether the name is made durable as well; the caller does it otherwise. `before_rename`: what
    is called last, and may still refuse.

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
            _open.add(fd)
            if old is not None:
                disk.keep_owner_and_mode(target, old, fd)
        yield LocalOutputFile(fd, path, target, num_bytes, sync=sync)
        with errors_of(target, num_bytes):
            if sync:
                disk.sync_file(fd)
            if system.IS_WINDOWS:  # an open file cannot be renamed there
                _open.discard(fd)
                os.close(fd)
                fd = -1
            if before_rename is not None:
                before_rename()
            if overwrite:
                naming.rename(path, target, replace=True)
            else:
                naming.rename_new(path, target)
            renamed = True
        if sync and sync_name:
            sync_names(target)
    finally:
        if system.IS_WINDOWS:  # nor removed; elsewhere the lock outlives the name
            _close(fd)
            fd = -1
        if not renamed:
            with contextlib.suppress(OSError):
                disk.again(os.unlink, path)
        unfinished.discard(str(path))
        _close(fd)


def _close(fd: int) -> None:
    if fd >= 0:
        _open.discard(fd)
        with contextlib.suppress(OSError):
            os.close(fd)


def write_file(destination: str | os.PathLike[str], data: bytes, *, overwrite: bool = False) -> None:
    """Make `data` the whole content of `destination`.

    Raises: ExistsError; WriteError.
    """
    with replacing_file(destination, len(data), overwrite=overwrite) as output:
        output.reserve()
        output.write_at(0, data)


def sync_names(target: Path) -> None:
    """Make the new name `target` durable.

    Raises: WriteError, which says that the new file is in place all the same.
    """
    try:
        disk.sync_folder(target.parent)
    except OSError as error:
        raise WriteError(
            f"the new file is in place, but its folder could not be made durable: {error.strerror}",
            str(target),
            ("check the disk, then write again with ", Option("overwrite", True)),
        ) from None


def check_file_destination(
    destination: str | os.PathLike[str], *, overwrite: bool = False
) -> tuple[Path, os.stat_result | None]:
    """The file that writing `destination` would replace (symbolic links followed), and its status if any.

    Raises: RefusedError where it was read; ExistsError; WriteError when the destination or its folder cannot
    be written.
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
    refuse_input(target, where)
    if not stat.S_ISREG(old.st_mode):
        raise WriteError("the destination is not a regular file", where, "name a regular file")
    if not overwrite:
        raise ExistsError("the destination exists", where, (Option("overwrite", True), " replaces it"))
    _refuse_foreign_in_sticky(target, old)
    if system.IS_WINDOWS and not old.st_mode & stat.S_IWUSR:
        raise WriteError("the destination is read-only", where, "attrib -r allows writing over it")
    if is_in_use(target):
        raise in_use(where)
    return target, old


def resolved(destination: str | os.PathLike[str]) -> Path:
    """Where `destination` really lies."""
    if "\0" in os.fspath(destination):
        raise WriteError("the destination's name has a NUL character", repr(destination), "name a file")
    if why_not := naming.why_not_a_name(Path(destination).name):
        raise WriteError(f"no file can have this name: {why_not}", str(destination), "choose another name")
    target = naming.reachable(Path(os.path.realpath(destination)))
    if os.path.islink(target):
        raise WriteError("the destination is a loop of symbolic links", str(destination), "remove the link")
    return target


def check_parent(target: Path, where: str) -> None:
    """Raise WriteError unless a new name can be made in `target`'s folder."""
    folder = target.parent
    try:
        is_folder = stat.S_ISDIR(os.stat(folder).st_mode)
    except FileNotFoundError:
        raise WriteError("the folder does not exist", str(folder), "make it first") from None
    except OSError as error:
        raise write_error(folder, error) from None
    if not is_folder:
        raise WriteError("the folder is not a directory", str(folder), "name another destination")
    name_bytes = len(os.fsencode(target.name))
    limit = naming.max_name_bytes(folder)
    if not name_bytes or name_bytes > limit:
        raise WriteError(
            f"the name has {name_bytes} bytes, the file system takes {limit}", where, "shorten it"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        if disk.is_read_only(folder):
            raise WriteError("the file system is read-only", str(folder), "write elsewhere")
        raise WriteError("no permission to write in the folder", str(folder), "check its owner and mode")


def _refuse_foreign_in_sticky(target: Path, old: os.stat_result) -> None:
    """In a sticky folder (/tmp) only a file's or the folder's owner may replace it."""
    if not disk.may_replace(os.stat(target.parent), old):
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

"""What the system says about a write, as errors of ours."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptsave.errors import ExistsError, NoRoomError, Option, PtsaveError, WriteError
from ptsave.storage.system import disk, naming, processes


@contextmanager
def errors_of(target: Path, num_bytes: int = 0) -> Iterator[None]:
    """Turn what the system says about writing `target` into an error of ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise ExistsError(
                "the destination exists", str(target), (Option("overwrite", True), " replaces it")
            ) from None
        raise write_error(target, error, num_bytes) from None


def write_error(target: Path, error: OSError, num_bytes: int = 0) -> PtsaveError:
    """The error of ours that says what the system said about writing `target`."""
    where = str(target)
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        free = None
        with contextlib.suppress(OSError):
            free = disk.free_bytes(target.parent)
        need = f": needs {num_bytes} bytes" if num_bytes else ""
        have = f", {free} are free" if free is not None else ""
        kind = "the disk is full" if error.errno == errno.ENOSPC else "the quota is used up"
        return NoRoomError(f"{kind}{need}{have}", where, "free some space, or write elsewhere")
    if error.errno == errno.EFBIG:
        return WriteError(
            "larger than a file may be here", where, "see `ulimit -f` and the file system's limit"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return WriteError(processes.TOO_MANY_OPEN, where, processes.MORE_MAY_BE_OPEN)
    if error.errno == errno.EROFS:
        return WriteError("the file system is read-only", where, "write elsewhere")
    if naming.means_in_use(error) or naming.is_in_use(target):
        return in_use(where)
    if error.errno in (errno.EACCES, errno.EPERM):
        return WriteError("no permission to write", where, "check the folder's owner and mode")
    if error.errno == errno.ENOTDIR:
        return WriteError("the folder is not a directory", where, "name another destination")
    if error.errno == errno.ENAMETOOLONG:
        return WriteError("the name is too long", where, "shorten it")
    if error.errno == errno.ENOENT:
        return WriteError("the folder is gone", where, "make it first")
    return WriteError(f"cannot write: {error.strerror or error}", where, "check the disk and the path")


def in_use(where: str) -> WriteError:
    """The error for a file that cannot be replaced or removed, since a process has it open."""
    return WriteError(
        "the file is in use: a program has it open, or a model that was loaded lazily from it",
        where,
        "close it there, or name another destination",
    )


def check_room(folder: Path, num_bytes: int, target: Path) -> None:
    """Raise NoRoomError when `num_bytes` more do not fit in `folder`'s file system."""
    with errors_of(target, num_bytes):
        free = disk.free_bytes(folder)
    if free is not None and free < num_bytes:
        raise NoRoomError(
            f"no room: needs {num_bytes} bytes, {free} are free",
            str(target),
            "free some space, or write elsewhere",
        )

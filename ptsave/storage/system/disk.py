"""Bytes of files: read and written by position, made durable, locked, shared; and what else a file has."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ptsave.storage import system

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

FICLONERANGE = 0x4020940D
"""Source: linux/fs.h, _IOW(0x94, 13, struct file_clone_range)."""
CLONE_BYTES = 4096
"""The unit of a reflink: offsets and lengths are multiples of the file system's block."""

_UNSUPPORTED = {
    getattr(errno, name)
    for name in ("EINVAL", "ENOSYS", "ENOTTY", "EOPNOTSUPP", "ENOTSUP", "EXDEV", "ENOLCK")
    if hasattr(errno, name)
}


def is_unsupported(error: OSError) -> bool:
    """Whether the system says that it lacks the call, as opposed to that the call failed."""
    return error.errno in _UNSUPPORTED


def again(call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """Call until no signal comes between: Python does so by itself except for calls on names.

    Source: PEP 475.
    """
    while True:
        try:
            call(*arguments, **named)
        except InterruptedError:
            continue
        return


def sync_file(fd: int) -> None:
    """Make a file's bytes durable. Never to be tried twice: after a failure the system forgets what was lost.

    Raises: OSError when the system tried and failed.
    """
    if sys.platform != "win32" and system.FULL_SYNC is not None:
        try:
            fcntl.fcntl(fd, system.FULL_SYNC)
        except OSError as error:
            if not is_unsupported(error):
                raise
        else:
            return
    os.fsync(fd)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable. Windows has no such call, and some file systems refuse it.

    Raises: OSError when the system tried and failed.
    """
    if not system.HAS_FOLDER_SYNC:
        return
    fd = os.open(folder, os.O_RDONLY | system.O_DIRECTORY | system.O_PLAIN)
    try:
        os.fsync(fd)
    except OSError as error:
        if not is_unsupported(error):
            raise
    finally:
        os.close(fd)


def reserve(fd: int, num_bytes: int) -> None:
    """Make `num_bytes` of the file real, so that a full disk shows before the first byte.

    Raises: OSError when there is no room.
    """
    if sys.platform == "linux" and num_bytes and system.HAS_FALLOCATE:
        try:
            os.posix_fallocate(fd, 0, num_bytes)
        except OSError as error:
            if not is_unsupported(error):
                raise
        else:
            return
    os.ftruncate(fd, num_bytes)


def lock(fd: int, *, wait: bool = False, shared: bool = False) -> bool | None:
    """Take the lock that says "its writer lives"; None where the platform or file system has none.

    `shared`: with whoever else asks so, to see that there is no writer.
    """
    if sys.platform == "win32":
        return None
    if not system.HAS_FLOCK:
        return None
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if is_unsupported(error):
            return None
        raise
    return True


def clone_range(source_fd: int, source_offset: int, num_bytes: int, fd: int, offset: int) -> bool:
    """Share `num_bytes` of blocks between two files; False where that cannot be done, for whatever reason.

    Nothing is lost then: the bytes are copied, and a disk that fails shows in the copy.
    """
    if sys.platform != "linux":
        return False
    if not system.HAS_CLONE:
        return False
    import struct

    try:
        fcntl.ioctl(fd, FICLONERANGE, struct.pack("=qQQQ", source_fd, source_offset, num_bytes, offset))
    except OSError:
        return False
    return True


def begin_writeback(fd: int, offset: int, num_bytes: int) -> None:
    """Have the disk begin with these bytes now, so that the fsync at the end finds little left to do.

    Linux starts to write what is dirty when it is told that it may drop it; what is not yet clean stays.
    """
    if sys.platform == "linux" and system.HAS_FADVISE:
        with contextlib.suppress(OSError):  # only advice
            os.posix_fadvise(fd, offset, num_bytes, os.POSIX_FADV_DONTNEED)


def read_some(fd: int, buffer: memoryview, offset_bytes: int, seeking: threading.Lock) -> int:
    """Read into `buffer` from `offset_bytes`; returns how many bytes came, 0 at the end of the file.

    `seeking` is held where the position has to be set first.
    """
    if sys.platform != "win32" and system.HAS_POSITIONS:
        return os.preadv(fd, [buffer], offset_bytes)
    with seeking:
        os.lseek(fd, offset_bytes, os.SEEK_SET)
        data = os.read(fd, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def read_small(fd: int, num_bytes: int, offset_bytes: int) -> bytes | None:
    """At most `num_bytes` bytes from `offset_bytes` in one call; None where there is no such call."""
    if sys.platform != "win32" and system.HAS_POSITIONS:
        return os.pread(fd, num_bytes, offset_bytes)
    return None


def write_some(fd: int, data: memoryview, offset_bytes: int, seeking: threading.Lock) -> int:
    """Write from `data` at `offset_bytes`; returns how many bytes went. `seeking` as for `read_some`."""
    if sys.platform != "win32" and system.HAS_POSITIONS:
        return os.pwrite(fd, data, offset_bytes)
    with seeking:
        os.lseek(fd, offset_bytes, os.SEEK_SET)
        return os.write(fd, data)


def is_read_only(folder: Path) -> bool:
    """Whether `folder`'s file system says that nothing can be written to it."""
    if sys.platform == "win32":
        return False
    if not system.HAS_STATVFS:
        return False
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def free_bytes(folder: Path) -> int | None:
    """Bytes that this user can still write on `folder`'s file system; None where it does not say."""
    import shutil

    if sys.platform == "win32":
        return shutil.disk_usage(folder).free
    if not system.HAS_STATVFS:
        return shutil.disk_usage(folder).free
    status = os.statvfs(folder)
    if not status.f_blocks:
        return None
    blocks = status.f_bfree if os.geteuid() == 0 else status.f_bavail
    return blocks * status.f_frsize


def may_replace(folder: os.stat_result, old: os.stat_result) -> bool:
    """Whether this user may replace the file `old` in `folder`: in a sticky one, only an owner of either."""
    if sys.platform == "win32":
        return True
    if not system.HAS_OWNERS or not folder.st_mode & stat.S_ISVTX:
        return True
    return os.geteuid() in (0, old.st_uid, folder.st_uid)


def keep_owner_and_mode(old_path: Path, old: os.stat_result, fd: int) -> None:
    """Give the file `fd` what the file `old` has beside its bytes, as far as this user may."""
    if sys.platform == "win32":
        return
    if not system.HAS_OWNERS:
        return
    new = os.fstat(fd)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with contextlib.suppress(PermissionError):  # only root may give files away
            os.fchown(fd, old.st_uid, old.st_gid)
    keep_attributes(old_path, fd)
    os.fchmod(fd, stat.S_IMODE(old.st_mode))


_SECURITY_LABELS = ("security.selinux", "security.SMACK64")
"""Of the attributes `security.*`, those that are about a file's place; the others are about its bytes."""
_ACL = "system.posix_acl_access"


def keep_attributes(old: Path, fd: int) -> None:
    """Give the file `fd` the extended attributes and access lists of `old`, as far as this user may.

    What the folder has given it in their place goes. What says of the old bytes what they are (a signature, a
    capability) is not kept. Only Linux has the calls.
    """
    if sys.platform != "linux":
        return
    if not system.HAS_ATTRIBUTES:
        return
    with contextlib.suppress(OSError):  # a file system without them
        names = os.listxattr(old, follow_symlinks=False)
        if _ACL not in names and _ACL in os.listxattr(fd):
            os.removexattr(fd, _ACL)
        for name in names:
            if not name.startswith("security.") or name in _SECURITY_LABELS:
                with contextlib.suppress(OSError):  # only root may set some
                    os.setxattr(fd, name, os.getxattr(old, name, follow_symlinks=False))


def others_may_read(fd: int) -> bool:
    """Whether users other than its owner may read the file. Windows says that otherwise: False there."""
    return system.HAS_OWNERS and bool(os.fstat(fd).st_mode & (stat.S_IRGRP | stat.S_IROTH))

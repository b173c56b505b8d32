"""What not every platform has: one named function each, with its plain fallback beside it.

The flags are read when a function is called, so that a test can force each fallback.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

IS_WINDOWS = os.name == "nt"
HAS_PWRITE = hasattr(os, "pwrite") and hasattr(os, "preadv")
HAS_FALLOCATE = hasattr(os, "posix_fallocate")
HAS_FLOCK = fcntl is not None
HAS_FOLDER_SYNC = not IS_WINDOWS
FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)
"""macOS: fsync leaves bytes in the disk's own cache, and this does not. Source: Apple's fsync(2)."""
HAS_LINK = hasattr(os, "link") and not IS_WINDOWS
HAS_FADVISE = sys.platform == "linux" and hasattr(os, "posix_fadvise")
HAS_CLONE = sys.platform == "linux" and fcntl is not None

FICLONERANGE = 0x4020940D
"""Source: linux/fs.h, _IOW(0x94, 13, struct file_clone_range)."""
CLONE_BYTES = 4096
"""The unit of a reflink: offsets and lengths are multiples of the file system's block."""
ORPHAN_SECONDS = 3600
"""Without flock: how long a dead process's temporary file must have been left alone to be litter."""

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
    if FULL_SYNC is not None:
        try:
            fcntl.fcntl(fd, FULL_SYNC)
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
    if not HAS_FOLDER_SYNC:
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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
    if num_bytes and HAS_FALLOCATE:
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
    if not HAS_FLOCK:
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


def is_orphan(pid: int, modified_seconds: float) -> bool:
    """Without a lock: whether the writer `pid` is gone and its file long untouched.

    The age guards against a writer on another machine, or in another container, that shares the folder.
    """
    if time.time() - modified_seconds < ORPHAN_SECONDS:
        return False
    if IS_WINDOWS:
        return True  # a file that is open there cannot be removed, which is the stronger guard
    return not is_alive(pid)


def is_alive(pid: int) -> bool:
    """Whether this machine has a process of that number; True where that cannot be asked."""
    if IS_WINDOWS:  # there the question would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def rename_new(source: Path, target: Path) -> None:
    """Give `source` the name `target`, which must be free. Where links exist, nothing can come between.

    Raises: FileExistsError when the name is taken; OSError.
    """
    if HAS_LINK:
        try:
            again(os.link, source, target, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError as error:
            if not is_unsupported(error) and error.errno not in (errno.EPERM, errno.EMLINK):
                raise
        else:
            if not os.path.lexists(target):
                raise OSError(errno.EIO, "the system reported a name that it did not make")
            with contextlib.suppress(OSError):  # left over, it is litter that the next write removes
                again(os.unlink, source)
            return
    if not IS_WINDOWS and os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    rename(source, target)  # on Windows this refuses by itself to replace a file


def rename(source: Path, target: Path, *, replace: bool = False) -> None:
    """Give `source` the name `target`, and see that it was done: a file that kept its old name is lost.

    Raises: OSError.
    """
    again(os.replace if replace else os.rename, source, target)
    if os.path.lexists(source):
        raise OSError(errno.EIO, "the system reported a renaming that it did not do")


def clone_range(source_fd: int, source_offset: int, num_bytes: int, fd: int, offset: int) -> bool:
    """Share `num_bytes` of blocks between two files; False where that cannot be done, for whatever reason.

    Nothing is lost then: the bytes are copied, and a disk that fails shows in the copy.
    """
    if not HAS_CLONE:
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
    if HAS_FADVISE:
        with contextlib.suppress(OSError):  # only advice
            os.posix_fadvise(fd, offset, num_bytes, os.POSIX_FADV_DONTNEED)


_SECURITY_LABELS = ("security.selinux", "security.SMACK64")
"""Of the attributes `security.*`, those that are about a file's place; the others are about its bytes."""
_ACL = "system.posix_acl_access"


def keep_attributes(old: Path, fd: int) -> None:
    """Give the file `fd` the extended attributes and access lists of `old`, as far as this user may.

    What the folder has given it in their place goes. What says of the old bytes what they are (a signature, a
    capability) is not kept. Only Linux has the calls.
    """
    if not hasattr(os, "listxattr"):
        return
    with contextlib.suppress(OSError):  # a file system without them
        names = os.listxattr(old, follow_symlinks=False)
        if _ACL not in names and _ACL in os.listxattr(fd):
            os.removexattr(fd, _ACL)
        for name in names:
            if not name.startswith("security.") or name in _SECURITY_LABELS:
                with contextlib.suppress(OSError):  # only root may set some
                    os.setxattr(fd, name, os.getxattr(old, name, follow_symlinks=False))


def is_read_only(folder: Path) -> bool:
    """Whether `folder`'s file system says that nothing can be written to it."""
    return hasattr(os, "statvfs") and bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def free_bytes(folder: Path) -> int | None:
    """Bytes that this user can still write on `folder`'s file system; None where it does not say."""
    if not hasattr(os, "statvfs"):
        import shutil

        return shutil.disk_usage(folder).free
    status = os.statvfs(folder)
    if not status.f_blocks:
        return None
    blocks = status.f_bfree if os.geteuid() == 0 else status.f_bavail
    return blocks * status.f_frsize

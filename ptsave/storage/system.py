"""What not every platform has: one named function each, with its plain fallback beside it.

The flags are read when a function is called, so that a test can force each fallback. A condition on
`sys.platform` stands beside a flag where the type checker has to see that the call is not there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mmap
if sys.platform == "win32":
    fcntl = None
else:
    import fcntl
    import resource  # which is a file: once it is needed, none can be opened

IS_WINDOWS = sys.platform == "win32"
HAS_POSITIONS = hasattr(os, "pwrite") and hasattr(os, "preadv")
"""False on Windows, where a read or write by position is a seek and a read or write under a lock."""
HAS_DIR_FD = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
"""False on Windows, where a file of a folder is opened by its path."""
HAS_FALLOCATE = hasattr(os, "posix_fallocate")
HAS_FLOCK = not IS_WINDOWS
HAS_FOLDER_SYNC = not IS_WINDOWS
FULL_SYNC: int | None = None if sys.platform == "win32" else getattr(fcntl, "F_FULLFSYNC", None)
"""macOS: fsync leaves bytes in the disk's own cache, and this does not. Source: Apple's fsync(2)."""
HAS_LINK = hasattr(os, "link") and not IS_WINDOWS
HAS_AFFINITY = sys.platform == "linux"
HAS_FADVISE = hasattr(os, "posix_fadvise")
HAS_CLONE = sys.platform == "linux"
HAS_OWNERS = not IS_WINDOWS
HAS_ATTRIBUTES = hasattr(os, "listxattr")
HAS_STATVFS = hasattr(os, "statvfs")

O_DIRECTORY: int = getattr(os, "O_DIRECTORY", 0)
O_NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
O_NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)
O_PLAIN: int = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""For every file: not inherited by a program that this one starts, and its bytes as they are."""

MAX_NAME_BYTES = 255
"""Of one file name, where the file system does not say."""
MAX_OPEN_FILES = 65_536
"""How many files this process asks to have open: a checkpoint can have thousands."""
WIPE_ON_FORK = 18
"""Linux's MADV_WIPEONFORK, which Python does not name: a fork (a DataLoader's worker) gets zeros in place of
the memory, so that neither side pays for a copy of it. Source: madvise(2)."""

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
    if sys.platform != "win32" and FULL_SYNC is not None:
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
    fd = os.open(folder, os.O_RDONLY | O_DIRECTORY | O_PLAIN)
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
    if sys.platform == "linux" and num_bytes and HAS_FALLOCATE:
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


def machine() -> str:
    """What tells whose numbers of processes are ours: a digest of the boot and the namespace; or nothing."""
    import hashlib  # OpenSSL comes with it, which reading takes nothing of

    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read()
        told = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except (OSError, ValueError):
        return ""
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def start_of(pid: int) -> str:
    """What tells the process `pid` from others that had its number: when it began, in ticks since the boot.

    Empty where there is none, or it is not shown.

    Source: proc_pid_stat(5), field 22; the name before it, in parentheses, may hold anything.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    if fields[0] in (b"Z", b"X"):  # its parent has not asked yet how it ended
        return "ended"
    return fields[19].decode("ascii")


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
    if sys.platform != "linux":
        return False
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
    if sys.platform == "linux" and HAS_FADVISE:
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
    if sys.platform != "linux":
        return
    if not HAS_ATTRIBUTES:
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
    if sys.platform == "win32":
        return False
    if not HAS_STATVFS:
        return False
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def free_bytes(folder: Path) -> int | None:
    """Bytes that this user can still write on `folder`'s file system; None where it does not say."""
    import shutil

    if sys.platform == "win32":
        return shutil.disk_usage(folder).free
    if not HAS_STATVFS:
        return shutil.disk_usage(folder).free
    status = os.statvfs(folder)
    if not status.f_blocks:
        return None
    blocks = status.f_bfree if os.geteuid() == 0 else status.f_bavail
    return blocks * status.f_frsize


def read_some(fd: int, buffer: memoryview, offset_bytes: int, seeking: threading.Lock) -> int:
    """Read into `buffer` from `offset_bytes`; returns how many bytes came, 0 at the end of the file.

    `seeking` is held where the position has to be set first.
    """
    if sys.platform != "win32" and HAS_POSITIONS:
        return os.preadv(fd, [buffer], offset_bytes)
    with seeking:
        os.lseek(fd, offset_bytes, os.SEEK_SET)
        data = os.read(fd, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def read_small(fd: int, num_bytes: int, offset_bytes: int) -> bytes | None:
    """At most `num_bytes` bytes from `offset_bytes` in one call; None where there is no such call."""
    if sys.platform != "win32" and HAS_POSITIONS:
        return os.pread(fd, num_bytes, offset_bytes)
    return None


def write_some(fd: int, data: memoryview, offset_bytes: int, seeking: threading.Lock) -> int:
    """Write from `data` at `offset_bytes`; returns how many bytes went. `seeking` as for `read_some`."""
    if sys.platform != "win32" and HAS_POSITIONS:
        return os.pwrite(fd, data, offset_bytes)
    with seeking:
        os.lseek(fd, offset_bytes, os.SEEK_SET)
        return os.write(fd, data)


def allow_more_open_files() -> bool:
    """Raise this process's limit on open files as far as it may; False where there is nothing to raise."""
    if sys.platform != "win32":
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return True
    return False


def max_name_bytes(folder: Path) -> int:
    """How long one name in `folder` may be."""
    if sys.platform == "win32":
        return MAX_NAME_BYTES
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError):
        return MAX_NAME_BYTES


def may_replace(folder: os.stat_result, old: os.stat_result) -> bool:
    """Whether this user may replace the file `old` in `folder`: in a sticky one, only an owner of either."""
    if sys.platform == "win32":
        return True
    if not HAS_OWNERS or not folder.st_mode & stat.S_ISVTX:
        return True
    return os.geteuid() in (0, old.st_uid, folder.st_uid)


def keep_owner_and_mode(old_path: Path, old: os.stat_result, fd: int) -> None:
    """Give the file `fd` what the file `old` has beside its bytes, as far as this user may."""
    if sys.platform == "win32":
        return
    if not HAS_OWNERS:
        return
    new = os.fstat(fd)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with contextlib.suppress(PermissionError):  # only root may give files away
            os.fchown(fd, old.st_uid, old.st_gid)
    keep_attributes(old_path, fd)
    os.fchmod(fd, stat.S_IMODE(old.st_mode))


def others_may_read(fd: int) -> bool:
    """Whether users other than its owner may read the file. Windows says that otherwise: False there."""
    return HAS_OWNERS and bool(os.fstat(fd).st_mode & (stat.S_IRGRP | stat.S_IROTH))


def set_non_blocking(fd: int) -> None:
    """Have a write to the pipe `fd` fail when the pipe is full. Windows' pipes cannot."""
    if sys.platform != "win32":
        os.set_blocking(fd, False)


def num_cores() -> int:
    """How many cores this process may use."""
    if sys.platform == "linux" and HAS_AFFINITY:
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def private_memory(num_bytes: int) -> mmap.mmap:
    """Fresh memory that a fork does not share."""
    import mmap

    if sys.platform == "win32":
        return mmap.mmap(-1, num_bytes)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # only advice
            memory.madvise(WIPE_ON_FORK)
    return memory


def trim_memory() -> None:
    """Have the C library give freed memory back to the system, where it is one (glibc) that keeps it.

    Freed weights would otherwise stay beside the next ones: what threads have freed is not found again by
    others.
    """
    if sys.platform == "linux":
        import ctypes  # takes milliseconds that `inspect` has no use for

        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


_IN_USE = (32, 1224)
"""Windows' ERROR_SHARING_VIOLATION and ERROR_USER_MAPPED_FILE. Source: Microsoft, "System Error Codes"."""
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{kind}{i}" for kind in ("COM", "LPT") for i in "123456789¹²³")}
_VERBATIM = "\\\\?\\"
_LONG_CHARS = 140
"""From what length on a path is given as it is: a temporary name beside it, or a name in it, adds some."""


def why_not_a_name(name: str) -> str:
    """Why no file can be called `name` on this platform, in words; empty where one can."""
    return refused_by_windows(name) if IS_WINDOWS else ""


def refused_by_windows(name: str) -> str:
    """Why no file on Windows can be called `name`, in words; empty where one can.

    A colon would write into a stream of another file, and a device's name into the device.

    Source: Microsoft, "Naming Files, Paths, and Namespaces".
    """
    if found := next((letter for letter in name if letter in '<>:"/\\|?*' or ord(letter) < 32), ""):
        return f"Windows allows no {found!r} in a name"
    if name.endswith((".", " ")):
        return "Windows drops a dot or a space at the end of a name"
    if name.partition(".")[0].rstrip(" ").upper() in _DEVICES:
        return f"Windows keeps the name {name.partition('.')[0]!r} for a device"
    return ""


def reachable(path: Path) -> Path:
    r"""`path` in the form in which the system takes any length: on Windows `\\?\C:\…` where it is long.

    Without that Windows takes 259 characters, unless it was told otherwise.

    Source: Microsoft, "Maximum Path Length Limitation".
    """
    if not IS_WINDOWS:
        return path
    text = os.path.abspath(path)
    if len(text) < _LONG_CHARS or text.startswith(_VERBATIM):
        return path
    return Path(f"{_VERBATIM}UNC{text[1:]}" if text.startswith("\\\\") else f"{_VERBATIM}{text}")


def is_in_use(path: Path) -> bool:
    """Whether a process has the file open so that nobody can replace or remove it, which only Windows has.

    It is asked by renaming the file to the name that it has.
    """
    if not IS_WINDOWS:
        return False
    try:
        os.rename(path, path)
    except OSError as error:
        return means_in_use(error)
    return False


def means_in_use(error: OSError) -> bool:
    """Whether the system says that a process has the file open or mapped; only Windows refuses for that."""
    return getattr(error, "winerror", 0) in _IN_USE


def after_fork(forget: Callable[[], None]) -> None:
    """Have every fork of this process call `forget` first; where there are no forks, nothing."""
    if sys.platform != "win32":
        os.register_at_fork(after_in_child=forget)

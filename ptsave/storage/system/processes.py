"""This process and others: its cores, memory and forks, and which processes live."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ptsave.storage import system

if TYPE_CHECKING:
    import mmap
if sys.platform != "win32":
    import resource  # which is a file: once it is needed, none can be opened

MAX_OPEN_FILES = 65_536
"""How many files this process asks to have open: a checkpoint can have thousands."""
WIPE_ON_FORK = 18
"""Linux's MADV_WIPEONFORK, which Python does not name: a fork (a DataLoader's worker) gets zeros in place of
the memory, so that neither side pays for a copy of it. Source: madvise(2)."""
ORPHAN_SECONDS = 3600
"""Without flock: how long a dead process's temporary file must have been left alone to be litter."""


def is_orphan(pid: int, modified_seconds: float) -> bool:
    """Without a lock: whether the writer `pid` is gone and its file long untouched.

    The age guards against a writer on another machine, or in another container, that shares the folder.
    """
    if time.time() - modified_seconds < ORPHAN_SECONDS:
        return False
    if system.IS_WINDOWS:
        return True  # a file that is open there cannot be removed, which is the stronger guard
    return not is_alive(pid)


def is_alive(pid: int) -> bool:
    """Whether this machine has a process of that number; True where that cannot be asked."""
    if system.IS_WINDOWS:  # there the question would end it
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


def after_fork(forget: Callable[[], None]) -> None:
    """Have every fork of this process call `forget` first; where there are no forks, nothing."""
    if sys.platform != "win32":
        os.register_at_fork(after_in_child=forget)


def num_cores() -> int:
    """How many cores this process may use."""
    if sys.platform == "linux" and system.HAS_AFFINITY:
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


TOO_MANY_OPEN = "too many files are open"
MORE_MAY_BE_OPEN = "raise the limit: `ulimit -n`"
"""What to do where no more files may be opened."""


def allow_more_open_files() -> bool:
    """Raise this process's limit on open files as far as it may; False where there is nothing to raise."""
    if sys.platform != "win32":
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return True
    return False


def set_non_blocking(fd: int) -> None:
    """Have a write to the pipe `fd` fail when the pipe is full. Windows' pipes cannot."""
    if sys.platform != "win32":
        os.set_blocking(fd, False)


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

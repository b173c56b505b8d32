"""One training a folder: who writes a run's checkpoints holds its lock until it ends, however it ends.

The lock is the system's own on a small file, which the system takes back when its process dies. Where a file
system has no locks (and on Windows) the file itself is a lease: its holder renews its time, and one that was
not renewed for a while counts for nothing. The keepers of one process share a lock. Reading takes none.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from ptsave.errors import PtsaveError, RefusedError
from ptsave.storage import system
from ptsave.storage.atomic import let_go_when_forked, still_ours
from ptsave.storage.write_errors import errors_of

NAME = ".ptsave-lock"
"""The file in the run's folder; it holds one JSON object that says whose it is."""
PATIENCE_SECONDS = 1.0
"""How long a lock is asked for: one that only looks whether there is a holder holds it for a moment."""
RENEW_SECONDS = 30.0
"""How often a lease is renewed."""
LEASE_SECONDS = 300.0
"""After what time without renewal a lease counts for nothing; the clocks of two hosts may differ by less."""
MAX_BYTES = 4096

_mine: dict[tuple[int, int], RunLock] = {}
"""Device and inode of a folder → the lock that this process holds there."""
_guard = threading.Lock()


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as the file says."""

    host: str = ""
    pid: int = 0
    since: str = ""
    token: str = ""

    def __str__(self) -> str:
        if not self.host:
            return "another process"
        return f"process {self.pid} on {self.host}, since {self.since}"


class RunLock:
    """The lock of one folder, held by this process until the last of its keepers has let go."""

    def __init__(self, folder: Path) -> None:
        """Take the lock of `folder`, which is there; use `take`.

        Raises: RefusedError naming the holder; WriteError.
        """
        self.path = folder / NAME
        self.num_keepers = 0
        """How many have taken it."""
        self._pid = os.getpid()
        now = time.strftime("%Y-%m-%d %H:%M:%S %z")
        self._holder = Holder(socket.gethostname(), self._pid, now, os.urandom(8).hex())
        self._fd = -1
        self._is_lease = False
        self._stop = threading.Event()
        end = time.monotonic() + PATIENCE_SECONDS
        with errors_of(self.path):
            while not self._try():
                if time.monotonic() > end:
                    raise _refused(folder, holder_of(folder))
                time.sleep(0.05)

    def _try(self) -> bool:
        """Take the lock if it is free; False where another process has it, or was quicker."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        is_new = not os.path.lexists(self.path)
        fd = os.open(self.path, flags, 0o666)
        is_mine = False
        try:
            locked = system.lock(fd)
            if locked is None and not is_new and not _is_stale(fd):
                return False
            is_mine = locked is not False and self._is_at_path(fd)
            if is_mine:
                os.ftruncate(fd, 0)
                os.write(fd, json.dumps(vars(self._holder)).encode() + b"\n")
        finally:
            if not is_mine:
                os.close(fd)
        if not is_mine:
            return False
        if locked is None:
            os.close(fd)
            self._is_lease = True
            time.sleep(0.05)  # another one that took it at the same time has written by now
            if not self._is_ours():
                return False
            threading.Thread(target=self._renew, daemon=True, name="ptsave lease").start()
        else:
            self._fd = let_go_when_forked(fd)
        return True

    def _is_at_path(self, fd: int) -> bool:
        """Whether the file that was locked is the one that others will find."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(fd), os.stat(self.path))
        return False

    def _is_ours(self) -> bool:
        return _read(self.path).token == self._holder.token

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            if os.getpid() != self._pid or not self._is_ours():
                return
            with contextlib.suppress(OSError):  # the next time; a lease outlasts several of them
                os.utime(self.path)

    @property
    def is_in_place(self) -> bool:
        """Whether there is still a file: with the run's folder, or for its own sake, it may be removed."""
        return os.path.lexists(self.path)

    def check(self) -> None:
        """Insist that the file still says that the lock is this process's.

        Raises: RefusedError.
        """
        if not self._is_ours():
            raise _refused(self.path.parent, _read(self.path))

    def release(self) -> None:
        """Let the next one have it."""
        self._stop.set()
        is_ours = os.getpid() == self._pid and self._is_ours()
        with contextlib.suppress(OSError):
            if is_ours:
                os.unlink(self.path)
        if self._fd >= 0 and still_ours(self._fd):
            os.close(self._fd)
        self._fd = -1


def take(folder: Path) -> RunLock:
    """The lock of `folder`, for one more keeper of this process; `give_back` lets go of it.

    Raises: RefusedError where another process has it, naming that; WriteError.
    """
    with errors_of(folder):
        status = os.stat(folder)
    with _guard:
        known = _mine.get((status.st_dev, status.st_ino))
        if known is not None and not known.is_in_place:
            known.release()
            known = None
        if known is None:
            known = _mine[status.st_dev, status.st_ino] = RunLock(folder)
        else:
            known.check()
        known.num_keepers += 1
        return known


def give_back(lock: RunLock) -> None:
    """Let go of a lock that `take` gave; the last one to do so releases it."""
    with _guard:
        lock.num_keepers -= 1
        if lock.num_keepers == 0 and lock in _mine.values():
            for key in [key for key, value in _mine.items() if value is lock]:
                del _mine[key]
            lock.release()


def holder_of(folder: Path) -> Holder | None:
    """Who holds the lock of `folder`, of other processes; None where nobody does, or it cannot be told."""
    path = folder / NAME
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in _mine:
            return None  # this process's own
        is_free = system.lock(fd, shared=True)
        is_held = not is_free if is_free is not None else not _is_stale(fd)
        return _read(path) if is_held else None
    except (OSError, PtsaveError):
        return None
    finally:
        os.close(fd)


def _is_stale(fd: int) -> bool:
    """Whether the lease counts for nothing: not renewed for long, or of a process that is gone."""
    status = os.fstat(fd)
    holder = _parsed(system.read_small(fd, MAX_BYTES, 0) or b"")
    is_gone = holder.host == socket.gethostname() and not system.is_alive(holder.pid)
    return is_gone or time.time() - status.st_mtime > LEASE_SECONDS


def _read(path: Path) -> Holder:
    try:
        with open(path, "rb") as file:
            return _parsed(file.read(MAX_BYTES))
    except OSError:
        return Holder()


def _parsed(data: bytes) -> Holder:
    try:
        said = json.loads(data)
        return Holder(str(said["host"])[:255], int(said["pid"]), str(said["since"])[:64], str(said["token"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return Holder()


def _refused(folder: Path, holder: Holder | None) -> RefusedError:
    return RefusedError(
        f"another training writes its checkpoints here: {holder or Holder()}",
        str(folder),
        f"stop it, or name another folder (a host that is gone for good leaves {NAME}: remove it)",
    )


def _forget() -> None:
    """In a fork, which holds nothing of its parent's."""
    global _guard
    _guard = threading.Lock()
    _mine.clear()


system.after_fork(_forget)

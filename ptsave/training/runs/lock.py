"""One training per folder: who writes a run's checkpoints holds its lock until the process ends.

On a disk the lock is the system's own on a small file, which the system takes back when its process dies: a
flock, or on Windows that the file is open, since nobody can remove it then. Where a file system has no locks
the file itself is a lease: its holder renews its time, and one that was not renewed for a while counts for
nothing. In a store it is a lease as well: see `lease`. The keepers of one process share a lock. Reading takes
none.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ptsave.core.address import Address, Location
from ptsave.errors import PtsaveError, RefusedError
from ptsave.storage import system
from ptsave.storage.atomic import let_go_when_forked, still_ours
from ptsave.storage.system import disk, naming, processes
from ptsave.storage.write_errors import errors_of

NAME = ".ptsave-lock"
"""The file, or the object, in the run's folder; it holds one JSON object that says whose it is."""
PATIENCE_SECONDS = 1.0
"""How long a lock is asked for: one that only looks whether there is a holder holds it for a moment."""
RENEW_SECONDS = 30.0
"""How often a lease is renewed."""
LEASE_SECONDS = 300.0
"""After what time without renewal a lease counts for nothing; the clocks of two hosts may differ by less."""
MAX_BYTES = 4096

_mine: dict[Hashable, Lock] = {}
"""Device and inode of a folder, or its address → the lock that this process holds there."""
_guard = threading.Lock()


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as it says itself."""

    host: str = ""
    pid: int = 0
    since: str = ""
    token: str = ""
    machine: str = ""
    """Whose numbers of processes `pid` is one of; empty where the platform does not tell."""
    started: str = ""
    """What tells the process from a later one of its number."""

    def __str__(self) -> str:
        if not self.host:
            return "another process"
        return f"process {self.pid} on {self.host}, since {self.since}"

    @classmethod
    def here(cls, token: str) -> Holder:
        """This process, from now on."""
        pid = os.getpid()
        now = time.strftime("%Y-%m-%d %H:%M:%S %z")
        machine, started = processes.machine(), processes.start_of(pid)
        return cls(socket.gethostname(), pid, now, token, machine, started)

    @classmethod
    def parsed(cls, data: bytes) -> Holder:
        """What a lock says of its holder; as little as nothing."""
        try:
            said = json.loads(data)
            known = cls(
                str(said["host"])[:255], int(said["pid"]), str(said["since"])[:64], str(said["token"])
            )
            return replace(known, machine=str(said.get("machine", "")), started=str(said.get("started", "")))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return cls()

    @property
    def lives(self) -> bool | None:
        """Whether the process is still there; None where it cannot be told from here."""
        if not self.machine or self.machine != processes.machine():
            return None
        started = processes.start_of(self.pid)
        if not started and processes.is_alive(self.pid):  # another user's, which is not shown
            return None
        return started == self.started


class Lock(ABC):
    """The lock of one folder, held by this process until the last of its keepers has let go."""

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self.num_keepers = 0
        """How many have taken it."""
        self.busy: set[str] = set()
        """The names of the checkpoints that they are writing now."""
        self._pid = os.getpid()
        self._stop = threading.Event()

    @property
    @abstractmethod
    def is_in_place(self) -> bool:
        """Whether there is still a lock: with the run's folder, or for its own sake, it may be removed."""

    @abstractmethod
    def check(self) -> None:
        """Insist that the lock is still this process's.

        Raises: RefusedError naming the process that has it; WriteError.
        """

    @abstractmethod
    def release(self) -> None:
        """Let the next one have it."""

    def give_back(self) -> None:
        """Let go of what `take` gave; the last one to do so releases it."""
        with _guard:
            self.num_keepers -= 1
            if self.num_keepers == 0 and self in _mine.values():
                for key in [key for key, value in _mine.items() if value is self]:
                    del _mine[key]
                self.release()

    def _keep_renewing(self, every_seconds: float) -> None:
        """Renew a lease from now on, on a thread, until it is lost or released."""

        def run() -> None:
            while not self._stop.wait(every_seconds):
                if os.getpid() != self._pid or not self._renew():
                    return

        threading.Thread(target=run, daemon=True, name="ptsave lease").start()

    def _renew(self) -> bool:
        """Renew the lease; False when it is lost. Never raises: the next time may do."""
        return False


class FileLock(Lock):
    """The lock of a folder on a disk."""

    def __init__(self, folder: Path) -> None:
        """Take the lock of `folder`, which is there; use `take`.

        Raises: RefusedError naming the holder; WriteError.
        """
        super().__init__(folder)
        self.path = folder / NAME
        self._holder = Holder.here(os.urandom(8).hex())
        self._fd = -1
        end = time.monotonic() + PATIENCE_SECONDS
        with errors_of(self.path):
            while not self._try():
                if time.monotonic() > end:
                    raise refused(folder, holder_of(folder))
                time.sleep(0.05)

    def _try(self) -> bool:
        """Take the lock if it is free; False where another process has it, or was quicker."""
        if system.IS_WINDOWS:
            return self._try_to_remove()
        flags = os.O_RDWR | os.O_CREAT | system.O_NOFOLLOW | system.O_PLAIN
        is_new = not os.path.lexists(self.path)
        fd = os.open(self.path, flags, 0o666)
        is_mine = False
        try:
            locked = disk.lock(fd)
            if locked is None and not is_new and not _is_stale(fd):
                return False
            is_mine = locked is not False and self._is_at_path(fd)
            if is_mine:
                os.ftruncate(fd, 0)
                self._sign(fd)
        finally:
            if not is_mine:
                os.close(fd)
        if not is_mine:
            return False
        if locked is None:
            os.close(fd)
            time.sleep(0.05)  # another one that took it at the same time has written by now
            if not self._is_ours():
                return False
            self._keep_renewing(RENEW_SECONDS)
        else:
            self._fd = let_go_when_forked(fd)
        return True

    def _try_to_remove(self) -> bool:
        """Take the lock on Windows: its holder has the file open, so that nobody else can remove it."""
        with contextlib.suppress(FileNotFoundError):
            try:
                os.unlink(self.path)
            except PermissionError:
                return False
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | system.O_PLAIN, 0o666)
        except (FileExistsError, PermissionError):  # one that was quicker; one that is being removed
            return False
        self._fd = let_go_when_forked(fd)
        self._sign(fd)
        return True

    def _sign(self, fd: int) -> None:
        """Say in the lock's file whose it is."""
        os.write(fd, json.dumps(asdict(self._holder)).encode() + b"\n")

    def _is_at_path(self, fd: int) -> bool:
        """Whether the file that was locked is the one that others will find."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(fd), os.stat(self.path))
        return False

    def _is_ours(self) -> bool:
        return _read(self.path).token == self._holder.token

    def _renew(self) -> bool:
        if not self._is_ours():
            return False
        with contextlib.suppress(OSError):  # the next time; a lease outlasts several of them
            os.utime(self.path)
        return True

    @property
    def is_in_place(self) -> bool:
        return os.path.lexists(self.path)

    def check(self) -> None:
        if not self._is_ours():
            raise refused(self.folder, _read(self.path))

    def release(self) -> None:
        self._stop.set()
        is_ours = os.getpid() == self._pid and self._is_ours()
        if system.IS_WINDOWS:  # which removes no file that is open
            self._close()
        with contextlib.suppress(OSError):
            if is_ours:
                os.unlink(self.path)
        self._close()

    def _close(self) -> None:
        if self._fd >= 0 and still_ours(self._fd):
            os.close(self._fd)
        self._fd = -1


def take(key: Hashable, make: Callable[[], Lock]) -> Lock:
    """The lock that this process holds under `key`, for one more keeper; made where it holds none.

    Raises: RefusedError where another process has it, naming that; WriteError.
    """
    with _guard:
        known = _mine.get(key)
        if known is not None and not known.is_in_place:
            known.release()
            known = None
        if known is None:
            known = _mine[key] = make()
        else:
            known.check()
        known.num_keepers += 1
        return known


def is_mine(key: Hashable) -> bool:
    """Whether this process holds the lock under `key`."""
    return key in _mine


def holder_of(folder: Path) -> Holder | None:
    """Who holds the lock of `folder`, of other processes; None where nobody does, or it cannot be told."""
    path = folder / NAME
    try:
        status = os.stat(folder)
        if is_mine((status.st_dev, status.st_ino)):
            return None  # this process's own
        if system.IS_WINDOWS:
            return _read(path) if naming.is_in_use(path) else None
        fd = os.open(path, os.O_RDONLY | system.O_NOFOLLOW | system.O_NONBLOCK | system.O_PLAIN)
    except OSError:
        return None
    try:
        is_free = disk.lock(fd, shared=True)
        is_held = not is_free if is_free is not None else not _is_stale(fd)
        return _read(path) if is_held else None
    except (OSError, PtsaveError):
        return None
    finally:
        os.close(fd)


def _is_stale(fd: int) -> bool:
    """Whether the lease counts for nothing: not renewed for long, or of a process that is gone."""
    status = os.fstat(fd)
    holder = Holder.parsed(disk.read_small(fd, MAX_BYTES, 0) or b"")
    is_gone = holder.host == socket.gethostname() and not processes.is_alive(holder.pid)
    return is_gone or holder.lives is False or time.time() - status.st_mtime > LEASE_SECONDS


def _read(path: Path) -> Holder:
    try:
        with open(path, "rb") as file:
            return Holder.parsed(file.read(MAX_BYTES))
    except OSError:
        return Holder()


def refused(folder: Location, holder: Holder | None) -> RefusedError:
    """The error for a folder that another training saves in."""
    left = "it ends by itself" if isinstance(folder, Address) else "remove it"
    return RefusedError(
        f"another training writes its checkpoints here: {holder or Holder()}",
        str(folder),
        f"stop it, or name another folder (a host that is gone for good leaves {NAME}: {left})",
    )


def _forget() -> None:
    """In a fork, which holds nothing of its parent's."""
    global _guard
    _guard = threading.Lock()
    _mine.clear()


processes.after_fork(_forget)

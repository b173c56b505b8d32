"""A lock that a fork does not inherit from a thread that is not in it."""

from __future__ import annotations

import threading

from ptsave.storage.system import processes


class Turn:
    """A lock that one thread has at a time, again and again. Made once, when a module is imported."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holder = 0
        self._depth = 0
        processes.after_fork(self._forget_others)

    def __enter__(self) -> None:
        self._lock.acquire()
        self._holder = threading.get_ident()
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._holder = 0
        self._lock.release()

    def _forget_others(self) -> None:
        if self._holder != threading.get_ident():
            self._lock, self._holder, self._depth = threading.RLock(), 0, 0

"""One piece of work at a time on a thread of its own, whose failure is raised to whoever waits for it.

The thread is not a daemon: at exit the interpreter waits until the thread is done. A failure that nobody has
waited for by then is reported like an uncaught exception.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable

SWITCH_SECONDS = 0.0005
"""How long the work may keep the training loop waiting for the interpreter, in place of Python's 5 ms."""

_unreported: set[Background] = set()
"""Those with work in flight, or with a failure that was not raised yet."""


class Background:
    """Where work is done while the caller goes on."""

    def __init__(self) -> None:
        self._job: _Job | None = None
        self._process = os.getpid()

    def start(self, work: Callable[[], None], name: str) -> None:
        """Begin `work`, called `name` in messages, when what was begun before is done.

        Raises: what the work before raised; then this one is not begun.
        """
        self.wait()
        self._process = os.getpid()
        job = _Job(work, name)
        try:
            self._job = job
            _unreported.add(self)
            job.thread.start()
        except RuntimeError:  # no thread is to be had: limits, or the interpreter is on its way out
            job.run()
        except BaseException:
            job.cancel()  # an interrupt; what is under way already goes on
            raise

    def wait(self) -> None:
        """Return when the work in flight, if any, is done.

        Raises: what it raised, once.
        """
        job = self._job
        if job is None:
            return
        if self._process != os.getpid():  # a fork: the work is its parent's
            self._job = None
            _unreported.discard(self)
            return
        job.done.wait()
        self._job = None
        _unreported.discard(self)
        if job.error is not None:
            raise job.error


class _Job:
    """Work that is done at most once."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self.name = name
        self.thread = threading.Thread(target=self.run, name=name)
        self.done = threading.Event()
        self.error: BaseException | None = None
        self._work: Callable[[], None] | None = work
        self._claim = threading.Lock()

    def run(self) -> None:
        with self._claim:
            work, self._work = self._work, None
        if work is None:
            return
        try:
            with _yielding:
                work()
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()

    def cancel(self) -> None:
        """See that it is not begun, if it has not been."""
        with self._claim:
            if self._work is not None:
                self._work = None
                self.done.set()


class _Yielding:
    """While any work is in flight, threads hand the interpreter over more often than Python has them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._before = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._num_inside:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(self._before, SWITCH_SECONDS))
            self._num_inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if not self._num_inside:
                sys.setswitchinterval(self._before)


_yielding = _Yielding()


@atexit.register
def _report() -> None:
    """Report what failed and was never waited for, and what an interrupt has kept from being waited for."""
    for background in list(_unreported):
        job = background._job
        if job is None or background._process != os.getpid():
            continue
        error = job.error
        if not job.done.is_set():
            error = RuntimeError(f"{job.name} was not finished")
        if error is not None:
            sys.excepthook(type(error), error, error.__traceback__)

"""Two threads that share a list of tasks, and stop together."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence

from ptsave.core.storage import BLOCK_BYTES

NUM_THREADS = 2
"""Measured: two threads beat one, more do not beat two."""


class CancelledError(Exception):
    """A task noticed that it is no longer wanted: what is raised is the error of another."""


Stopped = Callable[[], bool]
Task = tuple[int, Callable[[memoryview, Stopped], None]]
"""Its size, and what does it, given a buffer of BUFFER_BYTES and a way to see that it is no longer wanted."""
BUFFER_BYTES = 2 * BLOCK_BYTES


def run_tasks(tasks: Sequence[Task]) -> None:
    """Do every task, the largest first, on NUM_THREADS threads of which the caller's is one.

    The first error of any thread stops all, and is raised when all have stopped. An interrupt does too.
    """
    queue = iter(sorted(tasks, key=lambda task: -task[0]))
    lock = threading.Lock()
    stop = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        buffer = memoryview(bytearray(BUFFER_BYTES))
        try:
            while not stop.is_set():
                with lock:
                    task = next(queue, None)
                if task is None:
                    return
                task[1](buffer, stop.is_set)
        except BaseException as error:
            errors.append(error)
            stop.set()

    helpers = [threading.Thread(target=run, daemon=True) for _ in range(min(NUM_THREADS, len(tasks)) - 1)]
    try:
        for helper in helpers:
            with contextlib.suppress(RuntimeError):  # no thread is to be had: the caller's does it all
                helper.start()
        run()
    except BaseException as error:  # an interrupt that came between two lines
        errors.append(error)
        stop.set()
    for helper in helpers:
        _join(helper, stop, errors)
    if errors:
        raise errors[0]


def _join(helper: threading.Thread, stop: threading.Event, errors: list[BaseException]) -> None:
    """Wait for `helper`. It must be gone before its file is closed, so an interrupt only hurries it."""
    while helper.is_alive():
        try:
            helper.join()
        except BaseException as error:
            errors.append(error)
            stop.set()

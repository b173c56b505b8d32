"""Threads that share a list of tasks, and stop together."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence

from ptsave.core.storage import BLOCK_BYTES
from ptsave.errors import UsageError
from ptsave.storage.system import processes

MAX_DEFAULT_THREADS = 8
"""More are only taken when they are asked for: each has a buffer, and memory's bandwidth is shared."""
VARIABLE = "PTSAVE_THREADS"
"""The environment variable that says how many threads to use."""


class CancelledError(Exception):
    """A task noticed that it is no longer wanted: what is raised is the error of another."""


Stopped = Callable[[], bool]
Task = tuple[int, Callable[[memoryview, Stopped], None]]
"""Its size, and what does it, given a buffer of BUFFER_BYTES and a way to see that it is no longer wanted."""
BUFFER_BYTES = 2 * BLOCK_BYTES


def num_threads() -> int:
    """How many threads to use: as many as PTSAVE_THREADS says, else one for each core that the process may
    use, up to MAX_DEFAULT_THREADS. The ranks of one machine share its cores.

    Raises: UsageError.
    """
    text = os.environ.get(VARIABLE, "")
    if text:
        if not (text.isascii() and text.isdecimal() and 0 < len(text) < 5 and int(text)):
            raise UsageError(f"{text!r} is not a number of threads", VARIABLE, "for example: 4")
        return int(text)
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")  # torchrun's
    num_ranks = int(ranks) if ranks.isascii() and ranks.isdecimal() and len(ranks) < 5 else 1
    return min(max(processes.num_cores() // max(num_ranks, 1), 1), MAX_DEFAULT_THREADS)


def run_tasks(
    tasks: Sequence[Task],
    places: Sequence[tuple[int, int] | None] = (),
    *,
    at_most: int | None = None,
    in_order: bool = False,
) -> None:
    """Do every task on `num_threads()` threads, or `at_most` so many, of which the caller's is one.

    The largest is begun first, or with `in_order` the first of them.

    `places`: where what each reads lies on another machine. Such tasks are begun in the order of the places,
    in which neighbours arrive together.

    The first error of any thread stops all, and is raised when all have stopped. An interrupt does too.
    """
    if not in_order and any(place is not None for place in places):
        order = sorted(range(len(tasks)), key=lambda i: (places[i] or (0, 0), i))
        tasks, in_order = [tasks[i] for i in order], True
    queue = iter(tasks if in_order else sorted(tasks, key=lambda task: -task[0]))
    threads = min(num_threads(), len(tasks), at_most or len(tasks))
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

    helpers = [threading.Thread(target=run, daemon=True) for _ in range(threads - 1)]
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

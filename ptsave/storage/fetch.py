"""Tensors into memory that is there: read straight into it, in parts that threads share, and checked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from ptsave.core.nodes import TensorEntry
from ptsave.core.storage import Storage
from ptsave.core.values.digest import DEFAULT
from ptsave.storage.scan import Check, Sums, scan
from ptsave.storage.workers import num_threads

PART_BYTES = 32 * 1024 * 1024
"""The size of the parts of a large tensor, so that no thread waits while another reads the largest one."""

SMALL_BYTES = 64 * 1024
"""What is read at once, by whoever waits for it: handing it to a thread would take longer."""

Wait = Callable[[], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], num_at_once: int
) -> Iterator[tuple[Item, Result]]:
    """Each item with what `work` returns for it, in their order; several at a time where that is asked for.

    Raises: the first error in that order; what has not begun then never begins.
    """
    if num_at_once == 1 or len(items) < 2:
        yield from ((item, work(item)) for item in items)
        return
    pool = ThreadPoolExecutor(min(num_at_once, len(items)))
    try:
        done = [pool.submit(copy_context().run, work, item) for item in items]
        for item, result in zip(items, done, strict=True):
            yield item, result.result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Threads(ThreadPoolExecutor):
    """Threads that all start with the first piece of work; the caller does it where they cannot."""

    def __init__(self) -> None:
        self._num_threads = num_threads()
        super().__init__(self._num_threads)
        self._is_alone: bool | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self._is_alone is None:
            self._is_alone = not self._start()
        if not self._is_alone:
            return super().submit(fn, *args, **kwargs)
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as error:
            done.set_exception(error)
        return done

    def _start(self) -> bool:
        """Start every thread, so that none is missed later, when its work would be queued already."""
        go = threading.Event()
        try:
            for _ in range(self._num_threads):
                super().submit(go.wait)
        except RuntimeError:
            return False
        finally:
            go.set()
        return True


@contextmanager
def fetching() -> Iterator[Executor]:
    """Threads to fetch with; what has not begun when an error leaves the block never begins."""
    pool = _Threads()
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def fetch(
    pool: Executor,
    entry: TensorEntry,
    memory: memoryview,
    digest: str | None = None,
    algorithm: str = DEFAULT,
    is_checked: bool = True,
) -> Wait:
    """Begin to fill `memory` with the bytes of `entry.byte_range`; returns what waits until it is full.

    They are checked as `Check` says. Nothing is read in between: the system copies from its cache into
    `memory`, and each block is checked before it leaves the processor's.

    What is returned raises: CorruptError naming the tensor; UnreadableError.
    """
    storage, first, num_bytes = entry.storage, entry.byte_range[0], len(memory)
    check = Check(entry, digest, algorithm, is_checked)
    parts = [(memory, check.sums)]
    is_cut = num_bytes > 2 * PART_BYTES and storage.is_seekable
    if is_cut:
        parts = [
            (memory[start : start + PART_BYTES], Sums(has_crc32=check.sums.has_crc32))
            for start in range(0, num_bytes, PART_BYTES)
        ]
    reads: list[Callable[[], None]] = []
    for i, (part, sums) in enumerate(parts):
        read = partial(_read, storage, first + i * PART_BYTES, part, sums)
        reads.append(read if num_bytes <= SMALL_BYTES else pool.submit(read).result)

    def wait() -> None:
        for (part, sums), read in zip(parts, reads, strict=True):
            read()
            if is_cut:
                check.sums.join(sums, part)
        check.finish()

    return wait


def _read(storage: Storage, offset: int, memory: memoryview, sums: Sums) -> None:
    """Fill `memory` from `offset`."""
    for _ in scan(storage, offset, len(memory), sums, into=memory):
        pass

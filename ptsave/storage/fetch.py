"""Tensors into memory that is there: read straight into it, in parts that threads share, and checked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from isal.isal_zlib import crc32, crc32_combine

from ptsave.core.nodes import TensorEntry
from ptsave.core.storage import BLOCK_BYTES, MemoryStorage, Storage
from ptsave.core.values.digest import DEFAULT, Hasher, hasher, prefix
from ptsave.storage.move import damaged
from ptsave.storage.windows import FileStorage
from ptsave.storage.workers import NUM_THREADS

PART_BYTES = 32 * 1024 * 1024
"""The size of the parts of a large tensor, so that no thread waits while another reads the largest one."""

SMALL_BYTES = 64 * 1024
"""What is read at once, by whoever waits for it: handing it to a thread would take longer."""

Wait = Callable[[], None]


class _Threads(ThreadPoolExecutor):
    """Threads that all start with the first piece of work; the caller does it where they cannot."""

    def __init__(self) -> None:
        super().__init__(NUM_THREADS)
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
            for _ in range(NUM_THREADS):
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

    They are held against the container's CRC-32 where they are all that it speaks for, else against `digest`
    where they are contiguous; not at all when `is_checked` is off. Nothing is read in between: the system
    copies from its cache into `memory`, and each block is checked before it leaves the processor's.

    What is returned raises: CorruptError naming the tensor; UnreadableError.
    """
    storage = entry.storage
    first, num_bytes = entry.byte_range[0], len(memory)
    is_whole = first == 0 and num_bytes == storage.num_bytes
    expected_crc32 = storage.crc32 if is_whole and is_checked else None
    is_digested = is_checked and digest is not None and expected_crc32 is None and entry.is_contiguous
    hash_ = hasher(algorithm, prefix(entry.dtype, entry.shape)) if is_digested else None
    is_cut = num_bytes > 2 * PART_BYTES and isinstance(storage, (FileStorage, MemoryStorage))
    parts = [memory]
    if is_cut:
        parts = [memory[start : start + PART_BYTES] for start in range(0, num_bytes, PART_BYTES)]
    reads: list[Callable[[], int]] = []
    for i, part in enumerate(parts):
        read = partial(
            _read,
            storage,
            first + i * PART_BYTES,
            part,
            expected_crc32 is not None,
            None if is_cut else hash_,
        )
        reads.append(read if num_bytes <= SMALL_BYTES else pool.submit(read).result)

    def wait() -> None:
        crc = 0
        for part, read in zip(parts, reads, strict=True):
            crc = crc32_combine(crc, read(), len(part))
            if is_cut and hash_ is not None:
                hash_.update(part)
        if expected_crc32 not in (None, crc):
            raise damaged("", entry.name, "CRC-32")
        if hash_ is not None and hash_.hexdigest() != digest:
            raise damaged("", entry.name, f"recorded {algorithm} digest")

    return wait


def _read(storage: Storage, offset: int, memory: memoryview, with_crc: bool, hash_: Hasher | None) -> int:
    """Fill `memory` from `offset` in blocks; returns their CRC-32 where it is wanted, else 0."""
    crc = 0
    for start in range(0, len(memory), BLOCK_BYTES):
        block = memory[start : start + BLOCK_BYTES]
        storage.read_into(offset + start, block)
        if with_crc:
            crc = crc32(block, crc)
        if hash_ is not None:
            hash_.update(block)
    return crc

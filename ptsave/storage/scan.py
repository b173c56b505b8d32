"""Reading runs of bytes only to know their CRC-32 and digest, each byte once, on two threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from isal.isal_zlib import crc32

from ptsave.core.storage import BLOCK_BYTES, Storage
from ptsave.core.values.digest import hasher
from ptsave.errors import UnreadableError
from ptsave.storage.workers import Stopped, run_tasks


@dataclass(slots=True, eq=False)
class Reading:
    """One run of bytes, and what it turned out to be."""

    source: Storage
    source_offset: int
    """In bytes."""
    num_bytes: int
    algorithm: str | None = None
    """What to digest it with."""
    prefix: bytes = b""
    """What is digested before it."""
    crc32: int = 0
    digest: str = ""
    error: UnreadableError | None = None
    """Why it could not be read."""


def read_all(readings: Sequence[Reading], progress: Callable[[int], None] | None = None) -> None:
    """Read every run, filling in its `crc32` and `digest`, or its `error`."""
    run_tasks([(one.num_bytes, partial(_read, one, progress)) for one in readings])


def _read(one: Reading, progress: Callable[[int], None] | None, buffer: memoryview, stopped: Stopped) -> None:
    digest = hasher(one.algorithm, one.prefix) if one.algorithm is not None else None
    try:
        for start in range(0, one.num_bytes, BLOCK_BYTES):
            if stopped():
                return
            block = buffer[: min(BLOCK_BYTES, one.num_bytes - start)]
            one.source.read_into(one.source_offset + start, block)
            one.crc32 = crc32(block, one.crc32)
            if digest is not None:
                digest.update(block)
            if progress is not None:
                progress(len(block))
    except UnreadableError as error:
        one.error = error
        return
    one.digest = digest.hexdigest() if digest is not None else ""

"""Runs of bytes, read once in blocks: their CRC-32 and digests, progress, and a stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from isal.isal_zlib import crc32, crc32_combine

from ptsave.core.nodes import TensorEntry
from ptsave.core.storage import BLOCK_BYTES, Storage
from ptsave.core.values.digest import DEFAULT, Hasher, hasher, prefix
from ptsave.core.values.gather import contiguous
from ptsave.core.values.resolved import resolved
from ptsave.errors import CorruptError, UnreadableError
from ptsave.storage.workers import CancelledError, Stopped, run_tasks

Progress = Callable[[int], None]
"""Called with the bytes done since the last call."""


class Sums:
    """The CRC-32 and the digests of the bytes that have passed."""

    __slots__ = ("crc32", "has_crc32", "hashers")

    def __init__(self, hashers: Sequence[Hasher] = (), has_crc32: bool = True) -> None:
        self.crc32 = 0
        self.has_crc32 = has_crc32
        """Whether `crc32` is wanted."""
        self.hashers = hashers

    def update(self, block: memoryview) -> None:
        if self.has_crc32:
            self.crc32 = crc32(block, self.crc32)
        for one in self.hashers:
            one.update(block)

    def join(self, crc32_only: Sums, block: memoryview) -> None:
        """Count `block` in, whose CRC-32 was summed up apart."""
        self.crc32 = crc32_combine(self.crc32, crc32_only.crc32, len(block))
        for one in self.hashers:
            one.update(block)

    @property
    def digests(self) -> tuple[str, ...]:
        """In the order of `hashers`."""
        return tuple(one.hexdigest() for one in self.hashers)


def scan(
    source: Storage,
    begin: int,
    num_bytes: int,
    sums: Sums | None = None,
    buffer: memoryview | None = None,
    *,
    into: memoryview | None = None,
    stopped: Stopped | None = None,
    progress: Progress | None = None,
) -> Iterator[memoryview]:
    """Read `num_bytes` bytes of `source` from `begin`, and yield each block when `sums` has seen it.

    A block is valid until the next is asked for: it is part of `buffer` (at least BLOCK_BYTES), or of the
    source's own memory. With `into` (`num_bytes` bytes) it stays there. `progress` is called when the next
    block is asked for.

    Raises: UnreadableError, CorruptError; CancelledError when `stopped` says so.
    """
    memory = source.buffer if into is None else None
    if buffer is None:
        needs_one = into is None and memory is None
        buffer = memoryview(bytearray(min(BLOCK_BYTES, num_bytes) if needs_one else 0))
    source.expect(begin, num_bytes)
    for start in range(0, num_bytes, BLOCK_BYTES):
        if stopped is not None and stopped():
            raise CancelledError
        end = min(start + BLOCK_BYTES, num_bytes)
        if memory is not None:
            block = memory[begin + start : begin + end]
        else:
            block = into[start:end] if into is not None else buffer[: end - start]
            source.read_into(begin + start, block)
        if sums is not None:
            sums.update(block)
        yield block
        if progress is not None:
            progress(end - start)


def crc32_of(storage: Storage) -> int:
    """The CRC-32 of all bytes of a storage. Raises: UnreadableError."""
    sums = Sums()
    for _ in scan(storage, 0, storage.num_bytes, sums):
        pass
    return sums.crc32


def tensor_digest(entry: TensorEntry, algorithm: str = DEFAULT) -> str:
    """The digest of one tensor's values. Raises: UnreadableError."""
    entry = resolved(entry)
    sums = Sums([hasher(algorithm, prefix(entry.dtype, entry.shape))], has_crc32=False)
    for _ in scan(*contiguous(entry), entry.num_bytes, sums):
        pass
    return sums.digests[0]


@dataclass(slots=True, eq=False)
class Reading:
    """One run of bytes, and what it turned out to be."""

    source: Storage
    source_offset: int
    """In bytes."""
    num_bytes: int
    algorithms: Sequence[str] = ()
    """What to digest it with."""
    prefix: bytes = b""
    """What is digested before it."""
    look: Callable[[memoryview], None] | None = None
    """What sees each block, on the thread that reads."""
    crc32: int = 0
    digests: Mapping[str, str] = field(default_factory=dict)
    """Algorithm → digest."""
    error: UnreadableError | None = None
    """Why it could not be read."""

    def took(self, sums: Sums) -> None:
        """Keep the sums of all its bytes."""
        self.crc32, self.digests = sums.crc32, dict(zip(self.algorithms, sums.digests, strict=True))


def read_all(readings: Sequence[Reading], progress: Progress | None = None) -> None:
    """Read every run, filling in its `crc32` and `digests`, or its `error`.

    Small runs that lie one after the other in a file are read at once, BLOCK_BYTES at most.
    """
    for one in readings:
        one.source.expect(one.source_offset, one.num_bytes)
    groups = [*_neighbours(readings)]
    run_tasks(
        [(sum(one.num_bytes for one in group), partial(_read, group, progress)) for group in groups],
        [group[0].source.remote_place() for group in groups],
    )


_MAX_GAP_BYTES = 4096
"""Between two neighbours; what lies there is read in vain."""


def _neighbours(readings: Sequence[Reading]) -> Iterator[list[Reading]]:
    """The readings in their order, those together that one read of a file on this machine has."""
    group: list[Reading] = []
    begin = end = 0
    for one in readings:
        source = one.source
        is_near = is_small = False
        is_inside = one.source_offset + one.num_bytes <= source.num_bytes
        if (
            one.num_bytes < BLOCK_BYTES
            and is_inside
            and source.file is not None
            and not source.file.is_remote
        ):
            is_small = True  # where a remote one lies, may take a request to know
            at = source.offset_bytes + one.source_offset
            is_near = (
                bool(group)
                and source.file is group[0].source.file
                and 0 <= at - end <= _MAX_GAP_BYTES
                and at + one.num_bytes - begin <= BLOCK_BYTES
            )
        if not is_near and group:
            yield group
            group = []
        if not is_small:
            yield [one]
            continue
        if not group:
            begin = at
        group.append(one)
        end = at + one.num_bytes
    if group:
        yield group


def _read(group: Sequence[Reading], progress: Progress | None, buffer: memoryview, stopped: Stopped) -> None:
    if len(group) == 1 or not _read_at_once(group, buffer):
        for one in group:
            _read_one(one, progress, buffer, stopped)
    elif progress is not None:
        progress(sum(one.num_bytes for one in group))


def _read_at_once(group: Sequence[Reading], buffer: memoryview) -> bool:
    """Whether one read had all of them; one by one they say which of them could not be read."""
    file = group[0].source.file
    assert file is not None
    begin, last = (one.source.offset_bytes + one.source_offset for one in (group[0], group[-1]))
    run = buffer[: last + group[-1].num_bytes - begin]
    try:
        file.read_into(begin, run)
    except UnreadableError:
        return False
    for one in group:
        at = one.source.offset_bytes + one.source_offset - begin
        block = run[at : at + one.num_bytes]
        sums = Sums([hasher(algorithm, one.prefix) for algorithm in one.algorithms])
        if block:
            sums.update(block)
            if one.look is not None:
                one.look(block)
        one.took(sums)
    return True


def _read_one(one: Reading, progress: Progress | None, buffer: memoryview, stopped: Stopped) -> None:
    sums = Sums([hasher(algorithm, one.prefix) for algorithm in one.algorithms])
    run = (one.source, one.source_offset, one.num_bytes)
    try:
        for block in scan(*run, sums, buffer, stopped=stopped, progress=progress):
            if one.look is not None:
                one.look(block)
    except UnreadableError as error:
        one.error = error
        return
    one.took(sums)


class Check:
    """What a tensor's bytes must turn out to be, as all of them pass in order.

    They are checked against the container's CRC-32 where they are all that it speaks for, else against
    `digest` where they are contiguous; not at all when `is_checked` is off.
    """

    def __init__(
        self, entry: TensorEntry, digest: str | None, algorithm: str, is_checked: bool = True
    ) -> None:
        is_whole = entry.byte_range == (0, entry.storage.num_bytes)
        self.name = entry.name
        self.crc32 = entry.storage.crc32 if is_whole and is_checked else None
        self.digest = digest if is_checked and self.crc32 is None and entry.is_contiguous else None
        self.algorithm = algorithm
        hashers = [hasher(algorithm, prefix(entry.dtype, entry.shape))] if self.digest is not None else []
        self.sums = Sums(hashers, has_crc32=self.crc32 is not None)

    def finish(self) -> None:
        """Raises: CorruptError naming the tensor."""
        if self.crc32 not in (None, self.sums.crc32):
            raise damaged("", self.name, "CRC-32")
        if self.digest is not None and self.sums.digests[0] != self.digest:
            raise damaged("", self.name, f"recorded {self.algorithm} digest")


def damaged(where: str, name: str, what: str) -> CorruptError:
    """The error for a tensor whose bytes are not those that its file was written with."""
    return CorruptError(
        f"tensor {name!r} is damaged: its bytes do not match their {what}",
        where,
        "copy or download the file again",
    )

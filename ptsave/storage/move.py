"""Moving bytes from storages into a file: once through the cache, checked and digested on the way.

Work is cut into tasks that threads take: a run of bytes (most tensors), a batch of small runs that are
neighbours in the target, or, where one tensor is most of the whole, parts of it. The largest come first;
where the target is sent away while it is made, those that lie first in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from isal.isal_zlib import crc32, crc32_combine

from ptsave.core.storage import BLOCK_BYTES, Storage
from ptsave.core.values.digest import hasher
from ptsave.errors import CorruptError
from ptsave.storage.batch import SMALL_BYTES, batches, first_byte, read_batch
from ptsave.storage.output import WRITEBACK_BYTES, LocalOutputFile, OutputFile, SentFile
from ptsave.storage.scan import Progress, Sums, damaged, scan
from ptsave.storage.system import disk
from ptsave.storage.workers import Stopped, Task, run_tasks

SPLIT_BYTES = 32 * 1024 * 1024
"""The size of the parts that a tensor is cut into when it is most of the whole."""
SPLIT_SHARE = 0.6
SENT_THREADS = 2
"""How many threads make a file that is sent away: what each has begun and not finished is held in memory."""


@dataclass(slots=True, eq=False)
class Move:
    """One run of bytes on its way, and what it turned out to be."""

    name: str
    """Whose bytes they are, for messages."""
    source: Storage
    source_offset: int
    """In bytes."""
    num_bytes: int
    target_offset: int | None
    """Where they go, in bytes; None where they are only read, to check or digest them."""
    expected_crc32: int | None = None
    """What their CRC-32 must be."""
    prefix: bytes = b""
    """What is digested before them."""
    expected_digests: Mapping[str, str | None] = field(default_factory=dict)
    """Algorithm → what their digest must be, or None where it is only wanted."""
    header: Callable[[int], bytes] | None = None
    """Makes, from their CRC-32, the bytes that lie directly before them in the target."""
    header_bytes: int = 0
    trailer: Callable[[int], bytes] | None = None
    """Makes, from their CRC-32, the bytes that lie directly after them in the target."""
    trailer_bytes: int = 0
    shared_bytes: int = 0
    """How many of the first bytes the target already shares with the source file."""
    crc32: int = 0
    digests: tuple[str, ...] = ()
    """In the order of `expected_digests`."""

    def sums(self) -> Sums:
        """What its bytes are summed up in as they pass."""
        return Sums([hasher(algorithm, self.prefix) for algorithm in self.expected_digests])

    def digest(self, algorithm: str) -> str:
        """The digest of what passed.

        Raises: ValueError when it was not wanted.
        """
        return self.digests[list(self.expected_digests).index(algorithm)]


@dataclass(frozen=True, slots=True)
class WrittenSpan:
    """Bytes that were written, and what they must read back as."""

    name: str
    offset: int
    num_bytes: int
    crc32: int


def move(
    moves: Iterable[Move], output: OutputFile, where: str, progress: Progress | None = None
) -> list[WrittenSpan]:
    """Carry out `moves` on threads, filling in their `crc32` and `digests`; returns what was written.

    The first error of any thread stops all.

    Raises: CorruptError, naming the tensor, when its bytes are not what they must be; UnreadableError;
    WriteError.
    """
    mover = _Mover(output, where, progress)
    items = list(moves)
    for item in items:
        _share(item, output)
        item.source.expect(item.source_offset, item.num_bytes)
    output.reserve(sum(item.shared_bytes for item in items))
    whole = sum(item.num_bytes for item in items)
    if isinstance(output, SentFile):
        run_tasks(mover.tasks_in_order(items), at_most=SENT_THREADS, in_order=True)
        return mover.spans
    tasks: list[Task] = []
    places: list[tuple[int, int] | None] = []
    small: list[Move] = []
    split: list[_Split] = []
    for item in items:
        if _is_split(item, whole):
            split.append(_Split(item))
            tasks += mover.split_tasks(split[-1])
            places += [item.source.remote_place()] * (len(tasks) - len(places))
        elif _is_small(item):
            small.append(item)
        else:
            tasks.append((item.num_bytes, partial(mover.carry, item)))
            places.append(item.source.remote_place())
    for batch in batches(small):
        tasks.append((sum(i.num_bytes for i in batch), partial(mover.batch, batch)))
        places.append(batch[0].source.remote_place())
    run_tasks(tasks, places)
    for one in split:
        mover.join(one)
    return mover.spans


def check_back(spans: Sequence[WrittenSpan], output: OutputFile, progress: Progress | None = None) -> None:
    """Read back what was written and compare it with what passed through.

    Raises: WriteError, naming the tensor, when the file does not hold it.
    """
    if isinstance(output, SentFile):
        output.must_have(crc32_of_spans(spans, output.num_bytes))
        if progress is not None:
            progress(sum(span.num_bytes for span in spans))
        return
    assert isinstance(output, LocalOutputFile)
    file = output

    def check(span: WrittenSpan, buffer: memoryview, stopped: Stopped) -> None:
        sums = Sums()
        for _ in scan(file, span.offset, span.num_bytes, sums, buffer, stopped=stopped, progress=progress):
            pass
        if sums.crc32 != span.crc32:
            raise file.lost(span.name)

    run_tasks([(span.num_bytes, partial(check, span)) for span in spans])
    output.checked = "reading it back"


def crc32_of_spans(spans: Iterable[WrittenSpan], num_bytes: int) -> int:
    """The CRC-32 of a whole file of `num_bytes` bytes; between the spans, which do not overlap, are zeros."""
    crc = at = 0
    for span in sorted(spans, key=lambda span: span.offset):
        crc = crc32_combine(zeros_after(crc, span.offset - at), span.crc32, span.num_bytes)
        at = span.offset + span.num_bytes
    return zeros_after(crc, num_bytes - at)


def zeros_after(crc: int, num_bytes: int) -> int:
    """The CRC-32 of what had `crc`, and `num_bytes` zeros."""
    while num_bytes > 0:
        count = min(num_bytes, len(_ZEROS))
        crc = crc32(_ZEROS[:count], crc)
        num_bytes -= count
    return crc


_ZEROS = memoryview(bytes(BLOCK_BYTES))


def _share(item: Move, output: OutputFile) -> None:
    """Have the file system share the source's blocks with the target, where it can, instead of a copy.

    The bytes are still read for their CRC-32 and digests, so what is shared is checked all the same.
    """
    source, target = item.source, item.target_offset
    if target is None or source.file is None or source.file.is_remote or not output.can_share:
        return
    offset = source.file.fd_offset_bytes + source.offset_bytes + item.source_offset
    num_bytes = item.num_bytes - item.num_bytes % disk.CLONE_BYTES
    if num_bytes >= SMALL_BYTES and offset % disk.CLONE_BYTES == target % disk.CLONE_BYTES == 0:
        item.shared_bytes = output.share(source.file.fd, offset, num_bytes, target)


def _is_small(item: Move) -> bool:
    return item.num_bytes < SMALL_BYTES and item.target_offset is not None


def _is_split(item: Move, whole_bytes: int) -> bool:
    """Whether threads would wait for this one run; only sources that are read at random are cut."""
    return (
        item.target_offset is not None
        and item.num_bytes > max(SPLIT_SHARE * whole_bytes, 2 * SPLIT_BYTES)
        and item.source.is_seekable
        and item.source.remote_place() is None  # its pieces are asked for side by side as it is
    )


@dataclass(slots=True, eq=False)
class _Split:
    """A run that is moved in parts; its digests, which cannot be taken in parts, in a second reading."""

    item: Move
    parts: dict[int, int] = field(default_factory=dict)
    """Start of a part → its CRC-32."""
    reread: Move | None = None


@dataclass(slots=True, eq=False)
class _Mover:
    """What all tasks of one `move` share."""

    output: OutputFile
    where: str
    progress: Progress | None
    spans: list[WrittenSpan] = field(default_factory=list)

    def tasks_in_order(self, items: Sequence[Move]) -> list[Task]:
        """One task for each run and batch, by their places in the target; those that only read come last."""
        end = self.output.num_bytes
        runs: list[tuple[int, Callable[[memoryview, Stopped], None]]] = [
            (end if item.target_offset is None else first_byte(item), partial(self.carry, item))
            for item in items
            if not _is_small(item)
        ]
        small = batches([item for item in items if _is_small(item)])
        runs += [(first_byte(batch[0]), partial(self.batch, batch)) for batch in small]
        return [(0, run) for _, run in sorted(runs, key=lambda pair: pair[0])]

    def carry(self, item: Move, buffer: memoryview, stopped: Stopped) -> None:
        """Move one run from end to end."""
        self._stream(item, buffer, stopped)
        _check(item, self.where)
        if item.target_offset is not None:
            self.spans.append(WrittenSpan(item.name, item.target_offset, item.num_bytes, item.crc32))
            self._write_frame(item)

    def batch(self, items: list[Move], buffer: memoryview, stopped: Stopped) -> None:
        """Gather small neighbours in the buffer and write them with one call."""
        position = 0
        blocks = []
        for item in items:
            first = position + item.header_bytes
            blocks.append(buffer[first : first + item.num_bytes])
            position = first + item.num_bytes + item.trailer_bytes
        read_batch(items, blocks, buffer[BLOCK_BYTES:])
        window = buffer[:position]
        position = 0
        for item, block in zip(items, blocks, strict=True):
            sums = item.sums()
            sums.update(block)
            item.crc32, item.digests = sums.crc32, sums.digests
            _check(item, self.where)
            if item.header is not None:
                window[position : position + item.header_bytes] = item.header(item.crc32)
            position += item.header_bytes + item.num_bytes + item.trailer_bytes
            if item.trailer is not None:
                window[position - item.trailer_bytes : position] = item.trailer(item.crc32)
        start = first_byte(items[0])
        self.output.write_at(start, window)
        names = items[0].name if len(items) == 1 else f"{items[0].name} … {items[-1].name}"
        self.spans.append(WrittenSpan(names, start, len(window), crc32(window)))
        if self.progress is not None:
            self.progress(sum(item.num_bytes for item in items))

    def split_tasks(self, split: _Split) -> list[Task]:
        """The parts of one run, and the reading that digests it."""
        item = split.item
        tasks: list[Task] = [
            (SPLIT_BYTES, partial(self._carry_part, split, start))
            for start in range(0, item.num_bytes, SPLIT_BYTES)
        ]
        if item.expected_digests:
            again = Move(item.name, item.source, item.source_offset, item.num_bytes, None)
            again.prefix, again.expected_digests = item.prefix, item.expected_digests
            split.reread = again
            tasks.append((item.num_bytes, partial(self._stream, again)))
        return tasks

    def join(self, split: _Split) -> None:
        """Put the parts of a run together and check it."""
        item = split.item
        for start, crc in sorted(split.parts.items()):
            item.crc32 = crc32_combine(item.crc32, crc, min(SPLIT_BYTES, item.num_bytes - start))
        if split.reread is not None:
            if split.reread.crc32 != item.crc32:
                raise CorruptError(f"tensor {item.name!r} changed while it was read", self.where, "try again")
            item.digests = split.reread.digests
        _check(item, self.where)
        self._write_frame(item)

    def _carry_part(self, split: _Split, start: int, buffer: memoryview, stopped: Stopped) -> None:
        item = split.item
        assert item.target_offset is not None
        part = Move(item.name, item.source, item.source_offset + start, 0, item.target_offset + start)
        part.num_bytes = min(SPLIT_BYTES, item.num_bytes - start)
        part.shared_bytes = min(max(item.shared_bytes - start, 0), part.num_bytes)
        self._stream(part, buffer, stopped)
        split.parts[start] = part.crc32
        assert part.target_offset is not None
        self.spans.append(WrittenSpan(part.name, part.target_offset, part.num_bytes, part.crc32))

    def _write_frame(self, item: Move) -> None:
        """Write what lies right before and right after a run."""
        assert item.target_offset is not None
        for make, offset in (
            (item.header, first_byte(item)),
            (item.trailer, item.target_offset + item.num_bytes),
        ):
            if make is not None:
                piece = make(item.crc32)
                self.output.write_at(offset, piece)
                self.spans.append(WrittenSpan(item.name, offset, len(piece), crc32(piece)))

    def _stream(self, item: Move, buffer: memoryview, stopped: Stopped) -> None:
        """Pass one run through the cache in blocks. Raises: CancelledError."""
        target, sums, done = item.target_offset, item.sums(), 0
        progress = self.progress if target is not None else None
        run = (item.source, item.source_offset, item.num_bytes)
        for block in scan(*run, sums, buffer, stopped=stopped, progress=progress):
            start, done = done, done + len(block)
            if target is not None and done > item.shared_bytes:  # what is shared is on the disk already
                self.output.write_at(target + start, block)
                if done % WRITEBACK_BYTES == 0 or done == item.num_bytes:
                    first = start - start % WRITEBACK_BYTES
                    self.output.begin_writeback(target + first, done - first)
        item.crc32, item.digests = sums.crc32, sums.digests


def _check(item: Move, where: str) -> None:
    if item.expected_crc32 is not None and item.crc32 != item.expected_crc32:
        raise damaged(where, item.name, "CRC-32")
    for (algorithm, expected), found in zip(item.expected_digests.items(), item.digests, strict=True):
        if expected is not None and found != expected:
            raise damaged(where, item.name, f"recorded {algorithm} digest")

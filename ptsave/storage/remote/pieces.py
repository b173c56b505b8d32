"""What will be read of one remote object: joined with its neighbours, asked for ahead, held until used.

Who reads says what it will read (`expect`). Runs with small gaps between them become pieces of some MiB; a
read of one piece begins the ones after it, as many as the memory that all files share allows. A
piece is let go when all that was expected of it has been read.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import TypeVar

from ptsave.storage.files import Extent
from ptsave.storage.system import processes

PIECE_BYTES = 4 * 1024 * 1024
"""The most that one request asks for."""
LEAST_BYTES = 128 * 1024
"""The least that a piece is made for, however many files are read in turn."""
GAP_BYTES = 64 * 1024
"""How many unwanted bytes between two runs are read: fewer than come in a round trip."""
HELD_BYTES = 24 * 1024 * 1024
"""The most that all pieces together hold: those on their way and those not yet used."""
REST_SHARE = 0.1
"""The most of a piece, of what was expected of it, that is let go for the sake of others."""
IDLE_TAKES = 64
"""And that when so many reads were of other pieces: until then, who reads it is about to come to its end."""
_SLACK_BYTES = 64
NUM_REQUESTS = 16
"""How many requests are under way at a time, at most."""
T = TypeVar("T")


class Workers:
    """Threads that make requests. They keep no process alive: a server may never answer one of them."""

    def __init__(self, most: int) -> None:
        """Made once, when the module is imported."""
        self._most = most
        self._forget()
        processes.after_fork(self._forget)

    def _forget(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()
        self._num_threads = self._num_idle = self._num_queued = 0

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have a thread do `work`; where no thread is to be had, it is done here."""
        done: Future[T] = Future()
        job = partial(_do, work, done)
        with self._lock:
            if self._num_queued >= self._num_idle and self._num_threads < self._most:
                with contextlib.suppress(RuntimeError):  # no thread is to be had
                    threading.Thread(target=self._run, args=(self._jobs,), daemon=True).start()
                    self._num_threads += 1
            is_alone = not self._num_threads
            if not is_alone:
                self._num_queued += 1
                self._jobs.put(job)
        if is_alone:
            job()
        return done

    def abandon(self, job: Future[T]) -> None:
        """Count the thread as lost that does `job`: another may take its place."""
        if not job.cancel():
            with self._lock:
                self._num_threads = max(self._num_threads - 1, 0)

    def _run(self, jobs: SimpleQueue[Callable[[], None]]) -> None:
        while True:
            with self._lock:
                self._num_idle += 1
            job = jobs.get()
            with self._lock:
                self._num_idle -= 1
                self._num_queued -= 1
            job()
            del job  # with what it holds


def _do(work: Callable[[], T], done: Future[T]) -> None:
    """Do `work`, of which `done` tells."""
    if done.set_running_or_notify_cancel():
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)
    del done  # an error's traceback has this frame: they would keep each other, and the frames of all callers


@dataclass(eq=False)
class Fetched:
    """The bytes of a piece, or the request for them."""

    future: Future[memoryview]
    num_readers: int = 0
    """How many threads wait for them, or copy from them."""
    is_dropped: bool = False
    is_left: bool = False
    """Whether its memory was given away: nobody may read it any more."""


@dataclass(eq=False)
class Piece:
    """One range that is asked for as a whole."""

    begin: int
    end: int
    runs: list[Extent]
    """What is expected of it and was not read yet, in order; no two overlap."""
    data: Fetched | None = None
    """Its bytes, once it is asked for."""
    last_take: int = 0
    """How many reads of all pieces there were before the last one of this."""

    def __post_init__(self) -> None:
        self.wanted_bytes = sum(size for _, size in self.runs)
        self._all_bytes = self.wanted_bytes

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin

    @property
    def share_left(self) -> float:
        """How much of what was expected is still to be read."""
        return self.wanted_bytes / max(self._all_bytes, 1)

    @property
    def is_rest(self) -> bool:
        """Whether so little is left that it may be let go, and is then asked for by itself."""
        return self.share_left <= REST_SHARE

    @property
    def is_used_up(self) -> bool:
        """Whether all was read, but for a few bytes between records that nobody can tell from them ahead."""
        is_nearly = self.wanted_bytes <= self._all_bytes // 100
        return is_nearly and all(size <= _SLACK_BYTES for _, size in self.runs)

    def add(self, begin: int, end: int) -> None:
        """Expect these bytes too, which lie in it."""
        self.count(begin, end)
        if begin < end:
            insort(self.runs, (begin, end - begin))
            self.wanted_bytes += end - begin
            self._all_bytes = max(self._all_bytes, self.wanted_bytes)

    def expects(self, begin: int, end: int) -> bool:
        """Whether these bytes are in one of its runs."""
        at = bisect_right(self.runs, (begin, self.end)) - 1
        return at >= 0 and end <= sum(self.runs[at])

    def count(self, begin: int, end: int) -> None:
        """Note that these bytes were read."""
        at = max(bisect_right(self.runs, (begin, self.end)) - 1, 0)
        while at < len(self.runs) and self.runs[at][0] < end:
            first, size = self.runs[at]
            low, high = max(begin, first), min(end, first + size)
            if low >= high:
                at += 1
                continue
            self.wanted_bytes -= high - low
            left = [(first, low - first), (high, first + size - high)]
            self.runs[at : at + 1] = [run for run in left if run[1]]
            at += low > first


@dataclass
class HeldPieces:
    """The pieces of all files that are on their way or in memory."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    pieces: dict[int, Piece] = field(default_factory=dict)
    """By identity."""
    num_bytes: int = 0
    num_takes: int = 0
    """How many reads of them there were."""
    free: list[memoryview] = field(default_factory=list)
    """Memory of PIECE_BYTES to be used again: fresh memory takes longer than the copy into it."""

    def memory(self, num_bytes: int) -> memoryview:
        """Memory for a piece. Much of it comes from the system itself: of what a thread gets elsewhere, the
        allocator keeps some for that thread."""
        with self.lock:
            if num_bytes == PIECE_BYTES and self.free:
                return self.free.pop()
        is_much = num_bytes == PIECE_BYTES
        return memoryview(mmap.mmap(-1, num_bytes) if is_much else bytearray(num_bytes))

    def leave(self, data: Fetched) -> None:
        """Keep the memory of what nobody reads any more."""
        done = data.future
        is_over = data.is_dropped and not data.num_readers and done.done() and not done.cancelled()
        if not is_over or data.is_left or done.exception():
            return
        data.is_left = True
        if self.num_bytes + PIECE_BYTES * len(self.free) < HELD_BYTES and len(done.result()) == PIECE_BYTES:
            self.free.append(done.result())

    def has_room(self, piece: Piece) -> bool:
        return self.num_bytes + piece.num_bytes <= HELD_BYTES

    def add(self, piece: Piece, future: Future[memoryview]) -> None:
        piece.data = Fetched(future)
        self.pieces[id(piece)] = piece
        self.num_bytes += piece.num_bytes

    def drop(self, piece: Piece) -> None:
        """Let go of its bytes; who has them keeps them until it has copied them."""
        if self.pieces.pop(id(piece), None) is not None:
            self.num_bytes -= piece.num_bytes
        if piece.data is not None:
            piece.data.is_dropped = True
            self.leave(piece.data)
            piece.data = None

    def make_room(self, wanted: Piece, *, of_rests: bool = False) -> None:
        """Let go of the pieces of which the least is still to be read, of new ones the last; or only of
        rests that nobody reads any more."""
        if self.has_room(wanted):  # so that nothing is sorted
            return
        for piece in sorted(self.pieces.values(), key=lambda piece: (piece.share_left, -piece.begin)):
            if self.has_room(wanted):
                return
            if of_rests and not (piece.is_rest and self.num_takes - piece.last_take > IDLE_TAKES):
                continue
            if piece.data is not None and piece.data.future.done():
                self.drop(piece)


class Pieces:
    """The pieces of one object."""

    def __init__(self, held: HeldPieces, fetch: Callable[[int, int, memoryview], memoryview]) -> None:
        """`fetch`: reads the bytes from one offset to another (not included) into memory, and returns that;
        on a thread of WORKERS."""
        self._held = held
        self._fetch = fetch
        self._new: list[Extent] = []
        self._pieces: list[Piece] = []
        """Of which something is left to read, in the order of their offsets; they do not overlap."""
        self._most_ahead, self._most_bytes = HELD_BYTES, PIECE_BYTES

    def share(self, num_objects: int) -> None:
        """Leave room for so many objects that are read in turn: what one asks for ahead must not drive out
        what another has asked for."""
        self._most_ahead = HELD_BYTES // max(num_objects, 1)
        self._most_bytes = max(min(PIECE_BYTES, self._most_ahead // 2), LEAST_BYTES)

    def expect(self, extents: Iterable[Extent]) -> None:
        """Note what will be read, but for what a piece has already."""
        with self._held.lock:
            self._new += [(begin, size) for begin, size in extents if size and not self._covers(begin, size)]

    def forget(self, extents: Iterable[Extent]) -> None:
        """Note that nobody will read these any more, and let go of the pieces that are used up by that."""
        with self._held.lock:
            self._plan()
            for begin, size in extents:
                at = max(bisect_right(self._pieces, begin, key=_begin) - 1, 0)
                while at < len(self._pieces) and self._pieces[at].begin < begin + size:
                    piece = self._pieces[at]
                    piece.count(begin, begin + size)
                    if piece.is_used_up:
                        del self._pieces[at]
                        self._held.drop(piece)
                    else:
                        at += 1

    def _covers(self, begin: int, size: int) -> bool:
        at = bisect_right(self._pieces, begin, key=_begin) - 1
        for piece in self._pieces[max(at, 0) :]:
            if not piece.begin <= begin < piece.end:
                return False
            stop = min(begin + size, piece.end)
            if not piece.expects(begin, stop):
                return False
            if stop == begin + size:
                return True
            begin, size = stop, begin + size - stop
        return False

    def _plan(self) -> None:
        """Make pieces of what is new."""
        if not self._new:
            return
        kept = self._pieces
        runs: list[Extent] = []  # apart from each other, and from what is kept
        for begin, size in sorted(self._new):
            end = begin + size
            if runs:
                begin = max(begin, sum(runs[-1]))
            at = max(bisect_right(kept, begin, key=_begin) - 1, 0)
            while at < len(kept) and kept[at].begin < end and begin < end:
                if begin < kept[at].begin:
                    runs.append((begin, kept[at].begin - begin))
                kept[at].add(max(begin, kept[at].begin), min(end, kept[at].end))
                begin = max(begin, kept[at].end)
                at += 1
            if begin < end:
                runs.append((begin, end - begin))
        self._new.clear()
        for piece in _pieces_of(runs, self._most_bytes):
            insort(kept, piece, key=_begin)

    def take(self, offset: int) -> tuple[Piece, Fetched] | None:
        """The piece that has the byte at `offset`, and its data, asked for by now; None where none has.

        `give_back` must follow.
        """
        with self._held.lock:
            self._plan()
            at = bisect_right(self._pieces, offset, key=_begin) - 1
            if at < 0 or offset >= self._pieces[at].end:
                return None
            piece = self._pieces[at]
            if piece.data is None and piece.is_rest:
                return None
            if piece.data is None:
                self._held.make_room(piece)
                self._begin(piece)
            data = piece.data
            assert data is not None
            data.num_readers += 1
            self._held.num_takes += 1
            piece.last_take = self._held.num_takes
            ahead = piece.num_bytes
            for later in islice(self._pieces, at + 1, None):
                ahead += 0 if later.data is None and later.is_rest else later.num_bytes
                if ahead > self._most_ahead:
                    break
                if later.data is None and not later.is_rest:
                    self._held.make_room(later, of_rests=True)
                    if not self._held.has_room(later):
                        break
                    self._begin(later)
            return piece, data

    def _begin(self, piece: Piece) -> None:
        def fetch() -> memoryview:
            return self._fetch(piece.begin, piece.end, self._held.memory(piece.num_bytes))

        self._held.add(piece, WORKERS.submit(fetch))

    def give_back(self, piece: Piece, data: Fetched, begin: int, end: int) -> None:
        """Note that these bytes of `piece`, which may be none, were read; the last let go of it."""
        with self._held.lock:
            data.num_readers -= 1
            if begin < end:
                piece.count(begin, end)
                if piece.is_used_up and piece in self._pieces:
                    self._pieces.remove(piece)
                    self._held.drop(piece)
            self._held.leave(data)

    def next_after(self, offset: int) -> int | None:
        """Where the first piece after `offset` begins."""
        with self._held.lock:
            at = bisect_right(self._pieces, offset, key=_begin)
            return self._pieces[at].begin if at < len(self._pieces) else None

    def close(self) -> None:
        """Let go of all of them."""
        with self._held.lock:
            for piece in self._pieces:
                if piece.data is not None:
                    piece.data.future.cancel()
                self._held.drop(piece)
            self._pieces.clear()
            self._new.clear()
            if not self._held.pieces:
                self._held.free.clear()


def _pieces_of(runs: list[Extent], most_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """Pieces of at most `most_bytes` that hold all of `runs`, and gaps of at most GAP_BYTES between them."""
    parts: list[Extent] = []
    for begin, size in runs:
        end = begin + size
        while begin < end:
            if parts:
                reach = sum(parts[-1])
                if begin - reach > GAP_BYTES or begin >= parts[0][0] + most_bytes:
                    yield Piece(parts[0][0], reach, parts)
                    parts = []
            first = parts[0][0] if parts else begin
            stop = min(end, first + most_bytes)
            parts.append((begin, stop - begin))
            begin = stop
    if parts:
        yield Piece(parts[0][0], sum(parts[-1]), parts)


def _begin(piece: Piece) -> int:
    return piece.begin


WORKERS = Workers(NUM_REQUESTS)
HELD = HeldPieces()

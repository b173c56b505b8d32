"""A remote object, open for reading: its first block came with its size and version."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import IO, TypeVar

from ptsave.core.address import Address
from ptsave.errors import LimitError, MissingFileError, UnreadableError
from ptsave.storage import reads
from ptsave.storage.files import Extent, InputFile
from ptsave.storage.remote.pieces import HELD, WORKERS, HeldPieces, Pieces
from ptsave.storage.remote.request import Deadline, WholeError, read_range, retried
from ptsave.storage.remote.store import NoAccessError, Passing, Store, Version

BLOCK_BYTES = 32 * 1024
"""What is read at first of a file's beginning, and of its end: enough for most headers and directories."""
BEFORE_BYTES = 2 * 1024
"""What is read of what lies before a directory at the file's end."""
MAX_FIRST_BYTES = 1024 * 1024
"""The most that is read at first where a longer header is expected."""
MAX_KEPT_BYTES = 4 * 1024 * 1024
"""The most of blocks that were read without being expected, which one file keeps."""
MAX_AHEAD_BYTES = 4 * 1024 * 1024
"""How far ahead a reader is read that asks for one block after another without having said so."""
MAX_SPOOL_BYTES = 4 * 1024**3
"""The largest file that is read whole into a temporary one, where a server does not know ranges."""
GRACE_S = 0.5
"""How much longer the caller waits than the thread that makes the request, whose own error says more."""
T = TypeVar("T")


class RemoteFile(InputFile):
    """An object in a store. One request opens it: the range of its first block.

    Every later request insists on the version that was opened, and every answer is compared with it.
    """

    is_remote = True

    def __init__(self, store: Store, address: Address, first_bytes: int = 0) -> None:
        """`first_bytes`: about how many will be read at its beginning, where that is known.

        Raises: MissingFileError; UnreadableError when the server does not answer, or answers wrongly.
        """
        self.path: Address = address
        self.memo = {}
        self.store = store
        self.size_bytes = 0
        self._lock = threading.RLock()
        self._waiting: list[Callable[[], None]] = []
        self._is_checking = False
        self._error: UnreadableError | None = None
        self._spool: IO[bytes] | None = None
        self._pid = os.getpid()
        self._pieces = Pieces(HELD, self._fetched)
        self._kept: list[tuple[int, bytes]] = []
        """Blocks and their offsets, the one that was asked for last at the end."""
        self._ahead_bytes = 0
        first_bytes = min(max(first_bytes, BLOCK_BYTES), MAX_FIRST_BYTES)
        block = memoryview(bytearray(first_bytes))
        deadline = Deadline.begin(address, is_first=True)
        try:
            self.version = waited(
                lambda: read_range(store, address, 0, first_bytes, None, deadline, block), deadline
            )
        except WholeError as whole:
            self._spool, self.version = self._spooled(whole.version)
            self._spool.seek(0)
            block = memoryview(self._spool.read(first_bytes))
        self.size_bytes = self.version.size_bytes
        self._head = bytes(block[: self.size_bytes])
        self._tail = (self.size_bytes, b"")
        reads.note_address(address)

    def expect(self, extents: Iterable[Extent]) -> None:
        if self._spool is None:
            self._check_process()
            head, tail = len(self._head), self._tail[0]
            self._pieces.expect(
                (max(begin, head), min(begin + size, tail) - max(begin, head))
                for begin, size in extents
                if begin + size > head and begin < tail
            )

    def forget(self, extents: Iterable[Extent]) -> None:
        self._pieces.forget(extents)

    def share(self, num_files: int) -> None:
        self._pieces.share(num_files)

    def before_tensors(self, check: Callable[[], None]) -> None:
        self._waiting.append(check)

    def holds(self, offset_bytes: int, num_bytes: int) -> bool:
        """Whether these bytes came with the first block."""
        return self._spool is not None or offset_bytes + num_bytes <= len(self._head)

    def read_at(self, offset_bytes: int, num_bytes: int) -> bytes:
        if offset_bytes < 0 or num_bytes < 0 or offset_bytes + num_bytes > self.size_bytes:
            raise self.too_short(offset_bytes, num_bytes)
        if offset_bytes + num_bytes <= len(self._head):
            return self._head[offset_bytes : offset_bytes + num_bytes]
        buffer = bytearray(num_bytes)
        self._read(offset_bytes, memoryview(buffer), counts=False)
        return bytes(buffer)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        if offset_bytes < 0 or offset_bytes + len(buffer) > self.size_bytes:
            raise self.too_short(offset_bytes, len(buffer))
        if self._waiting:
            with self._lock:
                if not self._is_checking:  # a check reads as well
                    self._check_first()
        self._read(offset_bytes, buffer)

    def _check_first(self) -> None:
        """Do what has to be done before tensors are read. Other threads that read wait for it, and where it
        fails none of them goes on."""
        self._is_checking = True
        try:
            while self._waiting:
                self._raise_error()
                self._waiting[0]()
                del self._waiting[0]
        finally:
            self._is_checking = False

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _read(self, offset: int, buffer: memoryview, counts: bool = True) -> None:
        """Fill `buffer`; the bytes are in the object. `counts`: whether they are what was expected."""
        self._raise_error()
        if self._spool is not None:
            self._read_spool(offset, buffer)
            return
        self._check_process()
        done, wanted = 0, len(buffer)
        while done < wanted:
            at = offset + done
            got = self._copy_kept(at, buffer[done:])
            if not got:
                got = self._copy_piece(at, buffer[done:], counts)
            if not got:
                until = self._pieces.next_after(at)
                stop = wanted if until is None else min(wanted, max(until - offset, done + 1))
                got = self._copy_new(at, buffer[done:stop])
            done += got

    def _copy_kept(self, at: int, buffer: memoryview) -> int:
        """Copy what is in memory from `at` on; returns how much."""
        with self._lock:
            for begin, block in (*reversed(self._kept), self._tail, (0, self._head)):
                if begin <= at < begin + len(block):
                    data = memoryview(block)[at - begin : at - begin + len(buffer)]
                    buffer[: len(data)] = data
                    return len(data)
        return 0

    def _copy_piece(self, at: int, buffer: memoryview, counts: bool) -> int:
        """Copy from the piece that has `at`, waiting for it; returns how much, 0 where none has it."""
        taken = self._pieces.take(at)
        if taken is None:
            return 0
        piece, fetched = taken
        num_bytes = 0
        try:
            data = _result(fetched.future, Deadline.begin(self.path))
            num_bytes = min(len(buffer), piece.end - at)
            buffer[:num_bytes] = data[at - piece.begin : at - piece.begin + num_bytes]
        finally:
            self._pieces.give_back(piece, fetched, at, at + num_bytes if counts else at)
        return num_bytes

    def _copy_new(self, at: int, buffer: memoryview) -> int:
        """Ask for what nobody has announced, with some of what follows it; returns how much of it came."""
        size = self.size_bytes
        with self._lock:
            last = self._kept[-1] if self._kept else (0, self._head)
            is_next = at == last[0] + len(last[1]) and bool(self._kept)
            self._ahead_bytes = min(self._ahead_bytes * 2, MAX_AHEAD_BYTES) if is_next else BLOCK_BYTES
            ahead = self._ahead_bytes
        begin, end = at, at + len(buffer)
        is_tail = end > size - BLOCK_BYTES and not self._tail[1]
        if is_tail:
            begin, end = min(begin, max(size - BLOCK_BYTES, len(self._head))), size
        elif len(buffer) < ahead:
            end = min(at + ahead, size)
        meets_tail = bool(self._tail[1]) and begin < self._tail[0] <= end
        if meets_tail:  # a directory; some small records lie before it
            begin, end = max(begin - BEFORE_BYTES, len(self._head)), self._tail[0]
            buffer = buffer[: end - at]
        data = self._fetch_now(begin, end)
        num_bytes = len(buffer)
        buffer[:] = data[at - begin : at - begin + num_bytes]
        if is_tail or (meets_tail and len(data) <= MAX_KEPT_BYTES):
            self._tail = (begin, bytes(data) + self._tail[1])
        elif len(data) <= MAX_KEPT_BYTES:
            with self._lock:
                self._kept.append((begin, bytes(data)))
                while sum(len(block) for _, block in self._kept) > MAX_KEPT_BYTES:
                    self._kept.pop(0)
        return num_bytes

    def _fetch_now(self, begin: int, end: int) -> memoryview:
        deadline = Deadline.begin(self.path)
        memory = memoryview(bytearray(end - begin))
        return waited(lambda: self._fetched(begin, end, memory, deadline), deadline)

    def _fetched(
        self, begin: int, end: int, memory: memoryview, deadline: Deadline | None = None
    ) -> memoryview:
        """`memory` with the bytes from `begin` to `end` of the version that was opened; on a thread of
        WORKERS."""
        deadline = deadline or Deadline.begin(self.path)
        try:
            read_range(self.store, self.path, begin, end, self.version, deadline, memory)
        except WholeError:
            what = "the server obeyed ranges when the file was opened, and does not any more"
            raise UnreadableError(what, str(self.path), "download the file, and name the copy") from None
        except UnreadableError as error:
            self._error = error
            raise
        return memory

    def _spooled(self, version: Version) -> tuple[IO[bytes], Version]:
        """Read the whole object into a file without a name, from a server that does not know ranges.

        Raises: LimitError past MAX_SPOOL_BYTES; UnreadableError.
        """
        address = self.path
        if version.size_bytes > MAX_SPOOL_BYTES:
            raise self._too_large(version.size_bytes)
        spool = tempfile.TemporaryFile()  # noqa: SIM115

        def read_all(deadline: Deadline) -> Version:
            answer = self.store.get(address, 0, MAX_SPOOL_BYTES + 1, None, deadline.wait_s)
            spool.seek(0)
            spool.truncate()
            try:
                done, since = 0, Deadline.begin(address)
                stated = answer.version.size_bytes
                while data := answer.read(256 * 1024):
                    done += len(data)
                    if done > MAX_SPOOL_BYTES or (0 <= stated < done):
                        raise self._too_large(done)
                    spool.write(data)
                    since.check()
                    if done % (8 * 1024 * 1024) < len(data):
                        since = Deadline.begin(address)
                if 0 <= stated != done:
                    raise Passing(f"the connection broke off after {done} of {stated} bytes")
            finally:
                answer.close()
            spool.flush()
            return Version(done, answer.version.tag, answer.version.modified)

        try:
            found = retried(read_all, Deadline.begin(address))
        except BaseException:
            spool.close()
            raise
        return spool, found

    def _too_large(self, num_bytes: int) -> UnreadableError:
        error = LimitError("spool_bytes", MAX_SPOOL_BYTES, num_bytes, str(self.path))
        error.hint = "the server does not know ranges: download the file, and name the copy"
        return error

    def _read_spool(self, offset: int, buffer: memoryview) -> None:
        assert self._spool is not None
        with self._lock:
            self._spool.seek(offset)
            done = 0
            while done < len(buffer):
                data = self._spool.read(len(buffer) - done)
                buffer[done : done + len(data)] = data
                done += len(data)

    def _check_process(self) -> None:
        """In a fork there are none of the threads that this file waits for: begin afresh."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._lock = threading.RLock()
            self._pieces = Pieces(HeldPieces(), self._fetched)

    def check_unchanged(self) -> None:
        """Every answer was of the version that was opened, or was refused."""
        self._raise_error()

    def check_in_place(self) -> None:
        self.check_unchanged()
        deadline = Deadline.begin(self.path)
        num_bytes = min(1, self.size_bytes)
        with contextlib.suppress(WholeError):  # of the same version
            waited(
                lambda: read_range(
                    self.store, self.path, 0, num_bytes, self.version, deadline, memoryview(bytearray(1))
                ),
                deadline,
            )

    def close(self) -> None:
        self.memo.clear()
        self._pieces.close()
        self._kept.clear()
        if self._spool is not None:
            self._spool.close()


def version_at(store: Store, address: Address) -> Version | None:
    """Which version of an object is there now; None for none.

    Raises: UnreadableError.
    """
    deadline = Deadline.begin(address, is_first=True)
    try:
        return waited(
            lambda: read_range(store, address, 0, 1, None, deadline, memoryview(bytearray(1))), deadline
        )
    except NoAccessError:
        raise
    except MissingFileError:
        return None
    except WholeError as whole:
        return whole.version


def waited(work: Callable[[], T], deadline: Deadline) -> T:
    """What `work` returns, done on a thread, so that no server can hold the caller past the deadline."""
    return _result(WORKERS.submit(work), deadline)


def _result(future: Future[T], deadline: Deadline) -> T:
    try:
        return future.result(deadline.left_s + GRACE_S)
    except FutureTimeoutError:
        WORKERS.abandon(future)
        raise deadline.passed() from None
    finally:
        del future  # it has the error, whose traceback has this frame

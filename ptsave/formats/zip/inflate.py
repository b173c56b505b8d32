"""Deflated records, presented as storages that can be read at any place in bounded memory.

Source: RFC 1951.
"""

from __future__ import annotations

import io
import tempfile
import threading
import weakref
import zlib
from typing import IO, NamedTuple

from ptsave.core.storage import BLOCK_BYTES, Storage
from ptsave.errors import CorruptError, LimitError
from ptsave.storage.files import InputFile
from ptsave.storage.scan import scan

MAX_INFLATED_BYTES = 64 * 1024**3
"""Cap on the inflated size of one record."""
FREE_INFLATED_BYTES = 256 * 1024**2
MAX_INFLATE_RATIO = 20
"""Cap on how many times the deflated records of an archive may grow together, past FREE_INFLATED_BYTES."""
_DEFLATE_RATIO = 1032
"""The most that deflate can ever do: 258 bytes from 2 bits."""

_SMALL_BYTES = 1024 * 1024
_SNAPSHOTS = 16
_HELD_BYTES = 64 * 1024 * 1024
"""A record of at most so many bytes is kept in memory, where it is kept."""
_SPOOL_AFTER = 1
"""How many times a record's bytes may be inflated before they are kept in a temporary file."""
_HINT = "the file is damaged; copy or download it again"


def check_inflated_size(compressed_bytes: int, num_bytes: int, where: str) -> None:
    """Refuse a record that claims to grow beyond what deflate can do, or beyond the cap.

    Raises: CorruptError, LimitError.
    """
    if num_bytes > _DEFLATE_RATIO * compressed_bytes:
        raise CorruptError(f"{compressed_bytes} deflated bytes cannot hold {num_bytes}", where, _HINT)
    if num_bytes > MAX_INFLATED_BYTES:
        raise LimitError("inflated_bytes", MAX_INFLATED_BYTES, num_bytes, where)


def check_inflated_total(compressed_bytes: int, num_bytes: int, where: str) -> None:
    """Refuse an archive whose deflated records grow too much together: each command inflates them all.

    Raises: LimitError.
    """
    if num_bytes > max(FREE_INFLATED_BYTES, MAX_INFLATE_RATIO * compressed_bytes):
        raise LimitError("inflate_ratio", MAX_INFLATE_RATIO, num_bytes // max(compressed_bytes, 1), where)


class _State(NamedTuple):
    """How far a stream has been inflated."""

    inflater: zlib._Decompress
    read_bytes: int
    """Compressed bytes given to the inflater."""
    made_bytes: int
    """Inflated bytes taken from it."""


class InflatedStorage(Storage):
    """A deflated record. Reading forward costs what it inflates; reading backward restarts.

    A restart begins at the nearest of a few snapshots of the inflater, so views that are read in any
    order cost a fraction of the record each. Nothing is kept between reads of small records, or once the
    end has been reached. Whoever reads backward so much that the record would have been inflated a second
    time gets it from a temporary file: so no order of reading costs more than three times the record.
    """

    def __init__(
        self, file: InputFile, offset_bytes: int, compressed_bytes: int, num_bytes: int, crc32: int | None
    ) -> None:
        self._file = file
        self.num_bytes = num_bytes
        self.crc32 = crc32
        self._offset_bytes = offset_bytes
        self._compressed_bytes = compressed_bytes
        self._lock = threading.RLock()
        self._state: _State | None = None
        self._snapshots: list[_State] = []
        self._spool: IO[bytes] | None = None
        self._can_spool = num_bytes > _SMALL_BYTES
        self.inflated_bytes = 0
        """How many bytes were inflated so far: what reading has cost."""

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill `buffer` with the inflated bytes from `offset_bytes`.

        Raises: CorruptError when the stream is malformed, or holds fewer or more bytes than it should.
        """
        if offset_bytes < 0 or offset_bytes + len(buffer) > self.num_bytes:
            raise self._corrupt(f"needs bytes up to {offset_bytes + len(buffer)} of {self.num_bytes}")
        with self._lock:
            try:
                if self._can_spool and self.inflated_bytes > _SPOOL_AFTER * self.num_bytes:
                    self._can_spool = False
                    self._spool = self._spooled()
                if self._spool is not None:
                    self._spool.seek(offset_bytes)
                    self._spool.readinto(buffer)  # type: ignore[attr-defined]
                else:
                    self._read(offset_bytes, buffer)
            except zlib.error as error:
                self._state = None
                raise self._corrupt(f"is not a deflate stream ({error})") from None

    def _read(self, offset_bytes: int, buffer: memoryview) -> None:
        state = self._begin(offset_bytes)
        step = max(_SMALL_BYTES, self.num_bytes // _SNAPSHOTS)
        end = offset_bytes + len(buffer)
        pending = state.inflater.unconsumed_tail
        inflater, read, made = state
        while made < end:
            if not pending:
                pending = self._compressed(read)
                read += len(pending)
            # never past `end`: what the next read wants stays in the inflater
            data = inflater.decompress(pending, min(BLOCK_BYTES, end - made))
            pending = inflater.unconsumed_tail
            if not data and not pending and (inflater.eof or read == self._compressed_bytes):
                raise self._corrupt(f"ends after {made} of {self.num_bytes} bytes")
            first = max(offset_bytes - made, 0)
            if first < len(data):
                to = made + first - offset_bytes
                buffer[to : to + len(data) - first] = data[first:]
            made += len(data)
            self.inflated_bytes += len(data)
            if made // step > len(self._snapshots) and made < self.num_bytes:
                self._snapshots.append(_State(inflater.copy(), read, made))
        if made == self.num_bytes:
            self._finish(inflater, read)
            self._state = None
            self._snapshots.clear()
        elif self.num_bytes > _SMALL_BYTES:
            self._state = _State(inflater, read, made)

    def _spooled(self) -> IO[bytes] | None:
        """All the inflated bytes, in memory or a file without a name; None where there is no room for one."""
        is_small = self.num_bytes <= _HELD_BYTES
        spool: IO[bytes] = io.BytesIO() if is_small else tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, spool.close)
        self._state = None
        self._snapshots.clear()
        try:
            for block in scan(self, 0, self.num_bytes):
                spool.write(block)
            spool.flush()
        except OSError:
            spool.close()
            return None
        return spool

    def _begin(self, offset_bytes: int) -> _State:
        """The furthest known state that is not past `offset_bytes`."""
        known = [s for s in self._snapshots if s.made_bytes <= offset_bytes]
        best = known[-1] if known else _State(zlib.decompressobj(-zlib.MAX_WBITS), 0, 0)
        if self._state is not None and best.made_bytes <= self._state.made_bytes <= offset_bytes:
            best, self._state = self._state, None
            return best
        return _State(best.inflater.copy(), best.read_bytes, best.made_bytes)

    def _compressed(self, read_bytes: int) -> bytes:
        wanted = min(BLOCK_BYTES, self._compressed_bytes - read_bytes)
        return self._file.read_at(self._offset_bytes + read_bytes, wanted)

    def _finish(self, inflater: zlib._Decompress, read: int) -> None:
        """Every compressed byte was used, and no inflated one is left over."""
        while not inflater.eof:
            pending = inflater.unconsumed_tail
            if not pending:
                pending = self._compressed(read)
                read += len(pending)
            extra = inflater.decompress(pending, 1)
            if extra:
                raise self._corrupt(f"holds more than {self.num_bytes} bytes")
            if not inflater.eof and not inflater.unconsumed_tail and read == self._compressed_bytes:
                raise self._corrupt("is cut off")
        if inflater.unused_data or read != self._compressed_bytes:
            raise self._corrupt("ends before its compressed bytes do")

    def _corrupt(self, what: str) -> CorruptError:
        return CorruptError(f"a deflated record {what}", str(self._file.path), _HINT)

"""Bytes that a pickle spells as text: protocols 0 to 2 have no bytes, and write a character for each.

Source: CPython's Lib/pickle.py (`save_bytes`).
"""

from __future__ import annotations

from bisect import bisect_right

from ptsave.core.storage import Storage

_PIECE_BYTES = 1024 * 1024


class Latin1Storage(Storage):
    """The bytes behind a long text in UTF-8, decoded a piece at a time and never held whole."""

    def __init__(self, inner: Storage) -> None:
        """Read the text once, to know where its characters are.

        Raises: UnicodeError where it is not text, or has a character that is not a byte.
        """
        self.inner: Storage = inner
        self._starts: list[int] = []
        """The number of the first character of each piece."""
        self._places: list[int] = []
        """The offset of each piece in the text (bytes)."""
        place = num_bytes = 0
        while place < inner.num_bytes:
            self._starts.append(num_bytes)
            self._places.append(place)
            end = min(place + _PIECE_BYTES, inner.num_bytes)
            if end < inner.num_bytes and self._raw(end - 1, end)[0] >= 0xC0:
                end -= 1  # the second byte of that character would be in the next piece
            num_bytes += len(self._decoded(place, end))
            place = end
        self._places.append(place)
        self.num_bytes = num_bytes

    def _raw(self, begin: int, end: int) -> bytes:
        buffer = bytearray(end - begin)
        self.inner.read_into(begin, memoryview(buffer))
        return bytes(buffer)

    def _decoded(self, begin: int, end: int) -> bytes:
        return self._raw(begin, end).decode("utf-8").encode("latin-1")

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `offset_bytes`."""
        done = 0
        while done < len(buffer):
            piece = bisect_right(self._starts, offset_bytes + done) - 1
            data = self._decoded(self._places[piece], self._places[piece + 1])
            skipped = offset_bytes + done - self._starts[piece]
            part = data[skipped : skipped + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)

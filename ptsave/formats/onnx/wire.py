"""Protocol Buffers' wire format, read from a file one field at a time; what is skipped is never read.

Source: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ptsave.core.caps import room
from ptsave.errors import CorruptError, LimitError
from ptsave.storage.files import InputFile

MAX_FIELDS = 2_000_000
"""Cap on the fields of all messages in a small file: two bytes spell one, and it takes a microsecond."""
MAX_TEXT_BYTES = 100_000_000
"""Cap on one text."""
MAX_UNKNOWN = 100
"""How many kinds of unknown fields are told apart."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""The wire types; 3 and 4 are groups, which none of these messages has."""

DAMAGED = "the file is damaged or was written by a faulty program; get it again from its source"
_TRUNCATED = "copy or download the file again"
_BLOCK_BYTES = 16 * 1024
"""How much is read behind something that was skipped; twice as much each time that what follows is wanted."""
_MOST_BLOCK_BYTES = 1024 * 1024
_LONGEST_HEADER = 20
"""Bytes of a tag and of the number or length behind it, at most."""


class Span(NamedTuple):
    """Where the bytes of a field lie in the file."""

    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin


class Field(NamedTuple):
    """A field that a message may have."""

    name: str
    wire_types: tuple[int, ...]
    is_repeated: bool = False
    is_skipped: bool = False
    """Whether nobody wants its value."""


class Message(NamedTuple):
    """What a kind of message may hold, by the numbers of its fields."""

    name: str
    fields: Mapping[int, Field]


class WireReader:
    """Reads messages out of a file; counts all fields of all of them."""

    def __init__(self, file: InputFile) -> None:
        self.file = file
        self.unknown: dict[str, None] = {}
        """The fields that their messages are not known to have, in words."""
        self._num_left = self._most = MAX_FIELDS * room(file.stored_bytes)
        self._data, self._start = b"", 0
        self._block_bytes = _BLOCK_BYTES

    def read(self, message: Message, span: Span) -> Iterator[tuple[str, Any]]:
        """The fields of the message in `span`, in order: the name of each with its number, or with the Span
        where its bytes lie.

        Raises: CorruptError where they are no such message, or one that comes once comes twice; LimitError.
        """
        at, end = span
        known = message.fields
        met = 0
        while at < end:
            data, start = self._around(at)
            i = at - start
            try:
                number = data[i]
                i += 1
                if number >= 0x80:
                    number, i = varint(data, i - 1)
                wire_type, number = number & 7, number >> 3
                value = first = 0
                if wire_type in (BYTES, VARINT):
                    value = data[i]
                    i += 1
                    if value >= 0x80:
                        value, i = varint(data, i - 1)
                    first = start + i
                    at = first + value if wire_type == BYTES else first
                elif wire_type in (FIXED64, FIXED32):
                    first = start + i
                    at = first + (8 if wire_type == FIXED64 else 4)
                else:
                    raise self.corrupt(f"wire type {wire_type} in {message.name}")
            except IndexError:
                raise self._truncated(message) from None
            except ValueError:
                raise self.corrupt(f"a number of more than 64 bits in {message.name}") from None
            if at > end:
                raise self._truncated(message)
            self._num_left -= 1
            if self._num_left < 0:
                raise LimitError("onnx_fields", self._most, "more", str(self.file.path))
            field = known.get(number)
            if field is None:
                self._unknown(message, number)
                continue
            if wire_type not in field.wire_types:
                raise self.corrupt(f"{message.name}.{field.name} has the wire type {wire_type}")
            if not field.is_repeated:
                if met >> number & 1:
                    raise self.corrupt(f"{message.name}.{field.name} comes twice")
                met |= 1 << number
            if not field.is_skipped:
                yield field.name, value if wire_type == VARINT else Span(first, at)

    def text(self, span: Span | None) -> str:
        """The text that lies at `span`; empty where there is none.

        Raises: CorruptError where it is not UTF-8; LimitError.
        """
        if span is None:
            return ""
        try:
            return self.bytes_at(span).decode()
        except UnicodeDecodeError:
            raise self.corrupt("a text that is not UTF-8") from None

    def bytes_at(self, span: Span) -> bytes:
        """The bytes that lie at `span`. Raises: LimitError."""
        if span.num_bytes > MAX_TEXT_BYTES:
            raise LimitError("text_bytes", MAX_TEXT_BYTES, span.num_bytes, str(self.file.path))
        first = span.begin - self._start
        if first >= 0 and span.end - self._start <= len(self._data):
            return self._data[first : first + span.num_bytes]
        return self.file.read_at(span.begin, span.num_bytes)

    def numbers(self, value: int | Span) -> Iterator[int]:
        """What one field of a repeated number has: itself, or several where they are packed.

        Raises: CorruptError; LimitError.
        """
        if isinstance(value, int):
            yield value
            return
        data = self.bytes_at(value)
        at = 0
        try:
            while at < len(data):
                self._num_left -= 1
                if self._num_left < 0:
                    raise LimitError("onnx_fields", self._most, "more", str(self.file.path))
                number, at = varint(data, at)
                yield number
        except (IndexError, ValueError):
            raise self.corrupt("a list of numbers that ends inside of one") from None

    def corrupt(self, what: str) -> CorruptError:
        return CorruptError(f"the file is not a sound ONNX model: {what}"[:300], str(self.file.path), DAMAGED)

    def _truncated(self, message: Message) -> CorruptError:
        what = f"truncated: {message.name} ends inside a field"
        return CorruptError(what, str(self.file.path), _TRUNCATED)

    def _around(self, at: int) -> tuple[bytes, int]:
        """Bytes of the file and where they begin, the header of the field at `at` among them."""
        end = self._start + len(self._data)
        if at < self._start or (at + _LONGEST_HEADER > end and end < self.file.size_bytes):
            follows = self._start <= at <= end
            self._block_bytes = min(2 * self._block_bytes, _MOST_BLOCK_BYTES) if follows else _BLOCK_BYTES
            self._start = at
            self._data = self.file.read_at(at, min(self._block_bytes, self.file.size_bytes - at))
        return self._data, self._start

    def _unknown(self, message: Message, number: int) -> None:
        if not 0 < number < 2**29:
            raise self.corrupt(f"a field with the number {number} in {message.name}")
        if len(self.unknown) < MAX_UNKNOWN:
            self.unknown[f"the field {number} of {message.name}, which ptsave does not know"] = None


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends.

    Raises: IndexError past the data; ValueError past 64 bits.
    """
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise ValueError
    if value >> 64:
        raise ValueError
    return value, at


def signed(number: int) -> int:
    """A varint as the int64 that it spells."""
    return number - 2**64 if number >> 63 else number

"""Numbers, texts and arrays of a GGUF header, read from front to back.

Source: ggml's docs/gguf.md.
"""

from __future__ import annotations

from struct import calcsize, unpack_from
from typing import Any

from ptsave.core.caps import room
from ptsave.errors import CorruptError, LimitError, UnreadableError
from ptsave.storage.files import InputFile

MAX_ITEMS = 1_000_000
"""Cap on the items of all arrays in the metadata of a small file."""
MAX_NESTING = 8
"""Cap on how deep arrays nest."""
MAX_TEXT_BYTES = 100_000_000
"""Cap on one text."""
TEXT, ARRAY, BOOL = 8, 9, 7
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "?", 10: "Q", 11: "q", 12: "d"}
"""The types of numbers → how `struct` spells them. Source: `gguf_metadata_value_type`."""
DAMAGED = "the file is damaged or was written by a faulty program; get it again from its source"
_TRUNCATED = "copy or download the file again"
_BLOCK_BYTES = 256 * 1024


class Cursor:
    """A place in a file's header, which moves as things are read."""

    def __init__(self, file: InputFile, at: int, order: str) -> None:
        """`order`: the byte order, `<` or `>`."""
        self.at, self.order = at, order
        self._file = file
        self._data, self._start = b"", at
        self._num_left = self._most = MAX_ITEMS * room(file.stored_bytes)

    def number(self, kind: str) -> Any:
        """A number of the type `kind` of `struct`. Raises: CorruptError."""
        return unpack_from(self.order + kind, *self._bytes(calcsize(kind)))[0]

    def text(self) -> str:
        """A text, which its length precedes. Raises: CorruptError; LimitError."""
        num_bytes = self.number("Q")
        if num_bytes > MAX_TEXT_BYTES:
            raise LimitError("text_bytes", MAX_TEXT_BYTES, num_bytes, str(self._file.path))
        data, begin = self._bytes(num_bytes)
        return data[begin : begin + num_bytes].decode("utf-8", "backslashreplace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """A value of the metadata of type `kind`: a number, a text or a list.

        Raises: CorruptError; LimitError.
        """
        if kind == TEXT:
            return self.text()
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind != ARRAY:
            raise self.corrupt(f"a value of the unknown type {kind}")
        if depth == MAX_NESTING:
            raise LimitError("nested_arrays", MAX_NESTING, "more", str(self._file.path))
        inner, count = self.number("I"), self.number("Q")
        self._num_left -= count
        if self._num_left < 0:
            raise LimitError("gguf_items", self._most, "more", str(self._file.path))
        if inner not in NUMBERS:
            return [self.value(inner, depth + 1) for _ in range(count)]
        spelled = f"{self.order}{count}{NUMBERS[inner]}"
        return [*unpack_from(spelled, *self._bytes(calcsize(spelled)))]

    def corrupt(self, what: str) -> UnreadableError:
        return CorruptError(f"no sound GGUF file: {what}"[:300], str(self._file.path), DAMAGED)

    def _bytes(self, num_bytes: int) -> tuple[bytes, int]:
        """Bytes that contain the next `num_bytes`, and where these begin; the cursor moves past them."""
        first = self.at
        if first + num_bytes > self._file.size_bytes:
            what = f"truncated: the header needs {num_bytes} bytes at offset {first}"
            raise CorruptError(what, str(self._file.path), _TRUNCATED)
        if first + num_bytes > self._start + len(self._data):
            self._start = first
            wanted = max(num_bytes, min(_BLOCK_BYTES, self._file.size_bytes - first))
            self._data = self._file.read_at(first, wanted)
        self.at = first + num_bytes
        return self._data, first - self._start

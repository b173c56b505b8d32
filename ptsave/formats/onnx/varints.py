"""Integers that a file spells as varints end to end, decoded a block at a time as they are read."""

from __future__ import annotations

from bisect import bisect_right

from ptsave.core.dtypes import DType
from ptsave.core.storage import BLOCK_BYTES
from ptsave.core.values.gather import MadeStorage
from ptsave.errors import CorruptError
from ptsave.formats.onnx.wire import DAMAGED, Span
from ptsave.storage.files import InputFile

_CONTINUED = bytes(range(0x80, 0x100))
"""The bytes of a varint but for its last."""
_LONGEST = 10


class VarintStorage(MadeStorage):
    """The elements of a tensor that lie as varints in a span of a file.

    Each is as many low bytes of its number as its dtype has. Opening reads the span once, to count them.
    """

    def __init__(self, file: InputFile, span: Span, dtype: DType) -> None:
        """Raises: CorruptError where the span ends inside a number."""
        super().__init__()
        self._in_file, self._end, self._dtype = file, span.end, dtype
        self._begins: list[int] = []
        """Of each block: where it begins in the file."""
        self._firsts: list[int] = []
        """Of each block: how many numbers lie before it."""
        at, count = span
        count = 0
        while at < span.end:
            block = file.read_at(at, min(BLOCK_BYTES, span.end - at))
            whole = block.rstrip(_CONTINUED)
            if (
                len(block) - len(whole) >= _LONGEST
                or not whole
                or (at + len(block) == span.end != at + len(whole))
            ):
                raise self._corrupt()
            self._begins.append(at)
            self._firsts.append(count)
            count += len(whole.translate(None, _CONTINUED))
            at += len(whole)
        self.num_elements = count
        self.num_bytes = count * dtype.itemsize

    def _load_window(self, at_bytes: int) -> None:
        import numpy as np

        block = bisect_right(self._firsts, at_bytes // self._dtype.itemsize) - 1
        end = self._begins[block + 1] if block + 1 < len(self._begins) else self._end
        data = np.frombuffer(self._in_file.read_at(self._begins[block], end - self._begins[block]), np.uint8)
        lasts = np.flatnonzero(data < 0x80)
        firsts = np.concatenate(([0], lasts[:-1] + 1))
        lengths = lasts - firsts + 1
        longest = int(lengths.max())
        if longest > _LONGEST:
            raise self._corrupt()
        values = np.zeros(len(lasts), np.uint64)
        for i in range(longest):
            longer = lengths > i
            values[longer] |= (data[firsts[longer] + i] & np.uint8(0x7F)).astype(np.uint64) << np.uint64(
                7 * i
            )
        if self._dtype.kind == "bool":
            values = (values & np.uint64(0xFFFFFFFF)) != 0
        made = values.astype(f"<u{self._dtype.itemsize}")
        self._window = memoryview(made.view(np.uint8).data)
        self._window_start = self._firsts[block] * self._dtype.itemsize

    def _corrupt(self) -> CorruptError:
        what = "the file is not a sound ONNX model: a list of numbers that ends inside of one"
        return CorruptError(what, str(self._in_file.path), DAMAGED)

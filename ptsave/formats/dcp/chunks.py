"""A tensor that lies in rectangular chunks, presented as one contiguous run of bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import prod
from typing import NamedTuple

from isal.isal_zlib import crc32_combine

from ptsave.core.nodes import TensorEntry, contiguous_strides
from ptsave.core.storage import BLOCK_BYTES, Run, Storage
from ptsave.core.values.gather import contiguous
from ptsave.core.values.resolved import resolved
from ptsave.errors import CorruptError, LimitError

MAX_COMPARISONS = 4_000_000
"""Cap on the pairs of chunks that are checked against each other to show that none overlap."""
FEW_ROWS = 16
"""So many are copied one by one; importing NumPy costs as much as a hundred thousand."""


class Box(NamedTuple):
    """Where a chunk lies in its tensor, in elements."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return prod(self.sizes)


def check_cover(shape: tuple[int, ...], boxes: Sequence[Box], where: str) -> None:
    """Every element of `shape` lies in exactly one box.

    Raises: CorruptError; LimitError past MAX_COMPARISONS.
    """
    if len(boxes) == 1 and boxes[0] == ((0,) * len(shape), shape):
        return
    for box in boxes:
        if not (len(box.offsets) == len(box.sizes) == len(shape)) or any(
            offset < 0 or size < 0 or offset + size > whole
            for offset, size, whole in zip(box.offsets, box.sizes, shape, strict=True)
        ):
            raise CorruptError(
                f"a chunk of {list(box.sizes)} at {list(box.offsets)} is outside", where, _HINT
            )
    filled = [box for box in boxes if box.num_elements]
    held = sum(box.num_elements for box in filled)
    if held != prod(shape):
        what = "overlap" if held > prod(shape) else "do not cover it"
        raise CorruptError(f"its chunks {what}: {held} elements for {list(shape)}", where, _HINT)
    if len(filled) < 2:
        return
    # as many elements as the tensor has, so it is enough that no two boxes overlap
    axis = max(range(len(shape)), key=lambda d: len({box.offsets[d] for box in filled}))
    comparisons = 0
    open_boxes: list[Box] = []
    for box in sorted(filled, key=lambda b: b.offsets[axis]):
        start = box.offsets[axis]
        open_boxes = [other for other in open_boxes if other.offsets[axis] + other.sizes[axis] > start]
        comparisons += len(open_boxes)
        if comparisons > MAX_COMPARISONS:
            raise LimitError("chunk_comparisons", MAX_COMPARISONS, "more", where)
        if any(_overlap(box, other) for other in open_boxes):
            raise CorruptError("two of its chunks overlap", where, _HINT)
        open_boxes.append(box)


_HINT = "the checkpoint's metadata is damaged, or mixes two checkpoints; copy it again"


def _overlap(a: Box, b: Box) -> bool:
    return all(
        max(oa, ob) < min(oa + sa, ob + sb)
        for oa, sa, ob, sb in zip(a.offsets, a.sizes, b.offsets, b.sizes, strict=True)
    )


def assemble(name: str, shape: tuple[int, ...], chunks: Sequence[tuple[Box, TensorEntry]]) -> TensorEntry:
    """The whole tensor, of chunks that cover it and share one dtype; nothing is read.

    One chunk stays as it is. Several become one storage: the chunks end to end where they were split
    along the first dimension only, else gathered as they are read.
    """
    filled = [chunk for chunk in chunks if chunk[0].num_elements] or list(chunks[:1])
    first = filled[0][1]
    if len(filled) == 1 and filled[0][0].sizes == shape:
        return first.named(name)
    if any(entry.kind != first.kind for _, entry in filled):  # such as one that is conjugate, one that is not
        filled = [(box, resolved(entry)) for box, entry in filled]
        first = filled[0][1]
    filled.sort(key=lambda chunk: chunk[0].offsets)
    storage: Storage
    if all(box.sizes[1:] == shape[1:] for box, _ in filled):
        storage = ConcatenatedStorage([(*contiguous(entry), entry.num_bytes) for _, entry in filled])
    else:
        storage = TiledStorage(shape, first.dtype.itemsize, filled)
    return TensorEntry(name, first.dtype, shape, contiguous_strides(shape), storage, 0, first.kind)


def window(entry: TensorEntry, box: Box) -> TensorEntry:
    """The part of a tensor that lies in `box`, as a view; nothing is read."""
    offset = entry.offset + sum(o * stride for o, stride in zip(box.offsets, entry.strides, strict=True))
    return TensorEntry(
        entry.name,
        entry.dtype,
        box.sizes,
        entry.strides,
        entry.storage,
        offset if box.num_elements else entry.offset,
        entry.kind,
        entry.requires_grad,
    )


class ConcatenatedStorage(Storage):
    """Runs of bytes of other storages, end to end."""

    def __init__(self, parts: Sequence[Run]) -> None:
        self.parts = tuple(parts)
        self.sources = tuple(source for source, _, _ in parts)
        self._starts = [0]
        for _, _, num_bytes in self.parts:
            self._starts.append(self._starts[-1] + num_bytes)
        self.num_bytes = self._starts[-1]

    def expect(self, offset_bytes: int, num_bytes: int) -> None:
        end = offset_bytes + num_bytes
        for (inner, begin, size), start in zip(self.parts, self._starts, strict=False):
            first, last = max(offset_bytes, start), min(end, start + size)
            if first < last:
                inner.expect(begin + first - start, last - first)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset_bytes`; bytes pass through no second buffer."""
        done = 0
        index = bisect_right(self._starts, offset_bytes) - 1
        while done < len(buffer):
            inner, begin, num_bytes = self.parts[index]
            skip = offset_bytes + done - self._starts[index]
            count = min(num_bytes - skip, len(buffer) - done)
            if count:
                inner.read_into(begin + skip, buffer[done : done + count])
            done += count
            index += 1

    def checksums(self) -> list[tuple[Storage, int]]:
        """Those of the parts; its own, put together, where each is all of a storage."""
        total = 0
        for source, begin, num_bytes in self.parts:
            known = source.checksums()
            if not known or known[0][0] is not source or (begin, num_bytes) != (0, source.num_bytes):
                return super().checksums()
            total = crc32_combine(total, known[0][1], num_bytes)
        return [(self, total)] if self.parts else []


class TiledStorage(Storage):
    """Boxes of any arrangement, as the row-major bytes of the tensor that they tile.

    The elements of a box come in the same order in the box and in the tensor. So whatever part of the
    tensor is asked for, it takes one run of bytes of each box, which is then spread row by row.
    """

    def __init__(
        self, shape: tuple[int, ...], item_bytes: int, chunks: Sequence[tuple[Box, TensorEntry]]
    ) -> None:
        """`chunks`: boxes that tile `shape`, each with a tensor of its sizes."""
        self.num_bytes = prod(shape) * item_bytes
        self._tiles = [_Tile(shape, box, entry, item_bytes) for box, entry in chunks]
        self._tiles.sort(key=lambda tile: tile.first)
        self._reach = list(accumulate((tile.last for tile in self._tiles), max))
        """How far the tiles up to each reach: those before it need not be looked at."""
        self.sources = tuple(tile.source for tile in self._tiles)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset_bytes`."""
        end = offset_bytes + len(buffer)
        for tile in self._tiles_in(offset_bytes, end):
            tile.copy(offset_bytes, end, buffer)

    def expect(self, offset_bytes: int, num_bytes: int) -> None:
        end = offset_bytes + num_bytes
        for tile in self._tiles_in(offset_bytes, end):
            low, high = tile.between(offset_bytes, end)
            if low < high:
                tile.source.expect(tile.begin + low, high - low)

    def _tiles_in(self, begin: int, end: int) -> Iterator[_Tile]:
        """The tiles that may have some of the tensor's bytes [begin, end)."""
        for i in range(bisect_right(self._reach, begin), len(self._tiles)):
            tile = self._tiles[i]
            if tile.first >= end:
                return
            if tile.last > begin:
                yield tile


class _Tile:
    """One box of a tensor; all offsets are in bytes, in units of whole elements where they matter."""

    def __init__(self, shape: tuple[int, ...], box: Box, entry: TensorEntry, item_bytes: int) -> None:
        self.source, self.begin = contiguous(entry)
        strides = [stride * item_bytes for stride in contiguous_strides(shape)]
        local_strides = [stride * item_bytes for stride in contiguous_strides(box.sizes)]
        self._axes = tuple(zip(box.offsets, box.sizes, strides, local_strides, strict=True))
        split = max(d for d in range(len(shape)) if box.sizes[d] != shape[d])
        self._run = box.sizes[split] * local_strides[split]
        """Bytes that lie together both in the box and in the tensor."""
        self._row_axes = self._axes[: split + 1]
        self.first = sum(offset * stride for offset, _, stride, _ in self._axes)
        self.last = self.first + sum((size - 1) * stride for _, size, stride, _ in self._axes) + item_bytes

    def copy(self, start: int, end: int, buffer: memoryview) -> None:
        """Put what the box has of the tensor's bytes [start, end) into `buffer`."""
        low, high = self.between(start, end)
        for piece in range(low, high, BLOCK_BYTES):
            data = memoryview(bytearray(min(BLOCK_BYTES, high - piece)))
            self.source.read_into(self.begin + piece, data)
            at = 0
            for position, count, repeats, step in self._rows(piece, piece + len(data)):
                rows = data[at : at + count * repeats]
                _scatter(rows, buffer[position - start :], count, repeats, step)
                at += len(rows)

    def between(self, start: int, end: int) -> tuple[int, int]:
        """Which of the box's bytes are among the tensor's bytes [start, end)."""
        return self._before(start), self._before(end)

    def _before(self, position: int) -> int:
        """How many of the box's bytes come before the tensor's byte `position`."""
        before = 0
        for offset, size, stride, local_stride in self._axes:
            index, position = divmod(position, stride)
            if index < offset:
                return before
            if index >= offset + size:
                return before + size * local_stride
            before += (index - offset) * local_stride
        return before + position

    def _rows(self, low: int, high: int) -> Iterator[tuple[int, int, int, int]]:
        """The box's bytes [low, high) as runs: position in the tensor, bytes, times, bytes to the next."""
        while low < high:
            rest = low
            position = 0
            for offset, _, stride, local_stride in self._row_axes:
                index, rest = divmod(rest, local_stride)
                position += (offset + index) * stride
            count, repeats, step = min(self._run - low % self._run, high - low), 1, 0
            if count == self._run and len(self._row_axes) > 1:
                # whole rows, as many as follow each other along the axis above
                _, size, step, local_stride = self._row_axes[-2]
                repeats = min(size - low // local_stride % size, (high - low) // count)
            yield position + rest, count, repeats, step
            low += count * repeats


def _scatter(rows: memoryview, target: memoryview, count: int, repeats: int, step: int) -> None:
    """Copy rows of `count` bytes that lie end to end to places that are `step` bytes apart."""
    if repeats < FEW_ROWS:
        for i in range(repeats):
            target[i * step : i * step + count] = rows[i * count : (i + 1) * count]
        return
    import numpy as np

    last = (repeats - 1) * step
    places = np.frombuffer(target[:last], np.uint8).reshape(repeats - 1, step)
    places[:, :count] = np.frombuffer(rows[:-count], np.uint8).reshape(repeats - 1, count)
    target[last : last + count] = rows[-count:]

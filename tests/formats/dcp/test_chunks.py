"""Tensors in chunks, checked against NumPy's slicing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptsave.core.dtypes import BY_NAME
from ptsave.core.nodes import TensorEntry, contiguous_strides
from ptsave.core.storage import MemoryStorage, Storage
from ptsave.errors import CorruptError, LimitError
from ptsave.formats.dcp import chunks
from ptsave.formats.dcp.chunks import Box, ConcatenatedStorage, TiledStorage, assemble, check_cover

Shape = tuple[int, ...]


def grid(cuts: list[list[int]]) -> Iterator[Box]:
    """The boxes between the cuts (beginning and end included) of each dimension."""
    for corner in itertools.product(*[itertools.pairwise(places) for places in cuts]):
        yield Box(tuple(low for low, _ in corner), tuple(high - low for low, high in corner))


@st.composite
def tilings(draw: st.DrawFn) -> tuple[Shape, list[Box]]:
    shape = tuple(draw(st.lists(st.integers(1, 7), max_size=4)))
    cuts = [sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=2))}) for size in shape]
    return shape, draw(st.permutations(list(grid(cuts))))


def chunk(array: np.ndarray, box: Box) -> tuple[Box, TensorEntry]:
    """The part of `array` in `box`, as a tensor of its own."""
    ends = [offset + size for offset, size in zip(box.offsets, box.sizes, strict=True)]
    part = array[tuple(map(slice, box.offsets, ends))]
    storage = MemoryStorage(memoryview(part.tobytes()))
    return box, TensorEntry(
        "", BY_NAME[array.dtype.name], box.sizes, contiguous_strides(box.sizes), storage, 0
    )


@given(
    tilings(),
    st.sampled_from(["int8", "int16", "float32", "complex128"]),
    st.sampled_from([2, chunks.FEW_ROWS]),
    st.data(),
)
def test_any_tiling_reads_as_the_whole(
    tiling: tuple[Shape, list[Box]], dtype: str, few_rows: int, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "FEW_ROWS", few_rows)
        check_reading(*tiling, dtype, data)


def check_reading(shape: Shape, boxes: list[Box], dtype: str, data: st.DataObject) -> None:
    array = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
    check_cover(shape, boxes, "")
    entry = assemble("name", shape, [chunk(array, box) for box in boxes])
    assert (entry.name, entry.shape, entry.num_bytes) == ("name", shape, array.nbytes)
    low = data.draw(st.integers(0, array.nbytes))
    high = data.draw(st.integers(low, array.nbytes))
    for start, end in ((0, array.nbytes), (low, high)):
        buffer = bytearray(end - start)
        entry.storage.read_into(start, memoryview(buffer))
        assert buffer == array.tobytes()[start:end]


class Asked(Storage):
    """Says what it was told to expect, and what was read of it."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.expected: set[int] = set()
        self.was_read: set[int] = set()

    def expect(self, offset_bytes: int, num_bytes: int) -> None:
        self.expected |= set(range(offset_bytes, offset_bytes + num_bytes))

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        self.was_read |= set(range(offset_bytes, offset_bytes + len(buffer)))


@given(tilings(), st.data())
def test_of_a_part_as_much_is_expected_as_is_read(
    tiling: tuple[Shape, list[Box]], data: st.DataObject
) -> None:
    """Whoever reads a part of a tensor on another machine asks for no other bytes."""
    shape, boxes = tiling
    asked = [Asked(box.num_elements * 4) for box in boxes]
    entries = [
        (box, TensorEntry("", BY_NAME["float32"], box.sizes, contiguous_strides(box.sizes), storage, 0))
        for box, storage in zip(boxes, asked, strict=True)
    ]
    storage = assemble("w", shape, entries).storage
    begin = data.draw(st.integers(0, storage.num_bytes))
    num_bytes = data.draw(st.integers(0, storage.num_bytes - begin))
    storage.expect(begin, num_bytes)
    storage.read_into(begin, memoryview(bytearray(num_bytes)))
    assert [one.expected for one in asked] == [one.was_read for one in asked]
    assert sum(len(one.was_read) for one in asked) == num_bytes


def test_many_narrow_rows() -> None:
    array = np.random.default_rng(0).integers(0, 255, (3, 40_000, 10), dtype="uint8")
    boxes = list(grid([[0, 1, 3], [0, 17, 40_000], [0, 1, 6, 10]]))
    entry = assemble("x", array.shape, [chunk(array, box) for box in boxes])
    buffer = bytearray(array.nbytes)
    for start in range(0, array.nbytes, 99_991):
        entry.storage.read_into(start, memoryview(buffer)[start : start + 99_991])
    assert buffer == array.tobytes()


@given(tilings(), st.data())
def test_boxes_that_do_not_tile_are_refused(tiling: tuple[Shape, list[Box]], data: st.DataObject) -> None:
    shape, boxes = tiling
    missing = data.draw(st.integers(0, len(boxes) - 1))
    without = boxes[:missing] + boxes[missing + 1 :]
    with pytest.raises(CorruptError, match="do not cover"):
        check_cover(shape, without, "")
    with pytest.raises(CorruptError, match="overlap"):
        check_cover(shape, [*boxes, boxes[missing]], "")
    same_size = [box for box in without if box.sizes == boxes[missing].sizes]
    if same_size:
        with pytest.raises(CorruptError, match="overlap"):
            check_cover(shape, [*without, same_size[0]], "")


@pytest.mark.parametrize(
    "box",
    [Box((0,), (3,)), Box((0, 0), (3, 5)), Box((-1, 0), (3, 4)), Box((1, 0), (3, 4)), Box((0, 0), (3, -4))],
)
def test_boxes_outside_are_refused(box: Box) -> None:
    with pytest.raises(CorruptError, match="outside"):
        check_cover((3, 4), [box], "")


def test_the_work_has_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = list(grid([list(range(31)), list(range(31))]))
    check_cover((30, 30), boxes, "")
    monkeypatch.setattr(chunks, "MAX_COMPARISONS", 100)
    with pytest.raises(LimitError, match="chunk_comparisons"):
        check_cover((30, 30), boxes, "")


def test_rows_lie_end_to_end_and_one_chunk_stays_as_it_is() -> None:
    array = np.arange(12, dtype="int16").reshape(4, 3)
    rows = assemble("x", (4, 3), [chunk(array, box) for box in grid([[0, 1, 4], [0, 3]])])
    assert isinstance(rows.storage, ConcatenatedStorage)
    assert [num_bytes for _, _, num_bytes in rows.storage.parts] == [6, 18]
    columns = assemble("x", (4, 3), [chunk(array, box) for box in grid([[0, 4], [0, 1, 3]])])
    assert isinstance(columns.storage, TiledStorage)
    box, part = chunk(array, Box((0, 0), (4, 3)))
    assert assemble("x", (4, 3), [(box, part)]).storage is part.storage


def test_a_chunk_that_is_negative_beside_one_that_is_not() -> None:
    array = np.array([1.0, 2.0], "f4")
    found = [chunk(array, Box((place,), (1,))) for place in range(2)]
    found[1][1].kind = "neg"
    for order in (found, found[::-1]):
        whole = assemble("t", (2,), order)
        data = bytearray(8)
        whole.storage.read_into(0, memoryview(data))
        assert (whole.kind, np.frombuffer(data, "f4").tolist()) == ("tensor", [1.0, -2.0])

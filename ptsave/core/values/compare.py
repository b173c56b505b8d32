"""Comparing the values of two tensors, whatever their dtypes, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ptsave.core.nodes import TensorEntry
from ptsave.core.storage import BLOCK_BYTES
from ptsave.core.values.numbers import decode, raw_blocks, values_per_element

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, Any]

BLOCK_ELEMENTS = 64 * 1024
"""How many elements are decoded at a time."""
Progress = Callable[[int], None]
"""Called with the bytes of tensors done since the last call; the calls add up to both sides' `num_bytes`."""


@dataclass(frozen=True, slots=True)
class ValueDiff:
    """How the values of two tensors of one shape differ.

    NaN equals NaN at the same place. A NaN or an infinity against anything else differs by infinity.
    Integers and bool are compared exactly; a float with any other dtype in float64, complex numbers in
    complex128. Quantized and bits dtypes are compared as their stored integers.
    """

    num_different: int = 0
    """float4_e2m1fn_x2 counts two values for each element of the shape."""
    max_abs: int | float = 0
    """The greatest |a - b|."""
    max_rel: float = 0.0
    """The greatest |a - b| / |b|; infinite where b is 0 and a is not."""
    worst: tuple[int, ...] | None = None
    """The first place of the greatest |a - b|; None where nothing differs."""
    worst_a: Any = None
    worst_b: Any = None
    """The values there."""
    num_both_nan: int = 0
    num_outside: int = 0
    """Of those that differ, how many are farther apart than the tolerance that was asked for."""
    num_nan_in_a: int = 0
    """Of those that differ, how many are NaN in a alone."""
    num_nan_in_b: int = 0
    num_infinite: int = 0
    """Of those that differ and are no NaN, how many are infinite in one of the two, or of opposite signs."""
    max_finite: int | float = 0
    """The greatest |a - b| of those that differ and are finite in both."""


Tolerance = tuple[float, float]
"""(rtol, atol): |a - b| may be as much as atol + rtol · |b|."""
EXACT: Tolerance = (0.0, 0.0)


def compare(
    a: TensorEntry, b: TensorEntry, advance: Progress, tolerance: Tolerance = EXACT
) -> ValueDiff | None:
    """How the values of two tensors of one shape differ; None when they are bitwise equal.

    Raises: CorruptError, UnreadableError or LimitError when one cannot be read.
    """
    num_same = _count_same(a, b, advance) if a.dtype is b.dtype else 0
    return None if num_same is None else _compare_values(a, b, num_same, advance, tolerance)


def _paired_blocks(
    a: TensorEntry, b: TensorEntry, num_elements: int
) -> Iterator[tuple[memoryview, memoryview]]:
    """The bytes of both, `num_elements` elements at a time."""
    blocks_a = raw_blocks(a, num_elements * a.dtype.itemsize)
    return zip(blocks_a, raw_blocks(b, num_elements * b.dtype.itemsize), strict=True)


def _count_same(a: TensorEntry, b: TensorEntry, advance: Progress) -> int | None:
    """How many elements of a's dtype, in whole blocks, are bitwise equal at the start; None when all are."""
    num_same = 0
    for block_a, block_b in _paired_blocks(a, b, BLOCK_BYTES // a.dtype.itemsize):
        # bytes compare with memcmp, memoryviews element by element: the copies pay.
        if bytes(block_a) != bytes(block_b):
            return num_same
        num_same += len(block_a) // a.dtype.itemsize
        advance(len(block_a) + len(block_b))
    return None


def _compare_values(
    a: TensorEntry, b: TensorEntry, num_reported: int, advance: Progress, tolerance: Tolerance
) -> ValueDiff:
    """Compare all values; the progress of the first `num_reported` elements was reported before."""
    num_different = num_both_nan = num_outside = num_done = 0
    worst_index = -1
    max_abs: int | float = 0
    max_rel = 0.0
    max_finite: int | float = 0
    kinds = [0, 0, 0]
    worst_a = worst_b = None
    per_element = values_per_element(a.dtype)
    for block_a, block_b in _paired_blocks(a, b, BLOCK_ELEMENTS):
        values_a, values_b = decode(block_a, a.dtype), decode(block_b, b.dtype)
        places, gaps, relative, num_nan = _gaps(values_a, values_b)
        num_both_nan += num_nan
        num_different += len(places)
        if len(places):
            num_outside += _num_outside(gaps, values_b[places], tolerance)
            finite, found = _kinds(gaps, values_a[places], values_b[places])
            kinds = [before + more for before, more in zip(kinds, found, strict=True)]
            max_finite = max([max_finite, *finite.max(keepdims=True).tolist()]) if len(finite) else max_finite
            top = int(gaps.argmax())
            gap = gaps[top : top + 1].tolist()[0]
            max_rel = max(max_rel, float(relative.max()))
            if worst_index < 0 or gap > max_abs:
                max_abs, worst_index = gap, num_done + int(places[top]) // per_element
                worst_a, worst_b = values_a[places[top]].item(), values_b[places[top]].item()
        num_done += len(block_a) // a.dtype.itemsize
        num_new = min(len(block_a) // a.dtype.itemsize, max(num_done - num_reported, 0))
        advance(num_new * (a.dtype.itemsize + b.dtype.itemsize))
    worst = _unravel(worst_index, a.shape) if worst_index >= 0 else None
    return ValueDiff(
        num_different,
        max_abs,
        max_rel,
        worst,
        worst_a,
        worst_b,
        num_both_nan,
        num_outside,
        num_nan_in_a=kinds[0],
        num_nan_in_b=kinds[1],
        num_infinite=kinds[2],
        max_finite=max_finite,
    )


def _kinds(gaps: Array, a: Array, b: Array) -> tuple[Array, tuple[int, int, int]]:
    """The gaps between finite values; how many are NaN in a alone, in b alone, and are infinite otherwise."""
    import numpy as np

    if a.dtype.kind not in "fc" and b.dtype.kind not in "fc":
        return gaps, (0, 0, 0)
    in_a, in_b = (np.isnan(x) if x.dtype.kind in "fc" else np.zeros(len(x), bool) for x in (a, b))
    infinite = np.isinf(gaps) & ~in_a & ~in_b
    counts = int(np.count_nonzero(in_a)), int(np.count_nonzero(in_b)), int(np.count_nonzero(infinite))
    return gaps[~(in_a | in_b | infinite)], counts


def _num_outside(gaps: Array, b: Array, tolerance: Tolerance) -> int:
    """How many of `gaps`, each at least as great as it is called, are beyond the tolerance beside `b`."""
    import numpy as np

    if tolerance == EXACT:
        return len(gaps)
    rtol, atol = tolerance
    with np.errstate(all="ignore"):
        allowed = atol + rtol * np.abs(b.astype(np.complex128 if b.dtype.kind == "c" else np.float64))
        return int(np.count_nonzero(~(gaps.astype(np.float64) <= np.where(np.isfinite(allowed), allowed, 0))))


def _unravel(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The row-major `index` as one index for each dimension."""
    place = []
    for size in reversed(shape):
        index, i = divmod(index, size)
        place.append(i)
    return tuple(reversed(place))


def _gaps(a: Array, b: Array) -> tuple[Array, Array, Array, int]:
    """Where a and b differ, |a - b| and |a - b| / |b| there, and the number of places where both are NaN."""
    import numpy as np

    with np.errstate(all="ignore"):
        a, b = _common(a, b)
        places = np.flatnonzero(a != b)
        a, b = a[places], b[places]
        if a.dtype.kind not in "fc":
            gaps = _integer_gaps(a, b)
            relative = gaps.astype(np.float64) / np.abs(b.astype(np.float64))
            return places, gaps, relative, 0
        a, b = (x.astype(np.complex128 if x.dtype.kind == "c" else np.float64) for x in (a, b))
        both_nan = np.isnan(a) & np.isnan(b)
        places, a, b = places[~both_nan], a[~both_nan], b[~both_nan]
        gaps = np.abs(a - b)
        gaps[np.isnan(gaps)] = math.inf
        relative = gaps / np.abs(b)
        relative[np.isnan(relative)] = math.inf
        return places, gaps, relative, int(np.count_nonzero(both_nan))


def _common(a: Array, b: Array) -> tuple[Array, Array]:
    """Both in one dtype that holds what either can hold (but for 64-bit integers beside floats)."""
    import numpy as np

    a, b = (x.view(np.uint8) if x.dtype.kind == "b" else x for x in (a, b))
    if a.dtype == b.dtype:
        return a, b
    kinds = {a.dtype.kind, b.dtype.kind}
    if "c" in kinds:
        wide: Any = np.complex128
    elif "f" in kinds:
        wide = np.float64
    elif np.dtype(np.uint64) in (a.dtype, b.dtype):
        # Python's integers: no NumPy type holds both uint64 and negative numbers.
        wide = np.uint64 if kinds == {"u"} else object
    else:
        wide = np.int64
    return a.astype(wide), b.astype(wide)


def _integer_gaps(a: Array, b: Array) -> Array:
    """|a - b| exactly, as uint64 (or Python integers)."""
    import numpy as np

    if a.dtype != object:
        wide = np.uint64 if a.dtype.kind == "u" else np.int64
        a, b = a.astype(wide), b.astype(wide)
    gaps: Array = np.where(a > b, a - b, b - a)
    # The difference of two int64 may need 64 bits; it wraps to the right ones.
    return gaps if gaps.dtype == object else gaps.view(np.uint64)

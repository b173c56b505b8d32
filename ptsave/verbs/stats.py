"""Statistics of tensors, and the search for NaN and infinity: one pass, bounded memory, no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import DType
from ptsave.core.nodes import TensorEntry
from ptsave.core.values.histogram import Histogram
from ptsave.core.values.numbers import any_order, blocks, decode, raw_blocks, values_per_element

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, Any]

Progress = Callable[[int], None]
"""Called with the bytes of tensors done since the last call; the calls add up to all tensors' `num_bytes`."""

BLOCK_ELEMENTS = 16 * 1024
"""How many numbers are summed at a time. Measured: twice as fast as blocks whose float64 copies outgrow the
cache and the small sizes that the allocator keeps."""
HISTOGRAM_BINS = 16
_SAFE_EXPONENT = 400
"""Squares of numbers between 2**-400 and 2**400 neither overflow nor vanish, however many are added."""


@dataclass(frozen=True, slots=True)
class TensorStats:
    """Statistics of one tensor, computed in float64.

    Those from `min` to `norm` are of the finite values alone (NaN and infinity are counted beside them),
    and None where there are none. Complex numbers count by their magnitude, bool as 0 and 1, quantized
    and bits dtypes by their stored integers.
    """

    name: str
    num_elements: int
    """float4_e2m1fn_x2 counts two for each element of the shape."""
    min: int | float | None
    max: int | float | None
    mean: float | None
    std: float | None
    """Unbiased (divided by n - 1), as `torch.std`; None for fewer than two finite values."""
    norm: float | None
    """The square root of the sum of the squares."""
    zeros: int
    nans: int
    """A complex number with a NaN part is NaN, whatever its other part."""
    infs: int
    histogram: tuple[int, ...] = ()
    """How many finite values lie in each of HISTOGRAM_BINS equal parts from `min` to `max`, to a 256th of
    that range; empty where there are none."""


@dataclass(frozen=True, slots=True)
class _Sums:
    """What is known of some values; `mean` and `deviation` (divided by n) are of the finite ones."""

    finite: int = 0
    min: int | float = math.inf
    max: int | float = -math.inf
    mean: float = 0.0
    deviation: float = 0.0
    zeros: int = 0
    nans: int = 0
    infs: int = 0


def stats(
    checkpoint: Checkpoint, names: Iterable[str] | None = None, progress: Progress | None = None
) -> Iterator[TensorStats]:
    """The statistics of the named tensors (default: all), in that order; tied tensors are read once.

    Raises: CorruptError, UnreadableError or LimitError when a tensor cannot be read.
    """
    done: dict[Any, TensorStats] = {}
    for entry in _chosen(checkpoint, names):
        if entry.view in done:
            if progress:
                progress(entry.num_bytes)
        else:
            done[entry.view] = _tensor_stats(entry, progress)
        found = done[entry.view]
        yield found if found.name == entry.name else replace(found, name=entry.name)


Counts = dict[Any, tuple[int, int]]
"""NaNs and infinities, by the view that they are in."""


def non_finite(
    checkpoint: Checkpoint,
    progress: Progress | None = None,
    known: Counts | None = None,
) -> Iterator[tuple[str, int, int]]:
    """(name, NaNs, infinities) of each floating-point or complex tensor; tied tensors are read once.

    `known`: what is not counted again, and takes what is counted.

    Raises: CorruptError, UnreadableError or LimitError when a tensor cannot be read.
    """
    done: Counts = {} if known is None else known
    entries = checkpoint.tensors.values()
    for entry in entries:
        if entry.dtype.is_float and entry.view not in done:
            entry.expect()
    for entry in entries:
        found = done.get(entry.view) if entry.dtype.is_float else _NONE
        if found is None:
            found = done[entry.view] = _count_non_finite(entry, progress)
        elif progress:
            progress(entry.num_bytes)
        if entry.dtype.is_float:
            yield entry.name, *found


def _chosen(checkpoint: Checkpoint, names: Iterable[str] | None) -> list[TensorEntry]:
    every = checkpoint.tensors
    chosen = list(every.values()) if names is None else [every[name] for name in names]
    for entry in chosen:
        entry.expect()
    return chosen


def _tensor_stats(entry: TensorEntry, progress: Progress | None) -> TensorStats:
    elements, repeats = any_order(entry)
    sums: _Sums | None = None
    histogram = Histogram()
    for block in blocks(elements, BLOCK_ELEMENTS * entry.dtype.itemsize):
        more, finite = _sums(block)
        histogram.add(finite)
        sums = more if sums is None else _merged(sums, more)
        if progress:
            progress(len(block) * entry.dtype.itemsize // values_per_element(entry.dtype) * repeats)
    sums = sums or _Sums()
    n = sums.finite * repeats
    return TensorStats(
        name=entry.name,
        num_elements=entry.num_elements * values_per_element(entry.dtype),
        min=sums.min if n else None,
        max=sums.max if n else None,
        mean=sums.mean if n else None,
        std=sums.deviation * math.sqrt(n / (n - 1)) if n > 1 else None,
        norm=math.sqrt(n) * math.hypot(sums.mean, sums.deviation) if n else None,
        zeros=sums.zeros * repeats,
        nans=sums.nans * repeats,
        infs=sums.infs * repeats,
        histogram=tuple(count * repeats for count in histogram.spread(HISTOGRAM_BINS)),
    )


def _sums(values: Array) -> tuple[_Sums, Array]:
    """The sums over one block, which is left as it is, and its finite values in float64."""
    import numpy as np

    with np.errstate(all="ignore"):
        if values.dtype.kind == "c":
            is_nan = np.isnan(values)
            values = np.where(is_nan, np.nan, np.abs(values.astype(np.complex128)))
        wide = values.astype(np.float64, copy=False)
        nans = infs = 0
        # One sum is the quickest test: any NaN or infinity stays in it.
        if not math.isfinite(wide.sum()):
            finite = np.isfinite(wide)
            nans = int(np.count_nonzero(np.isnan(wide)))
            infs = len(wide) - int(np.count_nonzero(finite)) - nans
            values, wide = values[finite], wide[finite]
        if not len(values):
            return _Sums(nans=nans, infs=infs), wide
        low, high = values.min(), values.max()
        mean, deviation = _moments(wide, float(low), float(high))
        zeros = len(values) - int(np.count_nonzero(values != 0))
    kind = float if values.dtype.kind == "f" else int
    return _Sums(len(values), kind(low), kind(high), mean, deviation, zeros, nans, infs), wide


def _moments(values: Array, low: float, high: float) -> tuple[float, float]:
    """The mean and the standard deviation (divided by n) of finite float64 `values`, in two passes."""
    import numpy as np

    if low == high:
        return low, 0.0
    exponent = math.frexp(max(abs(low), abs(high)))[1]
    exponent = exponent if abs(exponent) > _SAFE_EXPONENT else 0
    if exponent:
        values = np.ldexp(values, -exponent)
    mean = float(values.sum()) / len(values)
    centred = values - mean
    deviation = math.sqrt(float(np.einsum("i,i->", centred, centred)) / len(values))
    # math.ldexp would raise where the deviation of the largest numbers rounds up to infinity.
    return float(np.ldexp(mean, exponent)), float(np.ldexp(deviation, exponent))


def _merged(a: _Sums, b: _Sums) -> _Sums:
    """The sums over both; weighted so that nothing overflows.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979), taken to square roots.
    """
    n = a.finite + b.finite
    share_a, share_b = (a.finite / n, b.finite / n) if n else (0.0, 0.0)
    gap = math.sqrt(share_a * share_b)
    return _Sums(
        finite=n,
        min=min(a.min, b.min),
        max=max(a.max, b.max),
        mean=a.mean * share_a + b.mean * share_b,
        deviation=math.hypot(
            a.deviation * math.sqrt(share_a),
            b.deviation * math.sqrt(share_b),
            a.mean * gap - b.mean * gap,
        ),
        zeros=a.zeros + b.zeros,
        nans=a.nans + b.nans,
        infs=a.infs + b.infs,
    )


_NON_FINITE_PATTERNS = {
    "float16": ("<u2", 0x7FFF, 0x7C00),
    "bfloat16": ("<u2", 0x7FFF, 0x7F80),
    "complex32": ("<u2", 0x7FFF, 0x7C00),
    "float8_e4m3fn": ("|u1", 0x7F, 0x7F),
    "float8_e5m2": ("|u1", 0x7F, 0x7C),
    "float8_e8m0fnu": ("|u1", 0xFF, 0xFF),
}
"""(word, the bits without the sign, the lowest such pattern that is not finite)."""


@dataclass(slots=True)
class NonFinite:
    """Counts NaNs and infinities in the blocks of one tensor, in any order."""

    dtype: DType
    nans: int = 0
    infinities: int = 0

    def look(self, block: memoryview) -> None:
        """Count those in `block`, which has whole elements."""
        if _has_non_finite(block, self.dtype):
            import numpy as np

            values = decode(block, self.dtype)
            is_nan = np.isnan(values)
            self.nans += int(np.count_nonzero(is_nan))
            self.infinities += int(np.count_nonzero(np.isinf(values) & ~is_nan))

    @property
    def found(self) -> tuple[int, int]:
        """NaNs and infinities; one pair for all of the many tensors that have none."""
        return (self.nans, self.infinities) if self.nans or self.infinities else _NONE


_NONE = (0, 0)


def _count_non_finite(entry: TensorEntry, progress: Progress | None) -> tuple[int, int]:
    found = NonFinite(entry.dtype)
    elements, repeats = any_order(entry)
    for block in raw_blocks(elements):
        found.look(block)
        if progress:
            progress(len(block) * repeats)
    return found.nans * repeats, found.infinities * repeats


def _has_non_finite(block: memoryview, dtype: DType) -> bool:
    """Whether any number in `block` is NaN or infinite, by its bits where NumPy lacks the dtype."""
    import numpy as np

    if dtype.name == "float4_e2m1fn_x2":
        return False
    if dtype.name.endswith("fnuz"):
        return bool((np.frombuffer(block, "|u1") == 0x80).any())
    if dtype.name in _NON_FINITE_PATTERNS:
        word, mask, first = _NON_FINITE_PATTERNS[dtype.name]
        return bool((np.frombuffer(block, word) & mask).max() >= first)
    real = "<f4" if dtype.word_bytes == 4 else "<f8"
    return not np.isfinite(np.frombuffer(block, real)).all()

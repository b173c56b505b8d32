"""How numbers are spread, in one pass and bounded memory: the bins widen as the range does."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, Any]

FINE_BITS = 9
"""The range is counted in at most 2**9 bins and one, of which `spread` makes fewer."""
_INDEX_BITS = 50
"""A bin's number stays below 2**50, however far from 0 the numbers lie."""


class Histogram:
    """Counts of finite float64 numbers; each bin is 2**exponent wide and begins at a multiple of that."""

    def __init__(self) -> None:
        self._low, self._high = math.inf, -math.inf
        self._exponent: int | None = None
        self._first = 0
        self._counts: Array | None = None

    def add(self, values: Array) -> None:
        """Count `values`, one-dimensional and finite."""
        import numpy as np

        if not len(values):
            return
        self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))
        self._widen()
        assert self._exponent is not None
        with np.errstate(all="ignore"):
            bins = np.floor(np.ldexp(values, -self._exponent)).astype(np.int64)
        first = min(int(bins.min()), self._first) if self._counts is not None else int(bins.min())
        counts = np.bincount(bins - first)
        if self._counts is not None:
            at = self._first - first
            grown = np.zeros(max(len(counts), at + len(self._counts)), np.int64)
            grown[: len(counts)] += counts
            grown[at : at + len(self._counts)] += self._counts
            counts = grown
        self._first, self._counts = first, counts

    def _widen(self) -> None:
        """Let the bins be wide enough for all that was seen, and put those that there are together."""
        import numpy as np

        half_range = self._high / 2 - self._low / 2  # the range itself may overflow
        largest = max(abs(self._low), abs(self._high))
        needed = max(
            math.frexp(half_range)[1] + 1 - FINE_BITS if half_range else -1073,
            math.frexp(largest)[1] - _INDEX_BITS if largest else -1073,
            -1073,
        )
        if self._exponent is None or self._counts is None:
            self._exponent = needed
        elif needed > self._exponent:
            shift = min(needed - self._exponent, 63)
            numbers = (self._first + np.arange(len(self._counts), dtype=np.int64)) >> shift
            self._first = int(numbers[0])
            self._counts = np.bincount(numbers - self._first, weights=self._counts).astype(np.int64)
            self._exponent = needed

    def spread(self, num_bins: int) -> tuple[int, ...]:
        """The counts in `num_bins` equal parts from the least to the largest number, to a bin; empty without
        numbers. Where all are one number, they are in the middle."""
        import numpy as np

        if self._counts is None or self._exponent is None:
            return ()
        found = np.zeros(num_bins, np.int64)
        if self._low == self._high:
            found[num_bins // 2] = self._counts.sum()
            return tuple(found.tolist())
        low, high = (math.ldexp(end, -self._exponent) for end in (self._low, self._high))  # in bins
        share = (self._first + np.arange(len(self._counts)) + 0.5 - low) / (high - low)
        places = np.clip((share * num_bins).astype(np.int64), 0, num_bins - 1)
        np.add.at(found, places, self._counts)
        return tuple(found.tolist())

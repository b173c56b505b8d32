"""A histogram in one pass is that of NumPy, to one of its own bins, whatever the order and the range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptsave.core.values.histogram import FINE_BITS, Histogram

finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.lists(finite, max_size=20), max_size=6), st.integers(1, 24))
def test_every_number_is_counted_once(blocks: list[list[float]], num_bins: int) -> None:
    histogram = Histogram()
    for block in blocks:
        histogram.add(np.array(block, np.float64))
    counts = histogram.spread(num_bins)
    number = sum(map(len, blocks))
    assert sum(counts) == number
    assert len(counts) == (num_bins if number else 0)


@pytest.mark.parametrize("offset", [0.0, 1e6, -3.0])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_it_is_that_of_numpy(offset: float, scale: float) -> None:
    values = (np.random.default_rng(0).normal(size=50_000) + offset) * scale
    histogram = Histogram()
    for block in np.array_split(np.sort(np.abs(values - values.mean())) + values.mean(), 7):
        histogram.add(block)
    whole = np.sort(np.abs(values - values.mean())) + values.mean()
    expected, _ = np.histogram(whole, 16)
    found = np.array(histogram.spread(16))
    moved = np.abs(np.cumsum(found) - np.cumsum(expected)).max()
    assert moved <= len(values) * 4 / 2 ** (FINE_BITS - 1)
    assert found.argmax() == expected.argmax()


def test_one_number_is_in_the_middle() -> None:
    histogram = Histogram()
    histogram.add(np.full(5, 3.0))
    assert histogram.spread(5) == (0, 0, 5, 0, 0)


@pytest.mark.parametrize("values", [[1e308, -1e308], [5e-324, 0.0], [1.0, 1.0 + 2**-52], [0.0, -0.0]])
def test_the_ends_of_float64(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(np.array([value]))
    assert sum(histogram.spread(8)) == 2

"""Samples of arrays, taken without torch: those that torch takes of the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptsave.core.values.sketch import BLOCK_ELEMENTS, sample_of
from ptsave.models.behaviour.trace import samples_of


@pytest.mark.parametrize(
    "shape", [(), (0, 3), (5,), (4, 7), (BLOCK_ELEMENTS + 3,), (3, BLOCK_ELEMENTS)], ids=str
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "bool", "complex64"])
def test_a_sample_is_the_one_that_torch_takes(shape: tuple[int, ...], dtype: str) -> None:
    numbers = np.random.default_rng(0).normal(0, 3, shape)
    array = np.asarray(numbers).astype(dtype)
    if dtype == "float32" and array.size > 4:
        array.reshape(-1)[:3] = [np.nan, np.inf, 3e38]
    (expected,) = samples_of(torch.from_numpy(array)).values()
    found = sample_of(array)
    assert (found.dtype, found.shape, found.digest) == (expected.dtype, expected.shape, expected.digest)
    assert found.num_odd == expected.num_odd
    assert found.norm == pytest.approx(expected.norm, rel=1e-5)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_allclose(found.sketch, expected.sketch, atol=1e-4 * (expected.norm + 1e-30))

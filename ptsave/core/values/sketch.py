"""Sketches of arrays, without torch: what `core.behaviour.Sample` keeps of a tensor.

Each element, with a sign that is pseudo-random and fixed, is added to one of sixteen sums. That is linear,
so the sketches of two tensors differ by the sketch of their difference; and its length is, in expectation,
that of the whole difference: not one element is left out, as it would be in a sample of values.

Source: Charikar, Chen, Farach-Colton, "Finding frequent items in data streams", ICALP 2002 (CountSketch);
Alon, Matias, Szegedy, "The space complexity of approximating the frequency moments", STOC 1996.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ptsave.core.behaviour import OUTPUT_VALUES, SKETCH_PLACES, Sample
from ptsave.core.dtypes import BY_NAME
from ptsave.core.values import random
from ptsave.core.values.digest import DEFAULT, hasher, prefix

BLOCK_ELEMENTS = (1 << 15) - SKETCH_PLACES
"""Added up at once: few enough that they stay in the cache, that little is rounded away, and that torch
(below 2**15) does not call up its threads. After that many elements the signs repeat, all turned or none."""
HUGE = 1e30
"""Larger elements (masks of the least float there is) are counted, for beside them no other would show."""
STEP = 2_654_435_761
"""A prime, so that multiples of it visit every place of a tensor once before any twice."""


@cache
def block_signs() -> Any:
    """The sign of each element of a block, -1 or 1 in float64."""
    return _signs("sketch", BLOCK_ELEMENTS)


@cache
def turns(num_blocks: int) -> Any:
    """The sign of each block as a whole, -1 or 1 in float64."""
    return _signs("sketch turns", num_blocks)


def _signs(stream: str, count: int) -> Any:
    bits = random.bits(random.key(0, stream), 0, count) & 1
    return bits.astype("float64") * 2 - 1


def sample_of(array: Any) -> Sample:
    """What is kept of an array of one of the dtypes that NumPy and torch have in common."""
    import numpy as np

    dtype = BY_NAME[str(array.dtype)]
    flat = np.ascontiguousarray(array).reshape(-1)
    digest = hasher(DEFAULT, prefix(dtype, tuple(array.shape)))
    digest.update(flat.view("uint8").data)
    places = np.arange(min(OUTPUT_VALUES, flat.size), dtype="int64") * STEP % max(flat.size, 1)
    values, parts = flat[places], flat
    if dtype.kind == "complex":
        values, parts = values.view(values.real.dtype), flat.view(flat.real.dtype)
    parts = parts.astype("float64")
    odd = ~(np.abs(parts) <= HUGE)
    parts[odd] = 0.0
    sums = np.zeros(SKETCH_PLACES)
    signs, turned = block_signs(), turns(-(-parts.size // BLOCK_ELEMENTS))
    for number, begin in enumerate(range(0, parts.size, BLOCK_ELEMENTS)):
        block = parts[begin : begin + BLOCK_ELEMENTS]
        block = np.pad(block, (0, -block.size % SKETCH_PLACES))
        sums += turned[number] * (block * signs[: block.size]).reshape(SKETCH_PLACES, -1).sum(1)
    return Sample(
        dtype.name,
        tuple(array.shape),
        digest.hexdigest(),
        float(np.sqrt(np.square(parts).sum())),
        int(odd.sum()),
        tuple(sums.tolist()),
        tuple(values.astype("float64").tolist()),
    )

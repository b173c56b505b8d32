"""Sketches: a tensor in sixteen numbers, from which the size of a difference can be told.

Each element, with a sign that is pseudo-random and fixed, is added to one of sixteen sums. That is linear,
so the sketches of two tensors differ by the sketch of their difference; and its length is, in expectation,
that of the whole difference: not one element is left out, as it would be in a sample of values.

Source: Charikar, Chen, Farach-Colton, "Finding frequent items in data streams", ICALP 2002 (CountSketch);
Alon, Matias, Szegedy, "The space complexity of approximating the frequency moments", STOC 1996.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from ptsave.core import random
from ptsave.core.behaviour import SKETCH_PLACES

BLOCK_ELEMENTS = 1 << 16
"""Summed at once, in the cache; after that many elements the signs repeat, all turned or none."""
HUGE = 1e30
"""Larger elements (masks of the least float there is) are counted, for beside them no other would show."""


class Measured(NamedTuple):
    """What is known of all the elements of a tensor together."""

    norm: float
    num_odd: int
    """Elements that are not finite, or beyond HUGE; the others are measured."""
    sketch: tuple[float, ...]


def measure(tensor: torch.Tensor) -> Measured:
    """Norm and sketch of a dense tensor of any plain dtype, where it lies; complex numbers count as two."""
    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat.to(torch.complex128) if flat.dtype == torch.complex32 else flat)
        flat = flat.reshape(-1)
    if flat.dtype not in (torch.float32, torch.float64):
        flat = flat.to(torch.float32 if flat.is_floating_point() else torch.float64)
    norm = float(torch.linalg.vector_norm(flat, dtype=torch.float64))
    num_odd = 0
    if not norm < HUGE:
        odd = ~(flat.abs() <= HUGE)
        num_odd = int(odd.sum())
        flat = flat.masked_fill(odd, 0.0)
        norm = float(torch.linalg.vector_norm(flat, dtype=torch.float64))
    return Measured(norm, num_odd, _sketch(flat))


def _sketch(flat: torch.Tensor) -> tuple[float, ...]:
    """Of each block, the first sixteenth goes to the first sum, and so on: that is quickest to add up."""
    signs = _signs(flat.device, flat.dtype)
    total = torch.zeros(SKETCH_PLACES, dtype=torch.float64, device=flat.device)
    blocks = torch.split(flat, BLOCK_ELEMENTS)
    turns = random.bits(random.key(0, "sketch turns"), 0, len(blocks))
    for block, turn in zip(blocks, turns.tolist(), strict=True):
        signed = block * signs[: len(block)]
        if rest := -len(block) % SKETCH_PLACES:
            signed = torch.nn.functional.pad(signed, (0, rest))
        sums = signed.view(SKETCH_PLACES, -1).sum(1, dtype=torch.float64)
        total += sums if turn % 2 else -sums
    return tuple(total.tolist())


@cache
def _signs(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    bits = torch.from_numpy((random.bits(random.key(0, "sketch"), 0, BLOCK_ELEMENTS) >> 63).astype("uint8"))
    return (bits.to(dtype) * 2 - 1).to(device)

"""Sketches of tensors, as `core.values.sketch` has them of arrays, on the device that a tensor is on."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch.nn import functional

from ptsave.core.behaviour import SKETCH_PLACES
from ptsave.core.values.sketch import BLOCK_ELEMENTS, HUGE, block_signs, turns


class Measured(NamedTuple):
    """What is known of all the elements of a tensor together."""

    norm: float
    num_odd: int
    """Elements that are not finite, or beyond HUGE; the others are measured."""
    sketch: tuple[float, ...]


def measure(flat: torch.Tensor) -> Measured:
    """Norm and sketch of a tensor of one dimension and any plain dtype; complex numbers count as two."""
    if flat.is_complex():
        flat = torch.view_as_real(flat.to(torch.complex128) if flat.dtype == torch.complex32 else flat)
        flat = flat.reshape(-1)
    if flat.dtype not in (torch.float32, torch.float64):
        flat = flat.to(torch.float32 if flat.is_floating_point() else torch.float64)
    norm, sketch = _measured(flat)
    num_odd = 0
    if not norm < HUGE:
        odd = ~(flat.abs() <= HUGE)
        num_odd = int(odd.sum())
        norm, sketch = _measured(flat.masked_fill(odd, 0.0).double())
    return Measured(norm, num_odd, sketch)


def _measured(flat: torch.Tensor) -> tuple[float, tuple[float, ...]]:
    """Of each block, the first sixteenth goes to the first sum, and so on: that is quickest to add up."""
    signs = _signs(flat.device, flat.dtype)
    norms: list[torch.Tensor] = []
    sums: list[torch.Tensor] = []
    for block in torch.split(flat, BLOCK_ELEMENTS):
        if rest := -block.numel() % SKETCH_PLACES:
            block = functional.pad(block, (0, rest))
        norms.append(torch.linalg.vector_norm(block))
        sums.append((block * signs[: block.numel()]).view(SKETCH_PLACES, -1).sum(1))
    turned = _turns(len(sums)).to(flat.device)[:, None] * torch.stack(sums).double()
    return float(torch.stack(norms).double().square().sum().sqrt()), tuple(turned.sum(0).tolist())


@cache
def _signs(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(block_signs()).to(device, dtype)


@cache
def _turns(num_blocks: int) -> torch.Tensor:
    return torch.from_numpy(turns(num_blocks))

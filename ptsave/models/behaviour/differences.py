"""How an output differs from the recorded one, in the figures that `torch.testing.assert_close` uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ptsave.core.behaviour import Sample, folded
from ptsave.core.values.tolerances import TOLERANCES, tolerance

SKETCH_MARGIN = 2.0
"""How far the length that sketches give of a difference may be above the true one, rarely more."""


@dataclass(frozen=True)
class OutputDifference:
    """How one output differs from the recorded one, on the values that both keep."""

    path: str
    is_bitwise_equal: bool = False
    is_within_tolerance: bool = False
    """Whether every kept value is as close as rtol and atol ask, and all of them taken together are."""
    is_void: bool = False
    """Whether it compares nothing: it has no elements, or all are NaN or infinite, or they are not bitwise
    equal and all beyond 1e30, where nothing is measured."""
    why_not: str = ""
    """Set where the two cannot be compared: another shape, missing, NaN."""
    max_absolute: float = 0.0
    max_relative: float | None = None
    """Of the recorded values that are farther from zero than atol; None where there are none."""
    max_ulps: float = 0.0
    rtol: float = 0.0
    atol: float = 0.0

    @property
    def figures(self) -> str:
        """The measured differences in words."""
        relative = "" if self.max_relative is None else f"max relative {self.max_relative:.3g}, "
        return (
            f"max absolute {self.max_absolute:.3g}, {relative}{self.max_ulps:.3g} ULP "
            f"(rtol {self.rtol:g}, atol {self.atol:g})"
        )


def compare_output(
    path: str,
    old: Sample | None,
    new: Sample | None,
    rtol: float | None = None,
    atol: float | None = None,
) -> OutputDifference:
    """Check today's output against the recorded one; None for a tolerance is the dtype's own."""
    if new is None:
        return OutputDifference(path, why_not="the model does not return it any more")
    if old is None:
        return OutputDifference(path, why_not="the model did not return it when it was recorded")
    if old.shape != new.shape:
        return OutputDifference(path, why_not=f"shape {list(old.shape)} → {list(new.shape)}")
    is_void = new.num_odd >= num_parts(new)
    if old.digest == new.digest:
        is_void = is_void and not any(map(math.isfinite, new.values))
        return OutputDifference(path, is_bitwise_equal=True, is_within_tolerance=True, is_void=is_void)
    a, b = kept_values(old, new)
    if old.num_odd != new.num_odd or bool((a.isnan() != b.isnan()).any()):
        odd = f"{old.num_odd} → {new.num_odd} elements"
        return OutputDifference(path, why_not=f"NaN, infinite or beyond 1e30: {odd}")
    dtype = max(old.dtype, new.dtype, key=lambda name: TOLERANCES.get(name, (0.0, 0.0)))
    rtol, atol = tolerance(old.dtype, new.dtype, rtol, atol)
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, 0.0, (a - b).abs())
    largest = float(gap.max()) if gap.numel() else 0.0
    is_far = a.abs() > max(atol, torch.finfo(torch.float32).tiny)  # from zero
    return OutputDifference(
        path,
        is_void=is_void,
        is_within_tolerance=bool((gap <= atol + rtol * a.abs()).all())
        and distance(old.sketch, new.sketch)
        <= SKETCH_MARGIN * (atol * old.num_elements**0.5 + rtol * min(old.norm, new.norm)),
        max_absolute=largest,
        max_relative=float((gap[is_far] / a[is_far].abs()).max()) if largest and is_far.any() else None,
        max_ulps=_ulps(gap, a, dtype) if largest else 0.0,
        rtol=rtol,
        atol=atol,
    )


def num_parts(sample: Sample) -> int:
    """How many real numbers a tensor is made of."""
    return sample.num_elements * (2 if sample.dtype.startswith("complex") else 1)


def kept_values(*samples: Sample) -> tuple[torch.Tensor, ...]:
    """The values that all of the samples keep, in float64."""
    count = min(len(sample.values) for sample in samples)
    return tuple(torch.tensor(sample.values[:count], dtype=torch.float64) for sample in samples)


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """The length of the difference of two tensors, from their sketches; the shorter one sets the places."""
    places = min(len(one), len(other))
    return math.dist(folded(one, places), folded(other, places)) if places else 0.0


def epsilon(dtype: str) -> float:
    """The distance from 1 to the next number of a dtype; 0 where all numbers are whole, and for dtypes that
    torch does not have or has no arithmetic for."""
    known = getattr(torch, dtype, None)
    if not isinstance(known, torch.dtype) or not (known.is_floating_point or known.is_complex):
        return 0.0
    try:
        return torch.finfo(known).eps
    except NotImplementedError:  # two numbers to a byte
        return 0.0


def _ulps(gap: torch.Tensor, values: torch.Tensor, dtype: str) -> float:
    """The largest difference in units in the last place of `dtype` at the recorded value."""
    known = getattr(torch, dtype, torch.float64)
    if not epsilon(dtype):
        return float(gap.max())
    least = torch.finfo(known).tiny
    _, exponent = torch.frexp(values.abs().clamp_min(least))
    unit = epsilon(dtype) * torch.exp2(exponent.double() - 1)
    return float((gap / unit).max())

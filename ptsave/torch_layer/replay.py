"""Replaying a behaviour record, and judging what differs.

Two floating-point programs that compute the same function rarely give the same bits. Whether a
difference is rounding is judged, not guessed: the model is run once more in float64, and what was
recorded may be as far from that as today's own float32 result is, times a margin. A difference that
rounding explains grows out of it; one that it does not explain begins somewhere, in the first module
whose output departs while its inputs still agreed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ptsave.core.behaviour import Behaviour, Call, Sample
from ptsave.core.verdict import Departure
from ptsave.errors import UsageError
from ptsave.torch_layer.inputs import Arguments
from ptsave.torch_layer.observe import environment, watch
from ptsave.torch_layer.trace import Trace

TOLERANCES = {
    "float16": (1e-3, 1e-5),
    "bfloat16": (1.6e-2, 1e-5),
    "float32": (1.3e-6, 1e-5),
    "float64": (1e-7, 1e-7),
    "complex32": (1e-3, 1e-5),
    "complex64": (1.3e-6, 1e-5),
    "complex128": (1e-7, 1e-7),
}
"""dtype → (rtol, atol). Source: torch.testing.assert_close."""
NOISE_MARGIN = 8.0
"""How many times its own rounding noise a difference may be on the same kind of machine."""
FOREIGN_NOISE_MARGIN = 32.0
"""The same across devices and versions, whose kernels add in another order."""
FLOOR_ULPS = 4.0
"""Differences of so many units in the last place of a tensor's typical value are always rounding."""


@dataclass(frozen=True)
class OutputDifference:
    """How one output differs from the recorded one, on the values that both keep."""

    path: str
    is_bitwise_equal: bool
    is_within_tolerance: bool
    why_not: str = ""
    """Set where the two cannot be compared: another shape, missing, NaN."""
    max_absolute: float = 0.0
    max_relative: float = 0.0
    max_ulps: float = 0.0
    rtol: float = 0.0
    atol: float = 0.0


@dataclass(frozen=True)
class Replay:
    """What a replay found out."""

    outputs: Sequence[OutputDifference]
    is_deterministic: bool = True
    is_explained: bool = True
    """Whether rounding explains every output that is not bitwise equal."""
    first: Departure | None = None
    """The first module in call order whose output departs while its inputs agree."""
    growth: Sequence[Departure] = ()
    """Every recorded call in order, with how far it is off."""
    structure: str = ""
    """How the calls differ, where they do: a module that is not called any more, or is new."""
    environment: Mapping[str, tuple[object, object]] = field(default_factory=dict)
    """What differs of the environment: name → (recorded, today)."""
    now: Trace = field(default_factory=Trace)

    @property
    def is_bitwise_equal(self) -> bool:
        return all(output.is_bitwise_equal for output in self.outputs)

    @property
    def is_same(self) -> bool:
        """Whether this is the model that was recorded, as far as behaviour tells."""
        if any(output.why_not for output in self.outputs):
            return False
        return self.is_bitwise_equal or (self.is_explained and self.first is None)


def replay(
    model: nn.Module,
    arguments: Arguments,
    recorded: Behaviour,
    device: str,
    *,
    coarse: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> Replay:
    """Run `model` on the recorded inputs and hold it against the record.

    `coarse` names the narrower dtype that weights went through, if any: its tolerance then holds.
    """
    now = watch(model, arguments)
    changed = environment_changes(recorded.environment, environment(device))
    outputs = _compare_outputs(recorded.outputs, now.outputs, coarse, rtol, atol)
    if all(output.is_bitwise_equal for output in outputs):
        return Replay(outputs, environment=changed, now=now)
    if watch(model, arguments).digests() != now.digests() or not recorded.is_deterministic:
        return Replay(outputs, is_deterministic=False, environment=changed, now=now)
    growth = _growth(recorded.calls, now.calls)
    structure = _structure(recorded.calls, now.calls)
    if coarse is not None or rtol is not None or atol is not None:
        explained = all(output.is_within_tolerance for output in outputs)
        first = None if explained else _first(recorded.calls, now.calls, _Tolerance(coarse, rtol))
        return Replay(outputs, True, explained, first, growth, structure, changed, now)
    margin = FOREIGN_NOISE_MARGIN if changed.keys() & _NUMERIC else NOISE_MARGIN
    reference = _in_float64(model, arguments)
    judge = _Noise(reference, margin, bool(recorded.environment.get("tf32")) and device != "cpu")
    departed = _departed(recorded.outputs, now.outputs, judge)
    first = _first(recorded.calls, now.calls, judge)
    return Replay(outputs, True, not departed, first, growth, structure, changed, now)


_NUMERIC = {"torch", "machine", "device", "device_name", "tf32", "threads", "float32_matmul_precision"}


def environment_changes(
    recorded: Mapping[str, object], today: Mapping[str, object]
) -> dict[str, tuple[object, object]]:
    """What differs: name → (recorded, today)."""
    return {
        name: (recorded[name], today[name])
        for name in today
        if name in recorded and recorded[name] != today[name]
    }


# --- comparing ----------------------------------------------------------------------------------------


def _compare_outputs(
    recorded: Sequence[Sample],
    now: Sequence[Sample],
    coarse: str | None,
    rtol: float | None,
    atol: float | None,
) -> list[OutputDifference]:
    by_path = {sample.path: sample for sample in now}
    found = []
    for sample in recorded:
        today = by_path.get(sample.path)
        if today is None:
            found.append(OutputDifference(sample.path, False, False, "the model does not return it any more"))
        else:
            found.append(_compare_output(sample, today, coarse, rtol, atol))
    known = {sample.path for sample in recorded}
    found += [
        OutputDifference(path, False, False, "the model did not return it when it was recorded")
        for path in by_path
        if path not in known
    ]
    return found


def _compare_output(
    old: Sample, new: Sample, coarse: str | None, rtol: float | None, atol: float | None
) -> OutputDifference:
    if old.shape != new.shape:
        return OutputDifference(old.path, False, False, f"shape {list(old.shape)} → {list(new.shape)}")
    if old.digest == new.digest:
        return OutputDifference(old.path, True, True)
    a, b = _values(old, new)
    if bool((a.isnan() != b.isnan()).any()):
        return OutputDifference(old.path, False, False, "NaN in one and not in the other")
    dtype = coarse or (old.dtype if old.dtype == new.dtype else _coarser(old.dtype, new.dtype))
    default_rtol, default_atol = TOLERANCES.get(dtype, (0.0, 0.0))
    rtol, atol = default_rtol if rtol is None else rtol, default_atol if atol is None else atol
    same = (a == b) | (a.isnan() & b.isnan())
    difference = torch.where(same, 0.0, (a - b).abs())
    largest = float(difference.max()) if difference.numel() else 0.0
    relative = (
        float((difference / a.abs().clamp_min(torch.finfo(torch.float32).tiny)).max()) if largest else 0.0
    )
    if coarse is not None:  # element by element, rounded weights say little near zero
        within = _rms(a - b) <= atol + rtol * _rms(a)
    else:
        within = bool((difference <= atol + rtol * a.abs()).all())
    return OutputDifference(
        old.path, False, within, "", largest, relative, _ulps(difference, a, dtype), rtol, atol
    )


def _ulps(difference: torch.Tensor, values: torch.Tensor, dtype: str) -> float:
    """The largest difference in units in the last place of `dtype` at the recorded value."""
    if not difference.numel():
        return 0.0
    _, exponent = torch.frexp(values)
    unit = torch.ldexp(torch.tensor(_epsilon(dtype), dtype=torch.float64), exponent - 1)
    return float((difference / unit.clamp_min(torch.finfo(torch.float64).tiny)).max())


def _epsilon(dtype: str) -> float:
    known = getattr(torch, dtype, torch.float32)
    return torch.finfo(known).eps if known.is_floating_point or known.is_complex else 0.0


def _coarser(one: str, other: str) -> str:
    return max(one, other, key=lambda name: TOLERANCES.get(name, (0.0, 0.0))[0])


def _values(*samples: Sample) -> tuple[torch.Tensor, ...]:
    """The values that all of the samples keep, in float64."""
    count = min(len(sample.values) for sample in samples)
    return tuple(torch.tensor(sample.values[:count], dtype=torch.float64) for sample in samples)


def _rms(values: torch.Tensor) -> float:
    return math.sqrt(float((values * values).mean())) if values.numel() else 0.0


# --- judging ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tolerance:
    """Departed is what is farther off than a dtype's tolerance."""

    dtype: str | None
    rtol: float | None

    def departs(self, old: Sample, new: Sample, key: tuple[str, int, str, int]) -> bool:
        if old.digest == new.digest:
            return False
        if old.shape != new.shape:
            return True
        a, b = _values(old, new)
        dtype = self.dtype or _coarser(old.dtype, new.dtype)
        rtol = self.rtol if self.rtol is not None else TOLERANCES.get(dtype, (0.0, 0.0))[0]
        return not _rms(a - b) <= rtol * _rms(a)


@dataclass(frozen=True)
class _Noise:
    """Departed is what is farther from the float64 result than today's rounding explains."""

    reference: Trace | None
    margin: float
    uses_tf32: bool

    def departs(self, old: Sample, new: Sample, key: tuple[str, int, str, int]) -> bool:
        if old.digest == new.digest:
            return False
        if old.shape != new.shape:
            return True
        if not (_is_float(old.dtype) and _is_float(new.dtype)):
            return True
        exact = self._exact(key)
        epsilon = 1e-3 if self.uses_tf32 else max(_epsilon(old.dtype), _epsilon(new.dtype))
        if exact is None or exact.shape != new.shape:
            a, b = _values(old, new)
            return not _rms(a - b) <= self.margin * FLOOR_ULPS * epsilon * _rms(a)
        a, b, x = _values(old, new, exact)
        floor = FLOOR_ULPS * epsilon * _rms(x)
        # `not <=` so that NaN departs
        return not _rms(a - x) <= self.margin * _rms(b - x) + floor

    def _exact(self, key: tuple[str, int, str, int]) -> Sample | None:
        return _index(self.reference).get(key) if self.reference is not None else None


def _is_float(dtype: str) -> bool:
    return dtype in TOLERANCES or dtype.startswith("float")


def _index(trace: Trace) -> dict[tuple[str, int, str, int], Sample]:
    if not hasattr(trace, "_by_key"):
        by_key: dict[tuple[str, int, str, int], Sample] = {}
        for call in trace.calls:
            for side, samples in (("in", call.inputs), ("out", call.outputs)):
                by_key.update(((*call.key, side, i), sample) for i, sample in enumerate(samples))
        by_key.update((("", -1, "output", i), sample) for i, sample in enumerate(trace.outputs))
        trace._by_key = by_key  # type: ignore[attr-defined]
    return trace._by_key  # type: ignore[attr-defined, no-any-return]


def _departed(recorded: Sequence[Sample], now: Sequence[Sample], judge: _Noise) -> bool:
    order = {sample.path: i for i, sample in enumerate(now)}
    return any(
        sample.path not in order
        or judge.departs(sample, now[order[sample.path]], ("", -1, "output", order[sample.path]))
        for sample in recorded
    )


def _first(recorded: Sequence[Call], now: Sequence[Call], judge: _Noise | _Tolerance) -> Departure | None:
    """The first call whose output departs while its inputs agree; failing that, the first that departs."""
    by_key = {call.key: call for call in now}
    fallback: Departure | None = None
    for old in recorded:
        new = by_key.get(old.key)
        if new is None or not _any_departs(old, new, "out", judge):
            continue
        departure = Departure(old.module, old.number, new.kind, _relative(old, new))
        if not _any_departs(old, new, "in", judge):
            return departure
        fallback = fallback or departure
    return fallback


def _any_departs(old: Call, new: Call, side: str, judge: _Noise | _Tolerance) -> bool:
    one, other = (old.inputs, new.inputs) if side == "in" else (old.outputs, new.outputs)
    if len(one) != len(other):
        return True
    pairs = enumerate(zip(one, other, strict=True))
    return any(judge.departs(a, b, (*new.key, side, i)) for i, (a, b) in pairs)


def _growth(recorded: Sequence[Call], now: Sequence[Call]) -> list[Departure]:
    by_key = {call.key: call for call in now}
    return [
        Departure(old.module, old.number, new.kind, _relative(old, new))
        for old in recorded
        if (new := by_key.get(old.key)) is not None
    ]


def _relative(old: Call, new: Call) -> float:
    worst = 0.0
    for a, b in zip(old.outputs, new.outputs, strict=False):
        if a.digest == b.digest:
            continue
        if a.shape != b.shape:
            return math.inf
        x, y = _values(a, b)
        scale = _rms(x)
        off = _rms(x - y) / scale if scale else (math.inf if _rms(y) else 0.0)
        worst = max(worst, off if off == off else math.inf)
    return worst


def _structure(recorded: Sequence[Call], now: Sequence[Call]) -> str:
    old, new = [call.module for call in recorded], {call.module for call in now}
    gone = [name for name in dict.fromkeys(old) if name not in new]
    if gone:
        return f"{gone[0]!r} is not called any more"
    return ""


def _in_float64(model: nn.Module, arguments: Arguments) -> Trace | None:
    """The same pass in float64, or None where the model's own code does not allow it."""
    try:
        wide = copy.deepcopy(model).double()
        return watch(wide, Arguments(_widened(arguments.args), _widened(arguments.kwargs)))
    except (UsageError, RuntimeError, TypeError, NotImplementedError):
        return None


def _widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _widened(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_widened(item) for item in value)
    return value

"""Whether floating point explains a difference: recorded outputs, checked against today's rounding errors.

Two programs that compute the same function rarely give the same bits. So the model is run again as exactly
as can be (in float64, `exact`), and with random roundings thrown in (`runs`). What was recorded may be as far
from the exact result as these are, times a margin: that is what rounding does to this model, on these inputs,
at this place. A changed constant, an epsilon, another activation are farther off than that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ptsave.core.behaviour import Call, Sample
from ptsave.errors import UsageError
from ptsave.models.behaviour.differences import distance, epsilon
from ptsave.models.behaviour.rounding import Rounding
from ptsave.models.behaviour.trace import Trace, output_samples, watch
from ptsave.models.inputs import Arguments

NUM_RUNS = 3
"""How many runs with random roundings."""
MARGIN = 8.0
"""How many times rounding's own effect a difference may be on the same kind of machine."""
FOREIGN_MARGIN = 32.0
"""MARGIN across devices and versions, whose kernels add in another order or approximate differently."""
FLOOR_ULPS = 4.0
"""Differences of so many units in the last place of a tensor's typical value are always rounding."""
CREDIBLE = 64.0
"""How many times farther than the random roundings today's own result may be from the exact one. Beyond
that, the exact one is not the same function: the model's code depends on its dtypes."""

Key = tuple[str, int, str, str]
"""Module, number of the call, `inputs` or `outputs`, path. The model's own result is a call of its own."""


@dataclass(frozen=True)
class Excess:
    """How far a tensor is off, and how far rounding goes; both root mean squares over that of the tensor."""

    relative: float
    allowed: float
    noise: float = 0.0
    """How far rounding went in the runs of today, without a margin."""

    @property
    def is_explained(self) -> bool:
        return self.relative <= self.allowed  # false for NaN

    @property
    def is_within_noise(self) -> bool:
        """Whether it is no farther off than today's own runs are from each other."""
        return self.relative <= self.noise


class Judge:
    """Compares what was recorded with today's runs, tensor by tensor."""

    def __init__(self, exact: Trace, runs: Sequence[Trace], margin: float, unit: float) -> None:
        self._exact = _by_key(exact)
        self._runs = [_by_key(run) for run in runs]
        self._margin = margin
        self._unit = unit
        """The relative rounding error of one operation."""

    def excess(self, old: Sample, key: Key) -> Excess:
        """How far `old` is from the exact result under `key`, and how far it may be."""
        exact = self._exact.get(key)
        others = [sample for run in self._runs if (sample := run.get(key)) is not None]
        if exact is None or exact.shape != old.shape or any(one.shape != old.shape for one in others):
            return Excess(math.inf, 0.0)
        odd = {sample.num_odd for sample in (exact, *others)}
        if old.num_odd not in odd:
            return Excess(math.inf, 0.0)
        is_whole = not (epsilon(old.dtype) and epsilon(exact.dtype))
        floor = 0.0 if is_whole else FLOOR_ULPS * self._unit
        noise = max((distance(one.sketch, exact.sketch) for one in others), default=0.0)
        off = distance(old.sketch, exact.sketch)
        # Where the exact result is all zeros, as `x - x` is, rounding itself is the only scale there is.
        scale = exact.norm or noise
        if not scale:
            return Excess(math.inf if off else 0.0, 0.0)
        return Excess(off / scale, self._margin * noise / scale + floor, noise / scale + floor)

    def agrees(self, old: Sample, new: Sample, key: Key) -> bool:
        """Whether a tensor is what it was, bit by bit or as far as rounding explains."""
        return old.digest == new.digest or self.excess(old, key).is_explained


def make_judge(
    model: nn.Module,
    arguments: Arguments,
    recorded: Sequence[Sample],
    now: Trace,
    again: Trace,
    *,
    margin: float,
    coarse: str | None,
    tf32: bool,
    is_coarser_now: bool = False,
) -> Judge:
    """Run `model` as often as it takes to know what rounding does to it.

    `now` and `again` are two plain runs of today. `coarse` names the narrower dtype that the weights have
    gone through since they were recorded, if any. Where today's code is known to compute more coarsely than
    the recorded one (`is_coarser_now`), its own rounding excuses nothing: the exact run says what is right.
    """
    unit = _unit(recorded, now, tf32=tf32)
    weights = epsilon(coarse) / 2 if coarse is not None else 0.0

    def runs(wide: bool) -> list[Trace]:
        modes = [Rounding(model, wide=wide, results=unit, weights=weights, seed=i) for i in range(NUM_RUNS)]
        return [run for mode in modes if (run := _attempt(model, arguments, mode)) is not None]

    exact = _attempt(model, arguments, Rounding(model, wide=True))
    if exact is not None and (others := runs(wide=True)):
        if is_coarser_now:
            return Judge(exact, others, margin, unit)
        judge = Judge(exact, [now, again, *others], margin, unit)
        if _is_credible(exact, now, others, unit):
            return judge
    return Judge(now, [again, *runs(wide=False)], margin, unit)


def judge_alone(
    model: nn.Module,
    arguments: Arguments,
    now: Trace | None = None,
    margin: float = MARGIN,
    again: Trace | None = None,
) -> Judge:
    """How far rounding goes in `model` here and now, with nothing recorded.

    `now` and `again`: plain runs of today, where there are some already.
    """
    now, again = now or watch(model, arguments), again or watch(model, arguments)
    return make_judge(model, arguments, _results(now), now, again, margin=margin, coarse=None, tf32=False)


def judge_outputs(
    model: nn.Module, arguments: Arguments, now: Trace, margin: float = MARGIN, again: Trace | None = None
) -> Judge:
    """A quick judge of the model's own outputs: what it explains, `judge_alone` explains, too.

    One run has random roundings. It is the first of those of `judge_alone`, which allows what the farthest of
    its runs does: never less than this one. More runs make the exact one more credible, too. So where one run
    is enough for a yes, all of them are; where this judge says no, the other one is to be asked.
    """
    again, unit = again or watch(model, arguments), _unit(_results(now), now)
    try:
        exact, other = (
            Trace(outputs=output_samples(model, arguments, mode=Rounding(model, wide=True, results=size)))
            for size in (0.0, unit)
        )
    except UsageError:  # the model's own code does not bear it
        return judge_alone(model, arguments, now, margin, again)
    if not _is_credible(exact, now, [other], unit):
        return judge_alone(model, arguments, now, margin, again)
    return Judge(exact, [now, again, other], margin, unit)


def _results(trace: Trace) -> list[Sample]:
    return [sample for call in trace.calls for sample in call.outputs.values()]


def _unit(recorded: Sequence[Sample], now: Trace, *, tf32: bool = False) -> float:
    """The relative rounding error of one operation, in the coarser of what was recorded and of today."""
    unit, unit_now = (_usual_epsilon(samples) / 2 for samples in (recorded, [*_by_key(now).values()]))
    is_single = unit_now == epsilon("float32") / 2  # other dtypes have no such shortcut
    return max(unit, unit_now, 2.0**-11 if tf32 and is_single else 0.0)


def _usual_epsilon(samples: Sequence[Sample]) -> float:
    """Of the floating-point dtype that most of the tensors have."""
    dtypes = Counter(sample.dtype for sample in samples if epsilon(sample.dtype))
    return epsilon(dtypes.most_common(1)[0][0]) if dtypes else epsilon("float32")


def _attempt(model: nn.Module, arguments: Arguments, mode: Rounding) -> Trace | None:
    """A run under `mode`, or None where the model's own code does not bear it."""
    try:
        return watch(model, arguments, mode)
    except UsageError:
        return None


def _is_credible(exact: Trace, now: Trace, others: Sequence[Trace], unit: float) -> bool:
    """Whether the exact run computes the same function as the plain one."""
    for path, sample in now.outputs.items():
        wide = exact.outputs.get(path)
        if wide is None or wide.shape != sample.shape or wide.num_odd != sample.num_odd:
            return False
        noise = max(distance(run.outputs[path].sketch, wide.sketch) for run in others)
        floor = FLOOR_ULPS * unit * wide.norm
        if not distance(sample.sketch, wide.sketch) <= CREDIBLE * noise + floor:
            return False
    return True


def _by_key(trace: Trace) -> dict[Key, Sample]:
    samples: dict[Key, Sample] = {output_key(path): sample for path, sample in trace.outputs.items()}
    for call in trace.calls:
        samples.update((input_key(call, path), sample) for path, sample in call.inputs.items())
        samples.update((result_key(call, path), sample) for path, sample in call.outputs.items())
    return samples


def output_key(path: str) -> Key:
    """Of one of the model's own outputs."""
    return "", -1, "outputs", path


def input_key(call: Call, path: str) -> Key:
    """Of an argument of a call."""
    return call.module, call.number, "inputs", path


def result_key(call: Call, path: str) -> Key:
    """Of what a call returned."""
    return call.module, call.number, "outputs", path

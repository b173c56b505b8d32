"""An exported program compared with its model: weights by their digests, outputs by the judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from torch import nn

from ptsave.config.inputs import InputsSpec
from ptsave.core.behaviour import Sample
from ptsave.core.finding import Finding, Kind
from ptsave.core.verdict import Departure
from ptsave.errors import UsageError
from ptsave.export.program import Bounds
from ptsave.export.target import Runtime
from ptsave.models.behaviour.differences import compare_output, distance, epsilon
from ptsave.models.behaviour.judge import (
    FLOOR_ULPS,
    Excess,
    Judge,
    Key,
    input_key,
    judge_alone,
    judge_outputs,
    output_key,
    result_key,
)
from ptsave.models.behaviour.trace import Trace, samples_of, watch
from ptsave.models.inputs import Arguments, make_inputs
from ptsave.verbs.checks.program import first_line

CHECK = "behaviour"
WEIGHTS = "weights"


@dataclass(frozen=True)
class Case:
    """One choice of the named sizes, and what the model computes there."""

    model: nn.Module
    sizes: Mapping[str, int]
    arguments: Arguments
    now: Trace
    margin: float
    is_exact: bool
    """Whether the model is known to give the same bits again."""

    # Made when they are asked for: a program that gives the model's own bits needs no judge.

    @cached_property
    def judge(self) -> Judge:
        """Of the model's outputs and of each module's."""
        return judge_alone(self.model, self.arguments, self.now, self.margin, self._again)

    @cached_property
    def quick_judge(self) -> Judge:
        """Of the model's outputs; where it does not explain one, `judge` is to be asked."""
        return judge_outputs(self.model, self.arguments, self.now, self.margin, self._again)

    @property
    def _again(self) -> Trace | None:
        return self.now if self.is_exact else None

    @property
    def shown(self) -> str:
        """`batch=1, tokens=16`."""
        return ", ".join(f"{name}={size}" for name, size in self.sizes.items())

    def excess(self, path: str, found: Sample) -> Excess:
        """How far an output is off, and how far rounding goes."""
        excess = self.quick_judge.excess(found, output_key(path))
        return excess if excess.is_explained else self.judge.excess(found, output_key(path))


def case_of(
    model: nn.Module,
    inputs: InputsSpec,
    margin: float,
    sizes: Mapping[str, int],
    *,
    is_exact: bool = False,
) -> Case:
    """What `model` computes from `inputs` at `sizes`; `is_exact` where it gives the same bits each time.

    Raises: UsageError where it does not run.
    """
    arguments = make_inputs(inputs.with_sizes(sizes), model)
    return Case(model, sizes, arguments, watch(model, arguments), margin, is_exact)


def prove(
    model: nn.Module,
    inputs: InputsSpec,
    bounds: Bounds,
    runtime: Runtime,
    margin: float,
    example: Case,
) -> Iterator[Finding]:
    """Run the program beside the model: at the example's sizes, at 1, and at one larger of each."""
    yield from _compared(runtime, example, "")
    for name, (_, most) in bounds.items():
        if most is not None:
            yield Finding(CHECK, "ok", name, Kind.SIZE_IS_BOUND, facts={"most": most})
    for sizes in other_sizes(inputs.sizes, bounds):
        try:
            case = case_of(model, inputs, margin, sizes, is_exact=example.is_exact)
        except UsageError as error:
            shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
            yield Finding(CHECK, "ok", "", Kind.SIZE_NOT_RUN, facts={"sizes": shown, "why": error.what})
            continue
        yield from _compared(runtime, case, f" ({case.shown})")


def other_sizes(examples: Mapping[str, int], bounds: Bounds) -> Iterator[dict[str, int]]:
    """The sizes to try beside the examples: all at 1, and all at one more, as far as the model takes it."""
    tried = [dict(examples)]
    larger = {
        name: size + 1 if (most := bounds.get(name, (0, None))[1]) is None else min(size + 1, most)
        for name, size in examples.items()
    }
    for sizes in (dict.fromkeys(examples, 1), larger):
        if sizes not in tried:
            tried.append(sizes)
            yield sizes


def _compared(runtime: Runtime, case: Case, at: str) -> Iterator[Finding]:
    try:
        outputs = samples_of(runtime.run(case.arguments))
    except Exception as error:  # each runtime has its own way to say that it cannot run a program
        kind = Kind.PROGRAM_FAILS_AT if at else Kind.PROGRAM_FAILS
        yield Finding(CHECK, "fail", "", kind, facts={"sizes": case.shown, "why": first_line(error)})
        return
    departed = False
    for path in dict.fromkeys([*case.now.outputs, *outputs]):
        finding = _output(case, path, outputs.get(path), at)
        departed = departed or finding.level == "fail"
        yield finding
    if departed and (first := first_departure(runtime, case)) is not None:
        facts: dict[str, Any] = {"module": first.kind, "relative": first.relative}
        if not first.before:
            yield Finding(CHECK, "fail", first.module, Kind.PROGRAM_DEPARTS, facts=facts)
        else:
            facts["before"] = first.before
            yield Finding(CHECK, "fail", first.module, Kind.PROGRAM_DEPARTS_BEFORE, facts=facts)


def _output(case: Case, path: str, found: Sample | None, at: str) -> Finding:
    """The finding on one output of the program."""
    where, expected = f"{path}{at}", case.now.outputs.get(path)
    difference = compare_output(path, expected, found)
    if difference.why_not or found is None or expected is None:
        return Finding(CHECK, "fail", where, Kind.OUTPUT_UNLIKE, facts={"why_not": difference.why_not})
    if expected.dtype != found.dtype:
        why = {"why_not": f"dtype {expected.dtype} → {found.dtype}"}
        return Finding(CHECK, "fail", where, Kind.OUTPUT_UNLIKE, facts=why)
    if difference.is_bitwise_equal:
        return Finding(CHECK, "ok", where, Kind.EQUAL_OUTPUT)
    excess = _least_excess(expected, found) or case.excess(path, found)
    off = f"{excess.relative:.2g} relative off, rounding explains {excess.allowed:.2g}; {difference.figures}"
    if excess.is_explained:
        return Finding(CHECK, "ok", where, Kind.OUTPUT_EXPLAINED, facts={"off": off, "besides": ""})
    return Finding(CHECK, "fail", where, Kind.OUTPUT_DIFFERS, facts={"off": off})


def _least_excess(expected: Sample, found: Sample) -> Excess | None:
    """The excess of an output that is off by less than any judge allows; None where it takes one.

    What a judge allows is how far the model's own result is from the exact one, and FLOOR_ULPS beside.
    """
    allowed = FLOOR_ULPS * epsilon(expected.dtype) / 2
    if not (allowed and expected.norm) or expected.num_odd != found.num_odd:
        return None
    relative = distance(found.sketch, expected.sketch) / expected.norm
    return Excess(relative, allowed) if relative <= allowed else None


# --- where it begins --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class First:
    """Where a program first departs from the model."""

    module: str
    kind: str
    relative: float
    before: str = ""
    """The module inside it whose inputs depart already; empty where its own output departs first."""


def first_departure(runtime: Runtime, case: Case) -> First | None:
    """The first call of a module whose output the program does not compute; None where that cannot be told.

    A module's inputs and outputs are looked for among all values that the program computes in its scope.
    """
    judge = case.judge
    values = _inside(runtime, case)
    kinds = {call.module: call.kind for call in case.now.calls}
    given = {sample.digest for sample in samples_of((case.arguments.args, case.arguments.kwargs)).values()}
    for call in case.now.calls:
        if not call.module or call.module not in values:
            continue
        off = _departure(judge, call.outputs, values[call.module], partial(result_key, call))
        if off is None:
            continue
        inputs = {path: sample for path, sample in call.inputs.items() if sample.digest not in given}
        before = _departure(judge, inputs, values[""], partial(input_key, call))
        if before is None:
            return First(call.module, call.kind, off)
        parent = call.module.rpartition(".")[0]
        while parent not in kinds and parent:
            parent = parent.rpartition(".")[0]
        return First(parent, kinds.get(parent, ""), before, call.module)
    return None


def by_layer(runtime: Runtime, case: Case) -> list[Departure]:
    """How far each module's output is from the nearest that the program computes in its scope, in call order.

    Of a module whose output the program does not compute as such, fused with its neighbours, nothing is said.
    """
    values, growth = _inside(runtime, case), []
    for call in case.now.calls:
        offs = [
            min(_relative(sample, value) for value in alike)
            for sample in call.outputs.values()
            if (alike := [one for one in values.get(call.module, ()) if one.shape == sample.shape])
        ]
        if offs:
            growth.append(Departure(call.module, call.number, call.kind, max(offs)))
    return growth


def _relative(expected: Sample, found: Sample) -> float:
    if expected.digest == found.digest:
        return 0.0
    off = distance(expected.sketch, found.sketch)
    if expected.num_odd != found.num_odd or not expected.norm:
        return math.inf if off or expected.num_odd != found.num_odd else 0.0
    return off / expected.norm


def _inside(runtime: Runtime, case: Case) -> dict[str, list[Sample]]:
    """All that the program computes, by the modules in whose scopes it does; empty where that is not told."""
    values: dict[str, list[Sample]] = {}
    try:
        for value in runtime.inside(case.arguments):
            samples = samples_of(value.tensor)
            parts = value.module.split(".") if value.module else []
            for depth in range(len(parts) + 1):
                values.setdefault(".".join(parts[:depth]), []).extend(samples.values())
    except Exception:  # a program may have values that its runtime does not give out
        return {}
    return values


def _departure(
    judge: Judge, samples: Mapping[str, Sample], values: list[Sample], key: Callable[[str], Key]
) -> float | None:
    """The distance of a tensor of a call from the nearest of `values`; None where all are among them."""
    for path, sample in samples.items():
        alike = [value for value in values if value.shape == sample.shape]
        if not alike or any(value.digest == sample.digest for value in alike):
            continue
        found = [judge.excess(value, key(path)) for value in alike]
        if not any(excess.is_explained for excess in found):
            return min(excess.relative for excess in found)
    return None


# --- the weights ------------------------------------------------------------------------------------------


def compare_weights(
    expected: Mapping[str, str], found: Mapping[str, str], aliases: Mapping[str, str]
) -> Iterator[Finding]:
    """Compare the digests of the checkpoint's tensors with those of the program's, by name.

    `aliases`: name of a tied tensor → another name of it. Tensors that only the program has are constants of
    the exporter's; those that it lacks are not used by its graph. Both are named.
    """
    same = [name for name in expected if found.get(name) == expected[name]]
    for name in expected:
        if name in found and found[name] != expected[name]:
            how = {"how": "other values"}
            yield Finding(WEIGHTS, "fail", name, Kind.OTHER_WEIGHT, facts=how)
    if same:
        yield Finding(WEIGHTS, "ok", "", Kind.SAME_WEIGHTS, len(same))
    absent = [name for name in expected if name not in found and aliases.get(name, name) not in found]
    if absent:
        yield Finding(WEIGHTS, "ok", "", Kind.NOT_IN_PROGRAM, len(absent), tuple(absent))
    if made := [name for name in found if name not in expected]:
        yield Finding(WEIGHTS, "ok", "", Kind.CONSTANTS, len(made), tuple(made))

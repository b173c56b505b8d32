"""Replaying a behaviour record: the same inputs today, and what differs from what was recorded.

A difference that rounding explains grows out of rounding everywhere. One that it does not explain begins
somewhere: in the first module whose output departs while its inputs still agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from ptsave.core.behaviour import Behaviour, Call, Sample
from ptsave.core.verdict import Departure
from ptsave.models.behaviour.apart import hold_apart
from ptsave.models.behaviour.differences import OutputDifference, compare_output, distance, epsilon
from ptsave.models.behaviour.judge import (
    FOREIGN_MARGIN,
    MARGIN,
    Excess,
    Judge,
    input_key,
    make_judge,
    output_key,
    result_key,
)
from ptsave.models.behaviour.observe import environment
from ptsave.models.behaviour.trace import Trace, is_alone, watch, watch_precisions, with_precisions
from ptsave.models.inputs import Arguments


@dataclass(frozen=True)
class Replay:
    """What a replay found out."""

    now: Trace
    outputs: Sequence[OutputDifference]
    environment: Mapping[str, tuple[object, object]] = field(default_factory=dict)
    """What differs of the environment: name → (recorded, today)."""
    is_deterministic: bool = True
    """Whether two runs from one seed give the same bits today, and gave them when it was recorded."""
    is_same_environment: bool = False
    """Whether all that is known to change numbers is recorded, and equal."""
    excesses: Mapping[str, Excess] = field(default_factory=dict)
    """For each output that is not bitwise equal, how far it is off and how far rounding goes."""
    apart: Mapping[tuple[str, int], Excess] = field(default_factory=dict)
    """The excess of each call that was run alone on its recorded inputs."""
    claims: Sequence[str] = ()
    """What only the record says and what lets outputs be farther off, or excuses that they are not bitwise
    equal: nothing here can check it. Empty where the outputs are equal."""
    is_apart_left_out: bool = False
    """Whether no call was held alone, since several ranks run the model together."""
    coarser: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """Calls whose code computes today in a coarser dtype than it did, and that one; it shows nowhere else."""
    is_cast: bool = False
    """Whether the weights went through a narrower dtype since they were recorded."""
    first_unequal: Departure | None = None
    """The first call whose output is not bitwise equal while its inputs are; else the first of all."""
    is_tolerated: bool = False
    """Whether the config itself says how far outputs may be off, and they are not farther."""
    first: Departure | None = None
    """The first call whose output departs while its inputs agree; failing that, the first that departs."""
    begins_there: bool = True
    """Whether its inputs agree."""
    growth: Sequence[Departure] = ()
    """Every recorded call in order, with how far it is off."""
    structure: str = ""
    """How the calls differ, where they do: a module that is not called any more, or is new."""

    @property
    def is_bitwise_equal(self) -> bool:
        return all(output.is_bitwise_equal for output in self.outputs)

    @property
    def has_same_outputs(self) -> bool:
        """Whether every output is what was recorded, bit by bit or as far as rounding or the config allow."""
        if any(output.why_not for output in self.outputs):
            return False
        if self.is_tolerated:
            return True
        if all(excess.is_explained for excess in self.apart.values()):
            return all(excess.is_explained for excess in self.excesses.values())
        # A module is another one by itself. Where the others make up for that, the end is as good as equal;
        # the margin for an ill-conditioned whole is not an excuse for it.
        return all(excess.is_within_noise for excess in self.excesses.values())

    @property
    def is_surprising(self) -> bool:
        """Whether the outputs ought to be bitwise equal, and are not."""
        return (
            self.is_same_environment
            and self.is_deterministic
            and not self.is_cast
            and not self.is_bitwise_equal
        )

    @property
    def is_same(self) -> bool:
        """Whether this is the model that was recorded, as far as behaviour tells.

        A layer of torch that does something else with the same inputs is another layer, even where this
        does not show in the outputs. A module of the user's may have been written anew.
        """
        if not self.has_same_outputs:
            return False
        first = self.first
        is_another = first is not None and (
            (self.begins_there and first.kind.startswith(_LAYERS))
            or (first.module, first.number) in self.coarser
        )
        return self.is_tolerated or not is_another


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
    """Run `model` on the recorded inputs and check it against the record.

    `coarse` names the narrower dtype that the weights went through, if any. `rtol` and `atol` are the
    config's own: then they decide, else rounding does.
    """
    # What has a recorded digest is not measured again: that is enough to tell that all is equal, and no more.
    now = watch(model, arguments, known=_samples(recorded))
    here = environment(device, model)
    changed = environment_changes(recorded.environment, here)
    outputs = _outputs(recorded.outputs, now.outputs, rtol, atol)
    if all(output.is_bitwise_equal for output in outputs) and _has_same_calls(recorded.calls, now.calls):
        return Replay(now, outputs, changed)
    is_foreign = bool(changed.keys() & NUMERIC)
    is_random = recorded.determinism != "exact"
    now = watch(model, arguments)
    again = watch(model, arguments, seed=1 if is_random and is_foreign else 0)
    coarser = _coarser(model, arguments, recorded, now)
    tf32 = _used_tf32(recorded.environment)
    is_same_environment = recorded.environment.keys() == here.keys() and not changed

    def judge_of(
        part: nn.Module, given: Arguments, calls: Sequence[Call], seen: Trace, again: Trace
    ) -> Judge:
        return make_judge(
            part,
            given,
            [sample for call in calls for sample in call.outputs.values()],
            seen,
            again,
            margin=FOREIGN_MARGIN if is_foreign else MARGIN,
            coarse=coarse,
            tf32=tf32,
            is_coarser_now=any(call.key in coarser for call in calls) and bool(coarser),
        )

    judge = judge_of(model, arguments, recorded.calls, now, again)
    apart: Mapping[tuple[str, int], Excess] = {}
    if is_alone() and coarse is None:
        pairs = [(old, new) for old, new in _matched(recorded.calls, now.calls) if _begins(old, new)]
        apart = hold_apart(
            model, arguments, pairs, coarser, lambda m, a, call, seen: judge_of(m, a, [call], seen, seen)
        )
    first, begins_there = _first(recorded.calls, now.calls, judge, apart, coarser)
    unequal = _growth(recorded.calls, now.calls, only=_is_unequal)
    begun = _growth(recorded.calls, now.calls, only=_begins)
    return Replay(
        now,
        outputs,
        changed,
        is_deterministic=again.digests() == now.digests() and recorded.determinism != "none",
        is_same_environment=is_same_environment,
        excesses={
            output.path: judge.excess(recorded.outputs[output.path], output_key(output.path))
            for output in outputs
            if not (output.is_bitwise_equal or output.why_not)
        },
        apart=apart,
        claims=[
            *([] if is_same_environment else [_another(recorded.environment, here)]),
            *(["TF32"] if tf32 and not _used_tf32(here) else []),
            *_claimed_dtypes(recorded, now, coarse),
        ],
        is_apart_left_out=not is_alone(),
        coarser=coarser,
        is_cast=coarse is not None,
        first_unequal=next(iter([*begun, *unequal]), None),
        is_tolerated=(rtol, atol) != (None, None) and all(output.is_within_tolerance for output in outputs),
        first=first,
        begins_there=begins_there,
        growth=_growth(recorded.calls, now.calls),
        structure=_structure(recorded, now.calls),
    )


def _used_tf32(environment: Mapping[str, object]) -> bool:
    """Whether matrices were multiplied in TF32: torch's switches for it are those of CUDA."""
    return environment.get("tf32") is True and str(environment.get("device")).startswith("cuda")


def _another(recorded: Mapping[str, object], here: Mapping[str, object]) -> str:
    """How an environment that is not today's differs, in words."""
    changes = environment_changes(recorded, here).items()
    changed = [f"{name} {str(then)[:40]} → {str(now)[:40]}" for name, (then, now) in changes]
    untold = [name for name in here if name not in recorded]
    parts = [*changed[:3], *([f"{', '.join(untold[:3])} unknown"] if untold else [])]
    return f"another environment ({'; '.join(parts)})" if parts else "another environment"


def _claimed_dtypes(recorded: Behaviour, now: Trace, coarse: str | None) -> Iterator[str]:
    """Dtypes that widen what is allowed, and that neither the file nor the model has today."""
    if not recorded.knows_inside:
        yield "the dtypes that code computes in are not recorded"
    if coarse is not None:
        yield f"weights in {', '.join(recorded.dtypes)} when it was recorded"
        return
    for old, new in _matched(recorded.calls, now.calls):
        for _, a, b in _paired(old.outputs, new.outputs):
            if epsilon(a.dtype) > epsilon(b.dtype):
                yield f"{a.dtype} inside the model, where {b.dtype} is now"
                return


def _coarser(
    model: nn.Module, arguments: Arguments, recorded: Behaviour, now: Trace
) -> dict[tuple[str, int], str]:
    """Calls whose code computes today in a coarser dtype than it did and than shows, and that dtype."""
    seen = watch_precisions(model, arguments, now) if recorded.knows_inside else None
    today = with_precisions(now.calls, seen) if seen is not None else []
    found = {}
    for old, new in _matched(recorded.calls, today):
        shown = {sample.dtype for sample in (*old.inputs.values(), *old.outputs.values())}
        if epsilon(new.inside) > max(map(epsilon, (old.inside, *shown))):
            found[new.key] = new.inside
    return found


def _is_unequal(old: Call, new: Call) -> bool:
    return any(a.digest != b.digest for _, a, b in _paired(old.outputs, new.outputs))


def _begins(old: Call, new: Call) -> bool:
    """Whether outputs are not bitwise equal although all inputs are."""
    inputs = list(_paired(old.inputs, new.inputs))
    return (
        len(inputs) == len(old.inputs)
        and all(a.digest == b.digest for _, a, b in inputs)
        and _is_unequal(old, new)
    )


_LAYERS = ("torch.nn.", "torch.ao.nn.")
NUMERIC = {
    *(
        "torch",
        "torch_build",
        "machine",
        "device",
        "device_name",
        "tf32",
        "threads",
        "float32_matmul_precision",
    ),
    *("mkldnn", "mkldnn_deterministic", "nnpack", "flash_sdp", "mem_efficient_sdp", "math_sdp", "fastpath"),
    *("cudnn", "cudnn_benchmark", "cudnn_deterministic", "fp16_reduced_sums", "bf16_reduced_sums"),
    *(
        "deterministic",
        "MKL_CBWR",
        "MKL_ENABLE_INSTRUCTIONS",
        "ONEDNN_MAX_CPU_ISA",
        "CUBLAS_WORKSPACE_CONFIG",
    ),
}
"""What of the environment chooses other kernels."""


def _samples(recorded: Behaviour) -> dict[str, Sample]:
    """Every sample of the record, by its digest; an output's, of which more is kept, before a module's."""
    samples = {
        s.digest: s for call in recorded.calls for s in (*call.inputs.values(), *call.outputs.values())
    }
    return samples | {sample.digest: sample for sample in recorded.outputs.values()}


def environment_changes(
    recorded: Mapping[str, object], today: Mapping[str, object]
) -> dict[str, tuple[object, object]]:
    """What differs: name → (recorded, today)."""
    return {
        name: (recorded[name], today[name])
        for name in today
        if name in recorded and recorded[name] != today[name]
    }


def _outputs(
    recorded: Mapping[str, Sample], now: Mapping[str, Sample], rtol: float | None, atol: float | None
) -> list[OutputDifference]:
    paths = dict.fromkeys([*recorded, *now])
    return [compare_output(path, recorded.get(path), now.get(path), rtol, atol) for path in paths]


# --- call by call ---------------------------------------------------------------------------------------


def _has_same_calls(recorded: Sequence[Call], now: Sequence[Call]) -> bool:
    """Whether each recorded call that there is today gave the same bits."""
    return all(
        one.digest == other.digest
        for old, new in _matched(recorded, now)
        for _, one, other in _paired(old.outputs, new.outputs)
    )


def _first(
    recorded: Sequence[Call],
    now: Sequence[Call],
    judge: Judge,
    apart: Mapping[tuple[str, int], Excess],
    coarser: Mapping[tuple[str, int], str],
) -> tuple[Departure | None, bool]:
    """The first call whose output departs while its inputs agree; failing that, the first that departs.

    Beside it, whether its inputs agree.
    """
    fallback: Departure | None = None
    for old, new in _matched(recorded, now):
        if new.key in apart:
            if apart[new.key].is_explained:
                continue
            return Departure(old.module, old.number, new.kind, _relative(old, new)), True
        pairs = list(_paired(old.outputs, new.outputs))
        agrees = all(judge.agrees(a, b, result_key(new, path)) for path, a, b in pairs)
        if agrees and new.key in coarser:
            agrees = all(judge.excess(b, result_key(new, path)).is_explained for path, _, b in pairs)
        if agrees:
            continue
        departure = Departure(old.module, old.number, new.kind, _relative(old, new))
        if all(judge.agrees(a, b, input_key(new, path)) for path, a, b in _paired(old.inputs, new.inputs)):
            return departure, True
        fallback = fallback or departure
    return fallback, False


def _growth(
    recorded: Sequence[Call], now: Sequence[Call], only: Callable[[Call, Call], bool] = lambda old, new: True
) -> list[Departure]:
    return [
        Departure(old.module, old.number, new.kind, _relative(old, new))
        for old, new in _matched(recorded, now)
        if only(old, new)
    ]


def _relative(old: Call, new: Call) -> float:
    worst = 0.0
    for _, a, b in _paired(old.outputs, new.outputs):
        if a.digest == b.digest:
            continue
        if a.shape != b.shape or a.num_odd != b.num_odd:
            return math.inf
        off = distance(a.sketch, b.sketch)
        worst = max(worst, off / a.norm if a.norm else math.inf if off else 0.0)
    return worst


def _matched(recorded: Sequence[Call], now: Sequence[Call]) -> Iterator[tuple[Call, Call]]:
    """The calls that there were then and are today, in the recorded order."""
    by_key = {call.key: call for call in now}
    return ((old, by_key[old.key]) for old in recorded if old.key in by_key)


def _paired(old: Mapping[str, Sample], new: Mapping[str, Sample]) -> Iterator[tuple[str, Sample, Sample]]:
    """Today's path, the recorded tensor, today's. Where the paths are others (a module returns a tuple
    now, or takes an argument by name), the tensors are taken in order while their shapes are the same."""
    if old.keys() == new.keys():
        yield from ((path, sample, new[path]) for path, sample in old.items())
        return
    for a, (path, b) in zip(old.values(), new.items(), strict=False):
        if a.shape != b.shape:
            return
        yield path, a, b


def _structure(recorded: Behaviour, now: Sequence[Call]) -> str:
    """How the modules that are called differ, in words."""
    old, new = {call.module: call for call in recorded.calls}, {call.module: call for call in now}
    gone = [name for name in old if name not in new]
    come = [name for name in new if name not in old] if recorded.has_all_calls else []
    parts = []
    for names, one, many in (
        (gone, "is not called any more", "are not called any more"),
        (come, "is called now, and was not", "are called now, and were not"),
    ):
        if names:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            parts.append(f"{names[0]!r}{others} {many if others else one}")
    for name in (name for name in old if name in new and new[name].kind != old[name].kind):
        parts.append(f"{name or 'the model'!r} was a {old[name].kind}, is a {new[name].kind}")
    return "; ".join(parts[:4])

"""The check `behaviour`: the recorded inputs run again today, and findings on what came out."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ptsave.config.toml import InputsSpec, Tolerance
from ptsave.core.behaviour import Behaviour
from ptsave.core.finding import Facts, Finding, Kind, Level
from ptsave.core.verdict import Departure
from ptsave.errors import LimitError, UnreadableError, UsageError
from ptsave.models.behaviour.observe import buffer_digests, outside_digests
from ptsave.models.behaviour.replay import NUMERIC, Replay, replay
from ptsave.models.inputs import Arguments, digests_of_arguments, make_inputs
from ptsave.models.verify.subject import ModelSubject

CHECK = "behaviour"
FLOATS = ("bfloat16", "float16", "float32", "float64")
"""The coarsest first."""


def behaviour(subject: ModelSubject) -> Iterator[Finding]:
    """Today's outputs on the recorded inputs match the recorded ones; else names the module that departs."""
    recorded, fault = subject.behaviour, subject.told.faults.get("behaviour")
    if fault is not None:
        level: Level = "skipped" if isinstance(fault, LimitError) else "fail"
        yield Finding(CHECK, level, "record", Kind.UNREADABLE, facts={"why": fault.what})
        return
    if recorded is None:
        yield Finding(CHECK, "skipped", "", Kind.NO_RECORD)
        return
    model = loaded(subject, CHECK)
    if isinstance(model, Finding):
        yield model
        return
    if subject.damage is not None:
        yield Finding(CHECK, "fail", "", Kind.RUN_DAMAGED, facts={"why": str(subject.damage)})
    lost, here = list(_buffers(subject, model, recorded)), outside_digests(model)
    try:
        arguments = _arguments(subject, model)
        if isinstance(arguments, Kind):
            yield Finding(CHECK, "skipped", "", arguments)
            return
        subject.replayed = found = replayed(subject, model, arguments, recorded)
    except LimitError as error:
        yield too_much(error, CHECK)
        return
    except UsageError as error:
        yield Finding(CHECK, "fail", "", Kind.DOES_NOT_RUN, facts={"why": str(error)})
        return
    if recorded.determinism != "exact":
        seeds = (
            "two seeds gave two results" if recorded.determinism == "seeded" else "one seed gave two results"
        )
        yield Finding(CHECK, "warn", "", Kind.NOT_DETERMINISTIC, facts={"why": seeds})
    yield from _training(found, recorded)
    yield from lost
    subject.recreated = [n for n, digest in recorded.outside.items() if here.get(n, digest) != digest]
    # What a model computes from its weights (an old weight norm's) is another before they are loaded.
    for name in [] if found.is_same else subject.recreated:
        yield Finding(CHECK, "warn", name, Kind.RECREATED)
    yield from judged(found, CHECK)
    if found.claims and found.is_same and not found.is_tolerated:
        yield Finding(CHECK, "warn", "", Kind.EXCUSED, facts={"why": "; ".join(found.claims)})


def loaded(subject: ModelSubject, check: str) -> nn.Module | Finding:
    """The model of the checkpoint, or the finding of a check that cannot have it."""
    if not subject.fit.fits:
        return Finding(check, "skipped", "", Kind.NO_FIT)
    try:
        return subject.model()
    except UnreadableError as error:
        return Finding(check, "fail", "", Kind.NO_WEIGHTS, facts={"why": str(error)})


def too_much(error: LimitError, check: str) -> Finding:
    """The finding of a check on a model whose outputs exceed a cap."""
    return Finding(check, "skipped", "", Kind.RECORDED_TOO_MUCH, facts={"why": f"{error.what}; {error.hint}"})


def coarser_dtype(subject: ModelSubject, recorded: Behaviour) -> str | None:
    """The narrower dtype that the weights have gone through since they were recorded, if any."""
    kept = {entry.dtype.name for entry in subject.selection.tensors.values()} & {*FLOATS}
    then = {name for name in recorded.dtypes if name in FLOATS}
    if not kept or not then or kept == then:
        return None
    return min(kept | then, key=FLOATS.index)


def _arguments(subject: ModelSubject, model: nn.Module) -> Arguments | Kind:
    """The recorded arguments, or what a finding says of there being none.

    A record names no files, so what stood in files comes from the config's own, if it is the same still.
    """
    spec, own = subject.told.behaviour_inputs, subject.config.inputs
    if spec is None or not spec.needs_files:
        if spec is not None and own is not None and not own.is_recorded and own.to_json() == spec.to_json():
            spec = own
        return make_inputs(spec or InputsSpec(), model, subject.device)
    if not spec.digests:
        return Kind.INPUTS_IN_FILES
    if own is None:
        return Kind.INPUTS_UNKNOWN
    arguments = make_inputs(own, model, subject.device)
    if digests_of_arguments(arguments) != spec.digests:
        return Kind.OTHER_INPUTS
    return arguments


def replayed(subject: ModelSubject, model: nn.Module, arguments: Arguments, recorded: Behaviour) -> Replay:
    """What `model` computes today beside what was recorded, within the config's tolerance.

    Raises: what running it raises.
    """
    tolerance = subject.config.tolerance or Tolerance()
    return replay(
        model,
        arguments,
        recorded,
        subject.device,
        coarse=coarser_dtype(subject, recorded),
        rtol=tolerance.rtol,
        atol=tolerance.atol,
    )


def _buffers(subject: ModelSubject, model: nn.Module, recorded: Behaviour) -> Iterator[Finding]:
    now = buffer_digests(model)
    subject.lost_buffers = [n for n, digest in recorded.buffers.items() if now.get(n, digest) != digest]
    for name in subject.lost_buffers:
        yield Finding(CHECK, "warn", name, Kind.LOST_BUFFER)


def _training(found: Replay, recorded: Behaviour) -> Iterator[Finding]:
    """Modules that dropout drops in and batch norm learns in, and did not; the outermost of them."""
    stuck = [name for name in found.now.training if name not in recorded.training]
    for name in stuck:
        if not any(name != other and (not other or name.startswith(f"{other}.")) for other in stuck):
            inside = sum(other != name and (not name or other.startswith(f"{name}.")) for other in stuck)
            kind = Kind.TRAIN_MODE_INSIDE if inside else Kind.TRAIN_MODE
            yield Finding(CHECK, "fail", name, kind, facts={"inside": inside})
    if still := tuple(name or "the model" for name in found.now.training if name in recorded.training):
        yield Finding(CHECK, "warn", "", Kind.STILL_TRAIN_MODE, None, still)


def judged(found: Replay, check: str) -> Iterator[Finding]:
    """Findings on each output, and on the module in which a difference begins."""
    level: Level
    if not found.outputs:
        yield Finding(check, "skipped", "", Kind.NO_OUTPUT)
    for output in found.outputs:
        if output.why_not:
            why_not = {"why_not": output.why_not}
            yield Finding(check, "fail", output.path, Kind.OUTPUT_UNLIKE, facts=why_not)
        elif output.is_void:
            yield Finding(check, "skipped", output.path, Kind.VOID_OUTPUT)
        elif output.is_bitwise_equal:
            yield Finding(check, "ok", output.path, Kind.EQUAL_OUTPUT)
        else:
            excess = found.excesses[output.path]
            off = f"{excess.relative:.2g} relative off, rounding explains {excess.allowed:.2g}"
            if found.is_tolerated:
                level, kind = "ok", Kind.OUTPUT_TOLERATED
            elif not excess.is_explained:
                level, kind = "fail", Kind.OUTPUT_DIFFERS
            elif not found.is_deterministic:
                level, kind = "warn", Kind.OUTPUT_VARIES
            else:
                level, kind = "ok", Kind.OUTPUT_EXPLAINED
            facts = {"off": f"{off}; {output.figures}", "besides": f"{_elsewhere(found)}{_not_done(found)}"}
            yield Finding(check, level, output.path, kind, facts=facts)
    if found.is_surprising and found.is_same and found.first_unequal is not None:
        first = found.first_unequal
        begins: Facts = {"module": first.kind, "relative": first.relative}
        yield Finding(check, "warn", first.module, Kind.SURPRISING, facts=begins)
    for (module, _), dtype in found.coarser.items():
        yield Finding(check, "warn", module, Kind.COARSER_CODE, facts={"dtype": dtype})
    if found.structure:
        yield Finding(check, "warn", "", Kind.OTHER_STRUCTURE, facts={"structure": found.structure})
    if found.first is not None and not found.is_tolerated:
        yield _departure(found, found.first, check)


def _elsewhere(found: Replay) -> str:
    """What of the environment is another, where that is what changes numbers."""
    changed = [f"{name} {then} → {now}" for name, (then, now) in found.environment.items() if name in NUMERIC]
    return f" (another environment: {', '.join(changed)})" if changed else ""


def _not_done(found: Replay) -> str:
    return " (modules were not run alone: several ranks run the model)" if found.is_apart_left_out else ""


def _departure(found: Replay, first: Departure, check: str) -> Finding:
    call = f" (call {first.number + 1})" if first.number else ""
    inputs = "its inputs agree" if found.begins_there else "and so does what it is given"
    facts: Facts = {"module": first.kind, "call": call, "relative": first.relative, "inputs": inputs}
    level: Level = "warn" if found.is_same else "fail"
    return Finding(check, level, first.module, Kind.FIRST_TO_DEPART, facts=facts)

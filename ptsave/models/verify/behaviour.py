"""The check `behaviour`: the recorded inputs run again today, and findings on what came out."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ptsave.config.toml import InputsSpec, Tolerance
from ptsave.core.behaviour import Behaviour
from ptsave.core.cause import first_names
from ptsave.core.verdict import Departure, Finding, Level
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
        yield Finding(CHECK, level, "record", fault.what)
        return
    if recorded is None:
        message = "the checkpoint has no behaviour record: `ptsave save` and `verify --record` make one"
        yield Finding(CHECK, "skipped", "", message)
        return
    if not subject.fit.fits:
        yield Finding(CHECK, "skipped", "", "the keys do not fit the architecture")
        return
    try:
        model = subject.model()
    except UnreadableError as error:
        yield Finding(CHECK, "fail", "", f"the weights cannot be loaded: {error}")
        return
    if subject.damage is not None:
        yield Finding(CHECK, "fail", "", f"{subject.damage}; run with the damage")
    lost, here = list(_buffers(subject, model, recorded)), outside_digests(model)
    try:
        arguments = _arguments(subject, model)
        if isinstance(arguments, str):
            yield Finding(CHECK, "skipped", "", arguments)
            return
        subject.replayed = found = _replayed(subject, model, arguments, recorded)
    except UsageError as error:
        yield Finding(CHECK, "fail", "", f"the model does not run on the recorded inputs: {error}")
        return
    if recorded.determinism != "exact":
        seeds = (
            "two seeds gave two results" if recorded.determinism == "seeded" else "one seed gave two results"
        )
        yield Finding(CHECK, "warn", "", f"the model is not deterministic: {seeds} when it was recorded")
    yield from _training(found, recorded)
    yield from lost
    subject.made_anew = [n for n, digest in recorded.outside.items() if here.get(n, digest) != digest]
    # What a model computes from its weights (an old weight norm's) is another before they are loaded.
    for name in [] if found.is_same else subject.made_anew:
        message = "a value outside the state dict is not what it was: made anew, at random or from other code"
        yield Finding(CHECK, "warn", name, message)
    yield from judged(found, CHECK)
    if found.claims and found.is_same and not found.is_tolerated:
        why = "; ".join(found.claims)
        message = f"not everything is bitwise equal, and the record's word excuses it: {why}"
        yield Finding(CHECK, "warn", "", message)


def coarser_dtype(subject: ModelSubject, recorded: Behaviour) -> str | None:
    """The narrower dtype that the weights have gone through since they were recorded, if any."""
    kept = {entry.dtype.name for entry in subject.selection.tensors.values()} & {*FLOATS}
    then = {name for name in recorded.dtypes if name in FLOATS}
    if not kept or not then or kept == then:
        return None
    return min(kept | then, key=FLOATS.index)


def _arguments(subject: ModelSubject, model: nn.Module) -> Arguments | str:
    """The recorded arguments, or why there are none.

    A record names no files, so what stood in files comes from the config's own, if it is the same still.
    """
    spec, own = subject.told.behaviour_inputs, subject.config.inputs
    if spec is None or not spec.needs_files:
        return make_inputs(spec or InputsSpec(), model, subject.device)
    if not spec.digests:
        return (
            "the record names files as inputs, and no file that a record names is opened: "
            "`verify -c CONFIG --record` records them"
        )
    if own is None:
        return "it was recorded with inputs of files: name the config with -c CONFIG"
    arguments = make_inputs(own, model, subject.device)
    if digests_of_arguments(arguments) != spec.digests:
        return "the config's inputs are not those that it was recorded with"
    return arguments


def _replayed(subject: ModelSubject, model: nn.Module, arguments: Arguments, recorded: Behaviour) -> Replay:
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
        message = "a buffer outside the state dict is not what it was: uninitialised, or made otherwise"
        yield Finding(CHECK, "warn", name, message)


def _training(found: Replay, recorded: Behaviour) -> Iterator[Finding]:
    """Modules that dropout drops in and batch norm learns in, and did not; the outermost of them."""
    stuck = [name for name in found.now.training if name not in recorded.training]
    for name in stuck:
        if not any(name != other and (not other or name.startswith(f"{other}.")) for other in stuck):
            inside = sum(other != name and (not name or other.startswith(f"{name}.")) for other in stuck)
            more = f", and {inside} modules inside it" if inside else ""
            message = f"left in train mode: it stays in training after eval(){more}"
            yield Finding(CHECK, "fail", name, message, "train_mode")
    if still := [name for name in found.now.training if name in recorded.training]:
        names = first_names([name or "the model" for name in still])
        yield Finding(
            CHECK, "warn", "", f"stays in train mode after eval(), as it did when recorded: {names}"
        )


def judged(found: Replay, check: str) -> Iterator[Finding]:
    """Findings on each output, and on the module in which a difference begins."""
    level: Level
    if not found.outputs:
        yield Finding(check, "skipped", "", "the model returns no tensor that could be compared")
    for output in found.outputs:
        if output.why_not:
            yield Finding(check, "fail", output.path, output.why_not)
        elif output.is_void:
            message = "nothing was compared: it has no elements, or all are NaN or infinite"
            yield Finding(check, "skipped", output.path, message)
        elif output.is_bitwise_equal:
            yield Finding(check, "ok", output.path, "bitwise equal")
        else:
            excess = found.excesses[output.path]
            off = f"{excess.relative:.2g} relative off, rounding explains {excess.allowed:.2g}"
            if found.is_tolerated:
                level, how = "ok", "within the tolerance of the config"
            elif not excess.is_explained:
                level, how = "fail", "differs"
            elif not found.is_deterministic:
                level, how = "warn", "the model is not deterministic, and two runs of it differ as much"
            else:
                level, how = "ok", f"explained by rounding{_elsewhere(found)}{_not_done(found)}"
            yield Finding(check, level, output.path, f"{how}: {off}; {output.figures}")
    if found.is_surprising and found.is_same and found.first_unequal is not None:
        first = found.first_unequal
        message = (
            "not bitwise equal, though the environment is and the model is deterministic: begins in "
            f"{first.kind}, {first.relative:.2g} off"
        )
        yield Finding(check, "warn", first.module, message)
    for (module, _), dtype in found.coarser.items():
        yield Finding(
            check, "warn", module, f"its code computes in {dtype}, and did not when it was recorded"
        )
    if found.structure:
        yield Finding(check, "warn", "", found.structure)
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
    message = f"first to depart: {first.kind}{call}, {first.relative:.2g} off, {inputs}"
    return Finding(check, "warn" if found.is_same else "fail", first.module, message)

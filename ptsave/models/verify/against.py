"""The check `against` on live models: what a second checkpoint, or a config's fresh model, computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from ptsave.config.toml import InputsSpec
from ptsave.core.behaviour import Behaviour
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Finding, Kind, Level
from ptsave.core.parts.select import key_in, select_model
from ptsave.errors import AmbiguousError, LossyError, UnreadableError, UsageError
from ptsave.models.behaviour.observe import observe
from ptsave.models.inputs import make_inputs
from ptsave.models.verify.behaviour import judged, replayed
from ptsave.models.verify.subject import ModelSubject, RunBeside
from ptsave.storage.system.processes import trim_memory
from ptsave.verbs.checks.program import FORMATS as PROGRAMS

CHECK = "against"


def against(subject: ModelSubject) -> Iterator[Finding]:
    """The tensors and the behaviour equal those of OTHER, whatever the two formats."""
    if subject.other is None:
        return
    fresh = subject.fresh
    inputs = subject.config.inputs or (fresh.config.inputs if fresh is not None else None)
    if subject.run_beside is not None and _programs(subject):
        yield from _beside(subject, subject.run_beside, inputs or subject.told.inputs)
        return
    if inputs is None or not subject.fit.fits:
        why = "the config has no [inputs]" if inputs is None else "the keys do not fit the architecture"
        yield Finding(CHECK, "skipped", "", Kind.NOT_COMPARED, facts={"why": why})
        return
    try:
        there = _behaviour_of_other(subject, subject.other, inputs)
    except LossyError as error:
        yield Finding(CHECK, "skipped", "", Kind.NOT_COMPARED, facts={"why": str(error)})
        return
    except (UsageError, AmbiguousError, UnreadableError) as error:
        facts = {"other": str(subject.other.path), "why": str(error)}
        yield Finding(CHECK, "fail", "", Kind.OTHER_FAILS, facts=facts)
        return
    try:
        model = subject.model()
        subject.compared = replayed(subject, model, make_inputs(inputs, model, subject.device), there)
    except (UsageError, UnreadableError) as error:
        yield Finding(CHECK, "fail", "", Kind.CANNOT_COMPARE, facts={"why": str(error)})
        return
    yield from judged(subject.compared, CHECK)


def _programs(subject: ModelSubject) -> list[Checkpoint]:
    """Those of the two sides that are exported programs."""
    sides = (subject.checkpoint, subject.other)
    return [side for side in sides if side is not None and side.format in PROGRAMS]


def _beside(subject: ModelSubject, run: RunBeside, inputs: InputsSpec | None) -> Iterator[Finding]:
    """Each program beside the model with the weights of the other side.

    One that cannot run is a failure: what the program computes excuses tensors that one side lacks.

    Where these are not the program's, it runs once more beside the model with its own: if it computes what
    that does, nothing but the weights is another.
    """
    assert subject.other is not None
    if inputs is None:
        yield Finding(CHECK, "fail", "", Kind.CANNOT_COMPARE, facts={"why": "the config has no [inputs]"})
        return
    programs = _programs(subject)
    weights = subject.checkpoint if programs == [subject.other] else subject.other
    for program in programs:
        try:
            findings = list(run(program, _filled(subject, weights), inputs))
            if weights is not program and any(finding.level == "fail" for finding in findings):
                subject.graph_is_equal = _is_equal(run, subject, program, inputs)
        except (LossyError, UsageError, AmbiguousError, UnreadableError) as error:
            yield Finding(CHECK, "fail", "", Kind.CANNOT_COMPARE, facts={"why": str(error)})
            return
        for finding in findings:
            level: Level = "fail" if finding.level == "skipped" else finding.level
            yield replace(finding, check=CHECK, level=level)


def _is_equal(run: RunBeside, subject: ModelSubject, program: Checkpoint, inputs: InputsSpec) -> bool | None:
    """Whether a program computes what the model does with its own weights; None where these do not fit it."""
    try:
        return all(finding.level != "fail" for finding in run(program, _filled(subject, program), inputs))
    except (LossyError, UsageError, AmbiguousError, UnreadableError):
        return None


def _filled(subject: ModelSubject, source: Checkpoint) -> nn.Module:
    """The model of the config with the weights of `source`, in eval mode."""
    if subject.fresh is not None and source is subject.other:
        return subject.fresh.model
    return subject.load(source, select_model(source, key_in(source, subject.select)))


def _behaviour_of_other(subject: ModelSubject, other: Checkpoint, inputs: InputsSpec) -> Behaviour:
    """What OTHER computes; its model is released before the checkpoint's own is loaded.

    Raises: LossyError where its weights do not fit, and what loading and running raise.
    """
    if subject.fresh is not None:
        return observe(subject.fresh.model, inputs, subject.device)
    selection = select_model(other, key_in(other, subject.select))
    model = subject.load(other, selection)
    dtypes = Counter(entry.dtype.name for entry in selection.tensors.values())
    there = observe(model, inputs, subject.device, dtypes)
    del model
    trim_memory()
    return there

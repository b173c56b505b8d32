"""The check `against` on live models: what a second checkpoint, or a config's fresh model, computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ptsave.config.toml import InputsSpec
from ptsave.core.behaviour import Behaviour
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Finding, Kind
from ptsave.core.parts.select import key_in, select_model
from ptsave.errors import AmbiguousError, LossyError, UnreadableError, UsageError
from ptsave.models.behaviour.observe import observe
from ptsave.models.inputs import make_inputs
from ptsave.models.verify.behaviour import judged, replayed
from ptsave.models.verify.subject import ModelSubject
from ptsave.storage.system import trim_memory

CHECK = "against"


def against(subject: ModelSubject) -> Iterator[Finding]:
    """The tensors and the behaviour equal those of OTHER, whatever the two formats."""
    if subject.other is None:
        return
    fresh = subject.fresh
    inputs = subject.config.inputs or (fresh.config.inputs if fresh is not None else None)
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

"""What a record says, parsed once and bounded: the model, its inputs and its behaviour as frozen types.

`core.record` reads the container of it all; whatever a check, `load` or `inspect` takes from a record goes
through here. A part that does not fit is left out, and named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ptsave.config.input_tables import recorded_inputs
from ptsave.config.inputs import InputsSpec
from ptsave.config.model import ModelSpec
from ptsave.core.behaviour import Behaviour
from ptsave.core.checkpoint import Checkpoint
from ptsave.errors import CorruptError, LimitError

MAX_RECORDED_INPUTS = 1 << 22
"""Cap on the elements of all inputs that a record has generated. It grows with what else is at hand: the
elements of the checkpoint's own tensors, and those of the config's inputs."""
T = TypeVar("T")


@dataclass(frozen=True)
class Told:
    """What a checkpoint's record tells, as far as it fits."""

    model: ModelSpec | None = None
    inputs: InputsSpec | None = None
    """How the config made the arguments of forward()."""
    behaviour: Behaviour | None = None
    behaviour_inputs: InputsSpec | None = None
    """How the arguments are made that the behaviour was recorded with; None where `behaviour` is."""
    faults: Mapping[str, CorruptError | LimitError] = field(default_factory=dict)
    """`model`, `inputs` or `behaviour` → what of that part does not fit, or is beyond a cap."""


def told_by(checkpoint: Checkpoint, own: InputsSpec | None = None) -> Told:
    """Parse the record of `checkpoint`. `own` is what the user's config has for inputs, for the caps."""
    record = checkpoint.record
    if record is None:
        return Told()
    where = f"{checkpoint.path}: record"
    faults: dict[str, CorruptError | LimitError] = {}

    def part(name: str, read: Callable[[Mapping[str, Any], str], T], document: Any) -> T | None:
        if document is None:
            return None
        try:
            return read(document, where)
        except (CorruptError, LimitError) as error:
            faults[name] = error
            return None

    most = max(
        MAX_RECORDED_INPUTS,
        sum(entry.num_elements for entry in checkpoint.tensors.values()),
        own.num_elements if own is not None else 0,
    )

    def inputs_of(document: Mapping[str, Any], where: str) -> InputsSpec:
        spec = recorded_inputs(document, where)
        if spec.num_elements > most:
            limit = LimitError("MAX_RECORDED_INPUTS", most, spec.num_elements, where)
            limit.hint = "name a config with -c whose [inputs] are as large"
            raise limit
        return spec

    behaviour = part("behaviour", Behaviour.from_json, record.behaviour)
    behaviour_inputs = None
    if behaviour is not None:
        behaviour_inputs = part("behaviour", inputs_of, behaviour.inputs)
    return Told(
        part("model", ModelSpec.from_json, record.model),
        part("inputs", inputs_of, record.inputs),
        behaviour if behaviour_inputs is not None else None,
        behaviour_inputs,
        faults,
    )

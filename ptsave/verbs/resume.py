"""The check `resume`: whether a training can go on from a checkpoint as if it had never stopped.

An optimizer's state dict numbers the parameters in the order in which it was given them, and says no names.
Loaded beside a model whose parameters come in another order, or beside another model, it attaches each state
to the wrong weights, and torch says nothing as long as the counts agree.

Source: `torch.optim.Optimizer.state_dict` and `load_state_dict`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.nodes import TensorEntry
from ptsave.core.select import select_model
from ptsave.core.verdict import Finding
from ptsave.errors import UsageError
from ptsave.verbs.training import Training, describe_training, optimizer_nodes
from ptsave.verbs.training_parts import fields_of

CHECK = "resume"
LIKE_THE_WEIGHT = (
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "sum", "square_avg", "grad_avg"),
    *("acc_delta", "exp_inf", "prev", "ax", "z"),
)
"""States that have the shape of the weight that they belong to, in every optimizer that keeps them."""
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""How the names of batch norm's buffers end: they lie among the weights and no optimizer has them."""
TEXT_KEYED_FORMATS = ("dcp", "safetensors", "safetensors-sharded", "npz")
"""Formats that know no other keys than text: whoever reads them turns numbers back into numbers."""
_SAMPLER = re.compile(r"(?i)(^|[._])(\w*sampler|data_?loader\w*)([._]|$)")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Group:
    """The parameters of one parameter group, in order."""

    params: Sequence[Any]
    """As the state dict refers to them: numbers, or names."""
    names: Sequence[str]
    """Their names, where the optimizer was given them (`param_names`)."""


def resume(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Hold the training state of a checkpoint against its weights, and list what is missing."""
    training = describe_training(checkpoint)
    if training is None or not (training.optimizers or training.schedulers or training.scalers):
        yield Finding(CHECK, "skipped", "", "no training checkpoint: it has no optimizer state")
        return
    try:
        weights = _weights(select_model(checkpoint).tensors)
    except UsageError:
        weights = {}
        message = "there are no weights beside it that the optimizer state could be held against"
        yield Finding(CHECK, "skipped", "", message)
    for where, node in optimizer_nodes(checkpoint).items():
        yield from _optimizer(checkpoint, where, node, weights, alone=len(training.optimizers) == 1)
    yield from _the_rest(training, checkpoint)


def _weights(tensors: Mapping[str, TensorEntry]) -> dict[str, Shape]:
    """The names and shapes of what may be parameters, in order; tied ones once."""
    unique = {entry.view: name for name, entry in reversed(tensors.items())}
    return {
        name: entry.shape
        for name, entry in tensors.items()
        if entry.dtype.is_float and not name.endswith(BUFFERS) and unique[entry.view] == name
    }


# --- one optimizer --------------------------------------------------------------------------------------


def _optimizer(
    checkpoint: Checkpoint, where: str, node: Any, weights: Mapping[str, Shape], *, alone: bool
) -> Iterator[Finding]:
    fields = fields_of(node)
    groups = _groups(fields.get("param_groups"))
    state = {key: fields_of(value) for key, value in fields_of(fields.get("state")).items()}
    params = [param for group in groups for param in group.params]
    if not params:
        yield Finding(CHECK, "warn", where, "says nothing of parameter groups: its order cannot be checked")
        return
    if repeated := [param for param, times in Counter(map(str, params)).items() if times > 1]:
        yield Finding(CHECK, "fail", where, f"two parameter groups have the parameter {repeated[0]}")
        return
    state, problem = _keyed_alike(state, params, checkpoint.format)
    if problem is not None:
        yield Finding(CHECK, problem.level, where, problem.message)
    strange = [key for key in state if key not in set(params)]
    if strange:
        number = f"{len(strange)} states (such as {strange[0]!r})"
        yield Finding(CHECK, "fail", where, f"{number} belong to no parameter of its groups")
        return
    shapes = {param: _shape(state.get(param, {})) for param in params}
    bad = list(_misfits(groups, shapes, weights)) if weights else []
    yield from (Finding(CHECK, level, where, message) for level, message in bad)
    if not any(level == "fail" for level, _ in bad):
        yield from _coverage(where, params, state, weights, alone=alone)


def _groups(raw: Any) -> list[_Group]:
    nodes = list(raw.values()) if isinstance(raw, dict) else raw if isinstance(raw, (list, tuple)) else []
    groups = []
    for fields in map(fields_of, nodes):
        params, names = fields.get("params"), fields.get("param_names")
        if isinstance(params, dict):
            params = list(params.values())
        if isinstance(params, (list, tuple)) and all(isinstance(p, (int, str)) for p in params):
            is_named = isinstance(names, (list, tuple)) and len(names) == len(params)
            names = [str(name) for name in names] if is_named else []
            if not names and params and all(isinstance(param, str) for param in params):
                names = list(params)
            groups.append(_Group(params, names))
    return groups


@dataclass(frozen=True)
class _Problem:
    level: Any
    message: str


def _keyed_alike(
    state: Mapping[Any, Any], params: Sequence[Any], format_: str
) -> tuple[dict[Any, Any], _Problem | None]:
    """`state` under the keys that the groups use, and what to say where they were others."""
    if all(isinstance(key, str) for key in state) and all(isinstance(param, int) for param in params):
        numbered = {int(key) if key.isdecimal() and len(key) < 10 else key: v for key, v in state.items()}
        if state and format_ not in TEXT_KEYED_FORMATS and set(numbered) & set(params):
            message = "its states are under text keys ('0', not 0): load_state_dict would attach none of them"
            return numbered, _Problem("fail", message)
        return numbered, None
    return dict(state), None


def _shape(state: Mapping[Any, Any]) -> Shape | None:
    """The shape of the weight that a parameter's state belongs to, where a state shows it."""
    for key in LIKE_THE_WEIGHT:
        if isinstance(value := state.get(key), TensorEntry):
            return value.shape
    return None


def _misfits(
    groups: Sequence[_Group], shapes: Mapping[Any, Shape | None], weights: Mapping[str, Shape]
) -> Iterator[tuple[Any, str]]:
    """How the states do not fit the weights: (level, message), the surest first."""
    if all(group.names for group in groups):
        yield from _named_misfits(groups, shapes, weights)
        return
    if len(shapes) > len(weights):
        yield "fail", f"it has {len(shapes)} parameters, the model only {len(weights)}: it is another model's"
        return
    known = Counter(shape for shape in shapes.values() if shape is not None)
    for shape, number in (known - Counter(weights.values())).items():
        times = "no weight has" if shape not in weights.values() else f"{number} more than weights have"
        param = next(param for param, found in shapes.items() if found == shape)
        yield "fail", f"the state of parameter {param} has the shape {list(shape)}: {times} that shape"
        return
    if len(shapes) == len(weights) and len(groups) == 1:
        for (param, shape), (name, expected) in zip(shapes.items(), weights.items(), strict=True):
            if shape not in (None, expected):
                place = f"the state of parameter {param} has the shape {list(shape or ())}"
                yield "fail", f"another order: {place}, and {name!r} in its place {list(expected)}"
                return
    for i, group in enumerate(groups):
        if not _is_subsequence([shapes[param] for param in group.params], list(weights.values())):
            yield "warn", f"the parameters of group {i} come in another order than the weights"


def _named_misfits(
    groups: Sequence[_Group], shapes: Mapping[Any, Shape | None], weights: Mapping[str, Shape]
) -> Iterator[tuple[Any, str]]:
    for group in groups:
        for param, name in zip(group.params, group.names, strict=True):
            shape = shapes[param]
            if name not in weights:
                yield "warn", f"it has a parameter {name!r}, and no weight has that name"
            elif shape not in (None, weights[name]):
                expected = list(weights[name])
                yield "fail", f"the state of {name!r} has the shape {list(shape or ())}, the weight {expected}"


def _is_subsequence(shapes: Sequence[Shape | None], weights: Sequence[Shape]) -> bool:
    """Whether `weights`, less some of them, have these shapes in this order; None fits any."""
    rest = iter(weights)
    return all(any(shape in (None, weight) for weight in rest) for shape in shapes)


def _coverage(
    where: str,
    params: Sequence[Any],
    state: Mapping[Any, Any],
    weights: Mapping[str, Shape],
    *,
    alone: bool,
) -> Iterator[Finding]:
    with_state = sum(bool(state.get(param)) for param in params)
    if not with_state:
        message = f"keeps nothing for its {len(params)} parameters: it has not stepped, or has no memory"
        yield Finding(CHECK, "ok", where, message)
    elif with_state < len(params):
        message = f"{len(params) - with_state} of its {len(params)} parameters have no state"
        yield Finding(CHECK, "warn", where, message)
    if weights and len(params) < len(weights) and alone:
        message = (
            f"covers {len(params)} of {len(weights)} weights: the others are frozen, buffers, or forgotten"
        )
        yield Finding(CHECK, "warn", where, message)
    elif weights and with_state == len(params):
        message = f"covers {len(params)} of {len(weights)} weights, in their order and shapes"
        yield Finding(CHECK, "ok", where, message)


# --- what else there is -----------------------------------------------------------------------------------


def _the_rest(training: Training, checkpoint: Checkpoint) -> Iterator[Finding]:
    """What goes on exactly where it stopped, and what does not because it is not there."""
    sampler = next((name for name in checkpoint.data if _SAMPLER.search(name)), None)
    parts = {
        "how far it came": ", ".join(training.progress),
        "a scheduler": ", ".join(part.where or part.kind for part in training.schedulers),
        "a gradient scaler": ", ".join(part.where or "scaler" for part in training.scalers),
        "random number generators": ", ".join(training.rng),
        "a sampler": sampler or "",
    }
    present = [f"{what} ({where})" for what, where in parts.items() if where]
    missing = [what for what, where in parts.items() if not where]
    if present:
        yield Finding(CHECK, "ok", "", f"has {', '.join(present)}")
    if missing:
        message = f"does not have {', '.join(missing)}: what the training used of these starts anew"
        yield Finding(CHECK, "warn", "", message)

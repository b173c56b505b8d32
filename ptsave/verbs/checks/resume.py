"""The check `resume`: whether a training can go on from a checkpoint as if it had never stopped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Facts, Finding, Kind
from ptsave.core.leaves import named_leaves
from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.core.parts.candidates import is_average
from ptsave.core.parts.kinds import optimizer_kind, unlike_itself
from ptsave.core.parts.modules import BUFFERS
from ptsave.core.parts.select import strip_wrapper_names
from ptsave.core.parts.training import fields_of, find_part
from ptsave.errors import AmbiguousError
from ptsave.verbs.checks.resume_order import Match, Param, ParameterGroup, Shape, Weights, match
from ptsave.verbs.checks.subject import Subject
from ptsave.verbs.training import Training, describe_training, optimizer_nodes, state_dict_nodes
from ptsave.verbs.training_parts import plain_values

CHECK = "resume"
LIKE_THE_WEIGHT = (
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "sum", "square_avg", "grad_avg"),
    *("acc_delta", "exp_inf", "prev", "ax", "z", "state1"),
)
"""States that have the shape of the weight that they belong to, in nearly all optimizers that keep them."""
OF_ALL = frozenset({"prev_flat_grad", "old_dirs"})
"""States that one parameter keeps for all of them, in LBFGS."""
LOW_RANK = frozenset({"rank", "update_proj_gap"})
"""Options of optimizers whose states are projected, and have no weight's shape (GaLore)."""
UNORDERED_FORMATS = ("dcp", "safetensors", "safetensors-sharded", "npz")
"""Formats that know no keys but text (whoever reads them makes numbers of them again), and whose own writers
sort the names of the tensors."""
_SAMPLER = re.compile(r"(?i)(^|[._])(\w*sampler|data_?loader\w*|data_state_dict)([._]|$)")

State = Mapping[Any, Any]


def resume(subject: Subject) -> Iterator[Finding]:
    """Optimizer state covers the parameters in order and shape; what is missing is listed."""
    if subject.asked.by_name or has_training_state(subject.checkpoint):
        yield from resumable(subject.checkpoint, subject.parameters() if subject.parameters else None)
        is_flat = subject.checkpoint.training_root is not subject.checkpoint.root
        if is_flat and has_training_state(subject.checkpoint):
            yield Finding(CHECK, "fail" if subject.asked.by_name else "warn", "", Kind.FLATTENED)


def has_training_state(checkpoint: Checkpoint) -> bool:
    """Whether there is something to resume from: an optimizer, a scheduler or a gradient scaler."""
    parts = checkpoint.training_parts
    return bool(parts.optimizers or parts.schedulers or parts.scalers)


def resumable(checkpoint: Checkpoint, parameters: Mapping[str, Shape] | None = None) -> Iterator[Finding]:
    """Check the training state of a checkpoint against its weights, and list what is missing.

    `parameters`: those of the architecture in its order, where it is known; then its order counts.
    """
    training = describe_training(checkpoint)
    if training is None or not has_training_state(checkpoint):
        yield Finding(CHECK, "skipped", "", Kind.NO_TRAINING)
        return
    known = _weights(checkpoint)
    if parameters:
        others = [weights for weights in known if not parameters.keys() <= weights.shapes.keys()]
        known = [Weights("the architecture", parameters, is_ordered=True), *others]
    if not known and training.optimizers:
        yield Finding(CHECK, "skipped", "", Kind.NO_WEIGHTS_BESIDE)
    yield from _choices(checkpoint, known)
    for where, node in optimizer_nodes(checkpoint).items():
        yield from _optimizer(checkpoint, where, node, known, is_alone=len(training.optimizers) == 1)
    yield from _the_rest(training, checkpoint)


def _choices(checkpoint: Checkpoint, known: list[Weights]) -> Iterator[Finding]:
    """What TrainingState would not take, because it is another's or because there are several."""
    if known and all(is_average(weights.where) for weights in known):
        yield Finding(CHECK, "fail", known[0].where, Kind.ONLY_AVERAGES)
    root = checkpoint.root
    if not isinstance(root, dict) or root is not checkpoint.training_root:
        return
    for name in ("optimizer", "scheduler", "scaler"):
        try:
            find_part(root, checkpoint.training_parts, name, ())
        except AmbiguousError as error:
            yield Finding(CHECK, "ok", name, Kind.SEVERAL, facts={"why": error.what, "hint": error.hint})


def _weights(checkpoint: Checkpoint) -> list[Weights]:
    """The models of a checkpoint, the likeliest first."""
    is_ordered = checkpoint.format not in UNORDERED_FORMATS
    return [
        Weights(where, shapes, is_ordered)
        for where, node in state_dict_nodes(checkpoint).items()
        if (shapes := _parameter_shapes(node))
    ]


def _parameter_shapes(node: Any) -> dict[str, Shape]:
    """The names and shapes of what may be parameters, in order; tied ones once."""
    entries = {name or "": leaf for name, leaf in named_leaves(node) if isinstance(leaf, TensorEntry)}
    names, _ = strip_wrapper_names(entries)
    seen: set[object] = set()
    shapes = {}
    for name, entry in entries.items():
        is_number = entry.dtype.is_float or entry.dtype.name.startswith("complex")
        if is_number and not name.endswith(BUFFERS) and entry.view not in seen:
            seen.add(entry.view)
            shapes[names[name]] = entry.shape
    return shapes


# --- one optimizer --------------------------------------------------------------------------------------


def _optimizer(
    checkpoint: Checkpoint, where: str, node: Any, known: list[Weights], *, is_alone: bool
) -> Iterator[Finding]:
    if isinstance(node, Opaque):
        yield Finding(CHECK, "warn", where, Kind.NO_STATE_DICT)
    fields = fields_of(node)
    groups = _groups(fields.get("param_groups"))
    params = [param for group in groups for param in group.params]
    if not params:
        yield Finding(CHECK, "warn", where, Kind.NO_GROUPS)
        return
    if repeated := [param for param, times in Counter(map(str, params)).items() if times > 1]:
        yield Finding(CHECK, "fail", where, Kind.TWICE_IN_GROUPS, facts={"param": repeated[0]})
        return
    state = {key: fields_of(value) for key, value in fields_of(fields.get("state")).items()}
    numbered = _numbered(state, params)
    if numbered is not state and checkpoint.format not in UNORDERED_FORMATS:
        yield Finding(CHECK, "fail", where, Kind.TEXT_KEYS)
    # Under text keys among numbers, an optimizer keeps what belongs to no parameter.
    in_groups, kinds = set(params), set(map(type, params))
    strange = [key for key in numbered if type(key) in kinds and key not in in_groups]
    if strange:
        yield Finding(CHECK, "fail", where, Kind.OF_NO_PARAMETER, len(strange), facts={"param": strange[0]})
        return
    if (mixed := _mixed(fields.get("param_groups"), groups, numbered)) is not None:
        yield Finding(CHECK, "fail", where, Kind.MIXED_OPTIMIZERS, facts=mixed)
        return
    if not known:
        return
    found = match(groups, _shapes(fields.get("param_groups"), groups, numbered), known)
    yield from (Finding(CHECK, m.level, where, m.kind, m.count, m.places, m.facts) for m in found.misfits)
    if not any(misfit.level == "fail" for misfit in found.misfits):
        yield from _coverage(where, params, numbered, found, is_alone=is_alone)


def _mixed(raw: Any, groups: list[ParameterGroup], state: State) -> Facts | None:
    """Where the options of a group are one optimizer's and its states another's: which."""
    for fields, group in zip(_group_nodes(raw), groups, strict=True):
        options = plain_values(fields)
        for param in group.params[:4]:
            if (kind := unlike_itself(options, list(map(str, _of(state, param))))) is not None:
                return {"own": str(optimizer_kind(options, ())), "param": param, "other": str(kind)}
    return None


def _group_nodes(raw: Any) -> list[State]:
    nodes = list(raw.values()) if isinstance(raw, dict) else raw if isinstance(raw, (list, tuple)) else []
    return [fields_of(node) for node in nodes]


def _groups(raw: Any) -> list[ParameterGroup]:
    groups = []
    for fields in _group_nodes(raw):
        params, names = fields.get("params"), fields.get("param_names")
        params = list(params.values()) if isinstance(params, dict) else params
        if not isinstance(params, (list, tuple)) or not all(type(p) in (int, str) for p in params):
            return []
        is_named = isinstance(names, (list, tuple)) and len(names) == len(params)
        known = [str(name) for name in names or ()] if is_named else []
        if not known and all(isinstance(param, str) for param in params):
            known = list(params)
        groups.append(ParameterGroup(params, known))
    return groups


def _numbered(state: State, params: list[Param]) -> State:
    """`state` under numbers, where only that makes it fit the numbers in the groups; else itself."""
    if not state or not all(isinstance(param, int) for param in params):
        return state
    if any(isinstance(key, int) for key in state):
        return state
    numbers = {key: int(key) for key in state if isinstance(key, str) and key.isdecimal() and len(key) < 10}
    if not set(numbers.values()) & set(params):
        return state
    return {numbers.get(key, key): value for key, value in state.items()}


def _shapes(raw: Any, groups: list[ParameterGroup], state: State) -> dict[Param, Shape | None]:
    """Of the weight that each parameter's state belongs to, where a state shows it."""
    shapes: dict[Param, Shape | None] = {}
    for fields, group in zip(_group_nodes(raw), groups, strict=True):
        for param in group.params:
            states = [] if LOW_RANK & fields.keys() else [_of(state, param).get(k) for k in LIKE_THE_WEIGHT]
            shapes[param] = next((one.shape for one in states if isinstance(one, TensorEntry)), None)
    return shapes


def _of(state: State, param: Param) -> State:
    found: State = state.get(param, {})
    return found


def _coverage(
    where: str, params: list[Param], state: State, found: Match, *, is_alone: bool
) -> Iterator[Finding]:
    """What share of the weights it has, and of how many it keeps something."""
    kept = sum(any(value is not None for value in _of(state, param).values()) for param in params)
    is_of_all = any(OF_ALL & _of(state, param).keys() for param in params)
    place = f" ({found.weights.where})" if found.weights.where else ""
    weights = f"{len(params)} of {len(found.weights.shapes)} weights{place}"
    if not kept:
        yield Finding(CHECK, "ok", where, Kind.KEEPS_NOTHING, len(params))
    elif kept < len(params) and not is_of_all:
        of_all = {"params": len(params)}
        yield Finding(CHECK, "warn", where, Kind.STATES_GONE, len(params) - kept, facts=of_all)
    if len(params) < len(found.weights.shapes) and is_alone:
        yield Finding(CHECK, "warn", where, Kind.COVERS_SOME, facts={"weights": weights})
    elif not found.misfits:
        order = "in their order and shapes" if found.is_order_shown else "and does not show their order"
        if found.num_alike > 1:
            order += (
                f" (of {found.num_alike}, others have the shape: only `param_names` would tell them apart)"
            )
        yield Finding(CHECK, "ok", where, Kind.COVERS, facts={"weights": weights, "order": order})


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
    present = tuple(f"{what} ({where})" for what, where in parts.items() if where)
    missing = tuple(what for what, where in parts.items() if not where)
    if present:
        yield Finding(CHECK, "ok", "", Kind.HAS, None, present, {"parts": ", ".join(present)})
    if missing:
        yield Finding(CHECK, "warn", "", Kind.HAS_NOT, None, missing, {"parts": ", ".join(missing)})

"""An optimizer's state by the names of its parameters; torch itself goes by their positions alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ptsave.core.parts.kinds import unlike
from ptsave.core.parts.select import strip_wrapper_names
from ptsave.errors import LossyError
from ptsave.models.weights.sharded import placed
from ptsave.training.optimizers.groups import NAMES_KEY, options_of
from ptsave.training.optimizers.names import by_number
from ptsave.training.optimizers.settings import Settings

MAX_LISTED = 4


@dataclass(frozen=True)
class Names:
    """The parameters of the models that an optimizer may have."""

    by_id: Mapping[int, str]
    """The first name of each parameter, by the parameter's identity."""
    by_name: Mapping[str, torch.Tensor]
    """Under every name, tied ones included."""


@dataclass
class OptimizerPlan:
    """A saved state that was found to fit an optimizer, in the optimizer's own order."""

    label: str
    optimizer: Any
    state: dict[str, Any]
    """As `load_state_dict` takes it."""
    kept: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    """Saved tensors by position and key, which torch casts to the parameter's dtype and must not."""
    notes: list[str] = field(default_factory=list)

    def apply(self) -> None:
        """Load it through the optimizer's own `load_state_dict`."""
        live_lr = [
            {key: value for key, value in group.items() if isinstance(value, torch.Tensor)}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(self.state)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        live = self.optimizer.optim.state if is_zero(self.optimizer) else self.optimizer.state
        for position, tensors in self.kept.items():
            if is_zero(self.optimizer) and parameters[position] not in live:
                continue  # another rank's
            state = live[parameters[position]]
            for key, tensor in tensors.items():
                if state[key].dtype is not tensor.dtype:
                    state[key] = tensor.to(state[key].device)
        for group, tensors in zip(self.optimizer.param_groups, live_lr, strict=True):
            for key, tensor in tensors.items():
                if isinstance(group.get(key), torch.Tensor):
                    group[key] = group[key].to(tensor.device)


def has_groups(optimizer: Any) -> bool:
    """Whether it is an optimizer as torch has them, and not something else with a `state_dict`."""
    return isinstance(getattr(optimizer, "param_groups", None), list)


def names_in(optimizer: Any, names: Names, label: str) -> list[list[str]]:
    """The name of each parameter, by group.

    Raises: LossyError for a parameter that is in none of the models: nothing would save it.
    """
    result = []
    for i, group in enumerate(optimizer.param_groups):
        found = []
        for parameter in group["params"]:
            name = names.by_id.get(id(parameter))
            if name is None:
                raise LossyError(
                    f"group {i} of {label} has a parameter of shape {list(parameter.shape)} of no model",
                    label,
                    "give its module to TrainingState too, by any name: TrainingState(…, loss=criterion)",
                )
            found.append(name)
        result.append(found)
    return result


def is_zero(optimizer: Any) -> bool:
    """Whether it keeps the state of each parameter on one rank alone (torch's ZeroRedundancyOptimizer)."""
    return any(kind.__name__ == "ZeroRedundancyOptimizer" for kind in type(optimizer).__mro__)


def own_state(optimizer: Any) -> dict[str, Any]:
    """`optimizer.state_dict()`; of one that has a shard of the state, that shard, with all the groups."""
    if not is_zero(optimizer):
        return dict(optimizer.state_dict())
    numbers = {id(p): i for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    groups = [
        {**group, "params": [numbers[id(p)] for p in group["params"]]} for group in optimizer.param_groups
    ]
    return {
        "state": {numbers[id(p)]: values for p, values in optimizer.optim.state.items()},
        "param_groups": groups,
    }


def state_of_part(member: Any) -> Any:
    """The state dict of a part of a training that may be an optimizer; what this rank has of it."""
    return own_state(member) if has_groups(member) else member.state_dict()


def optimizer_state(optimizer: Any, names: Names, label: str) -> dict[str, Any]:
    """`own_state` with the names of the parameters in each group; the live tensors themselves.

    Raises: LossyError as `names_in` does.
    """
    state = own_state(optimizer)
    groups = []
    for group, found in zip(state["param_groups"], names_in(optimizer, names, label), strict=True):
        groups.append({**group, NAMES_KEY: found})
    state["param_groups"] = groups
    return state


@dataclass(frozen=True)
class _Saved:
    """One parameter in a file."""

    group: int
    key: Any
    """Under which its state lies: torch numbers the parameters."""


def plan_optimizer(
    optimizer: Any,
    saved: Mapping[str, Any],
    names: Names,
    orders: Sequence[Sequence[str]],
    dtypes: Mapping[int, torch.dtype],
    label: str,
    settings: Settings = "saved",
    *,
    is_lr_moved: bool = False,
    fresh: Collection[int] = (),
) -> OptimizerPlan:
    """Find the state and the options of each parameter of `optimizer` in `saved`.

    By name where the groups have names. Without, by position: where the model's parameters are in another
    order here than in the file (`orders`: there, here), the names are taken from that order. `dtypes` are the
    saved ones of the parameters, by identity. `settings`: whose options of a group count. `is_lr_moved`:
    whether a scheduler moves the lr that keeps its first value elsewhere. `fresh`: the parameters that are
    not from the file, by identity; their state begins anew.

    Raises: LossyError with what differs.
    """
    saved = by_number(saved)
    groups = _groups(saved, label)
    live = names_in(optimizer, names, label)
    named = _by_name(groups, names, label)
    if named is None:
        named = _by_position(optimizer, saved, groups, live, orders, label, fresh)
    state = _state(saved, label)
    _check_kind(optimizer, groups, state, label)
    flat = [name for group in live for name in group]
    shared = {key: value for key, value in saved.get("state", {}).items() if not is_key(key)}
    plan = OptimizerPlan(label, optimizer, {**saved, "state": shared, "param_groups": []})
    _check_bound_to_order(state, groups, named, flat, label)
    new, replaced = [], []
    used = set()
    position = 0
    for i, (group, own) in enumerate(zip(optimizer.param_groups, live, strict=True)):
        sources = []
        for parameter, name in zip(group["params"], own, strict=True):
            entry = named.get(name)
            if entry is None:
                new.append(name)
            else:
                used.add(name)
                sources.append(entry.group)
                if id(parameter) in fresh:
                    replaced.append(name)
                elif (values := state.get(entry.key)) is not None:
                    _check_shapes(values, parameter, name, label)
                    values = {key: _placed(value, parameter) for key, value in values.items()}
                    plan.state["state"][position] = values
                    if dtypes.get(id(parameter), parameter.dtype) is parameter.dtype:
                        plan.kept[position] = {
                            key: value
                            for key, value in values.items()
                            if isinstance(value, torch.Tensor) and value.is_floating_point() and key != "step"
                        }
            position += 1
        sources = list(dict.fromkeys(sources)) if own or i >= len(groups) else [i]
        are_several = len(live) > 1
        options = options_of(
            i,
            group,
            groups,
            sources,
            plan.notes,
            label,
            settings,
            is_one_of_several=are_several,
            is_lr_moved=is_lr_moved,
        )
        positions = list(range(position - len(own), position))
        plan.state["param_groups"].append({**options, "params": positions})
    if new:
        plan.notes.append(f"{label}: {_few(new)} had no state in the checkpoint and start anew")
    if replaced:
        plan.notes.append(f"{label}: {_few(replaced)} are fresh, so their saved state is not used")
    if left := [name for name in named if name not in used]:
        plan.notes.append(
            f"{label}: the saved state of {_few(left)} is not used, the optimizer does not have them"
        )
    return plan


def _groups(saved: Mapping[str, Any], label: str) -> list[dict[str, Any]]:
    """The parameter groups, with each parameter's number as an integer ('0', as DCP makes it, too).

    Raises: LossyError when they are not what torch makes.
    """
    groups = saved.get("param_groups")
    if not isinstance(groups, (list, tuple)) or not all(map(_is_group, groups)):
        raise LossyError(
            "this is not an optimizer's state dict", label, "it needs `state` and `param_groups`"
        )
    return [{**group, "params": [int(key) for key in group["params"]]} for group in groups]


def _is_group(group: Any) -> bool:
    if not isinstance(group, Mapping) or not isinstance(group.get("params"), (list, tuple)):
        return False
    return all(map(is_key, group["params"])) and isinstance(group.get(NAMES_KEY, []), (list, tuple))


def _state(saved: Mapping[str, Any], label: str) -> Mapping[Any, Mapping[str, Any]]:
    """The state by the key of its parameter; text keys ('0', as DCP makes them) as the numbers they spell."""
    state = saved.get("state", {})
    by_key = {key: value for key, value in state.items() if is_key(key)} if isinstance(state, Mapping) else {}
    if not isinstance(state, Mapping) or not all(isinstance(value, Mapping) for value in by_key.values()):
        raise LossyError(
            "this is not an optimizer's state dict", label, "it needs `state` and `param_groups`"
        )
    return {int(key): value for key, value in by_key.items()}


def is_key(key: Any) -> bool:
    """Whether it is the number of a parameter, and not the name of a state that all share."""
    return type(key) is int or (isinstance(key, str) and key.isdecimal() and key.isascii())


def _by_name(groups: Sequence[Mapping[str, Any]], names: Names, label: str) -> dict[str, _Saved] | None:
    """Each saved parameter by the name that it has here; None where the file has no names."""
    if not groups or not all(NAMES_KEY in group for group in groups):
        return None
    listed = [list(group[NAMES_KEY]) for group in groups]
    if any(len(own) != len(group["params"]) for own, group in zip(listed, groups, strict=True)):
        raise LossyError("its param_names and params differ in number", label, "the file is damaged")
    everything = [str(name) for own in listed for name in own]
    renamed = {name: name for name in everything}
    if not all(name in names.by_name for name in everything):
        renamed, _ = strip_wrapper_names(everything)
    result: dict[str, _Saved] = {}
    for i, (group, own) in enumerate(zip(groups, listed, strict=True)):
        for key, name in zip(group["params"], own, strict=True):
            new = renamed[str(name)]
            parameter = names.by_name.get(new)
            result[names.by_id[id(parameter)] if parameter is not None else new] = _Saved(i, key)
    return result


def _by_position(
    optimizer: Any,
    saved: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    live: list[list[str]],
    orders: Sequence[Sequence[str]],
    label: str,
    fresh: Collection[int],
) -> dict[str, _Saved]:
    """Each saved parameter by the name that its position stands for.

    Raises: LossyError where the position does not say so for sure.
    """
    hint = "save with ptsave.TrainingState, which keeps the names, or resume with the code that saved it"
    sizes, own_sizes = [len(group["params"]) for group in groups], [len(group) for group in live]
    there, here = orders
    flat = [name for group in live for name in group]
    if sizes != own_sizes:
        raise LossyError(
            f"the saved state has no names, and its parameter groups have {sizes} parameters, but those of "
            f"{label} have {own_sizes}",
            label,
            hint,
        )
    if there and list(there) != list(here):
        if flat != list(here) or len(there) != len(flat):
            raise LossyError(
                "the saved state has no names, and the model's parameters are in another order than in the "
                "checkpoint",
                label,
                hint,
            )
        flat = list(there)
    state = _state(saved, label)
    keys = [(i, key) for i, group in enumerate(groups) for key in group["params"]]
    named = {name: _Saved(i, key) for name, (i, key) in zip(flat, keys, strict=True)}
    shapes = {
        name: tuple(p.shape)
        for group, own in zip(optimizer.param_groups, live, strict=True)
        for p, name in zip(group["params"], own, strict=True)
        if id(p) not in fresh
    }
    for name, entry in named.items():
        for key, value in state.get(entry.key, {}).items():
            if _is_like_a_parameter(key, value) and tuple(value.shape) != shapes.get(
                name, tuple(value.shape)
            ):
                raise LossyError(
                    f"the saved state has no names, and {key} at position {entry.key} has the shape "
                    f"{list(value.shape)}, but {name!r} has {list(shapes[name])}",
                    label,
                    hint,
                )
    return named


def _is_like_a_parameter(key: Any, value: Any) -> bool:
    """Whether a value of a state has its parameter's shape in all of torch's optimizers but Adafactor."""
    return isinstance(value, torch.Tensor) and key in (
        *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "sum", "square_avg", "grad_avg"),
        *("acc_delta", "exp_inf", "prev", "step_size", "ax"),
    )


def _check_kind(
    optimizer: Any, groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Mapping[str, Any]], label: str
) -> None:
    """Raise LossyError where options or state are those of an optimizer of another kind."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's
    inner = inner.optim if is_zero(inner) else inner
    defaults = getattr(inner if is_zero(optimizer) else optimizer, "defaults", {})
    for group, own in zip(groups, optimizer.param_groups, strict=False):
        options = {key: value for key, value in own.items() if key in defaults} or own
        states = [kept for key in group["params"] if (kept := state.get(key))]
        kinds = (unlike(group, kept, options, type(inner).__name__) for kept in states[:4] or [{}])
        if (kind := next(filter(None, kinds), None)) is not None:
            raise LossyError(
                f"the saved state belongs to {'another optimizer' if kind == 'unknown' else kind}, "
                f"and the optimizer here is {type(inner).__name__}",
                label,
                "resume with the optimizer that saved it, or leave optimizer= out to begin with a new one",
            )


def _check_shapes(values: Mapping[str, Any], parameter: torch.Tensor, name: str, label: str) -> None:
    for key, value in values.items():
        if _is_like_a_parameter(key, value) and value.ndim and tuple(value.shape) != tuple(parameter.shape):
            raise LossyError(
                f"{key} of {name!r} has the shape {list(value.shape)}, the parameter {list(parameter.shape)}",
                label,
                "resume with the model that was saved",
            )


def _placed(value: Any, parameter: torch.Tensor) -> Any:
    """A value of the parameter's state, sharded over the ranks where the parameter is and its shape fits."""
    is_like_it = isinstance(value, torch.Tensor) and value.shape == parameter.shape
    return placed(value, parameter) if is_like_it else value


def _check_bound_to_order(
    state: Mapping[Any, Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]],
    named: Mapping[str, _Saved],
    flat: Sequence[str],
    label: str,
) -> None:
    """Raise LossyError where the state runs through all parameters (LBFGS) and these are not as they were."""
    is_bound = any(isinstance(value, list) for values in state.values() for value in values.values())
    keys = [key for group in groups for key in group["params"]]
    order = [name for key in keys for name, entry in named.items() if entry.key == key] if is_bound else []
    if is_bound and order != list(flat):
        raise LossyError(
            f"{label} keeps one state for all parameters, and here they are others or in another order",
            label,
            "give the optimizer the parameters in the order in which they were saved",
        )


def _few(names: Sequence[str]) -> str:
    listed = ", ".join(names[:MAX_LISTED])
    return f"{listed}, … ({len(names)} parameters)" if len(names) > MAX_LISTED else listed

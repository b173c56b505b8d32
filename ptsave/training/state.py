"""TrainingState: all that a training is made of, as one dictionary, and back.

What is restored goes by names: parameters by their fully qualified names, optimizer state by the names of its
parameters. Everything is checked before anything is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

from torch import nn

from ptsave.core.parts.keys import Allowed, Wanted
from ptsave.core.parts.kinds import scheduler_kind
from ptsave.errors import LossyError, UsageError, options_of
from ptsave.models.weights.sharded import reshard_parameters
from ptsave.training import rng as training_rng
from ptsave.training.apart.table import BUFFER, GENERATOR, SHARD, WEIGHTS
from ptsave.training.keys import UNSYNCHRONISED, canonical
from ptsave.training.members import (
    BASE_RATES,
    Generator,
    Plateau,
    check_member,
    map_members,
    members,
    pairs,
    stateful,
)
from ptsave.training.modules import (
    ModulePlan,
    buffers_of,
    gradients_of,
    parameters_of,
    plan_gradients,
    plan_module,
    plan_unsynchronised,
    set_gradients,
    set_unsynchronised,
    state_of,
    unsynchronised_of,
)
from ptsave.training.optimizers.settings import (
    Settings,
    follow,
    is_scheduler,
    scheduler_differences,
    with_own_settings,
)
from ptsave.training.optimizers.state import (
    Names,
    OptimizerPlan,
    has_groups,
    is_zero,
    names_in,
    optimizer_state,
    plan_optimizer,
    state_of_part,
)
from ptsave.training.plain_data import as_plain_data, first_inert, like
from ptsave.training.undo import Step, apply_all


class TrainingState:
    """The model, the optimizer and whatever else a training consists of.

    >>> state = TrainingState(model=model, optimizer=optimizer, scheduler=scheduler, data=loader)

    `model`, `optimizer`, `scheduler`, `scaler`, `data` and each of `others` (an EMA model, a loss with
    weights) is one object, or a dict or list of some, with `state_dict` and `load_state_dict`. The states of
    the random number generators of Python, NumPy, torch and CUDA are always part of it, and so are the
    gradients that are there, for an accumulation may be under way: call `zero_grad()` after the step, and
    none are.
    """

    def __init__(
        self,
        *,
        model: Any,
        optimizer: Any = None,
        scheduler: Any = None,
        scaler: Any = None,
        data: Any = None,
        settings: Settings = "saved",
        **others: Any,
    ) -> None:
        """Nothing is copied: the objects are asked for their state when it is wanted.

        `settings`: which value counts after a resume where the optimizer or the scheduler was made with
        another one (lr, weight_decay, T_max, milestones) than the checkpoint has: the "saved" one, or the
        one that is "given" here. `load_state_dict` names both.

        Raises: UsageError for what has no state to keep, LossyError for an optimizer's parameter that is in
        none of the models.
        """
        given = {
            "model": model,
            "optimizer": optimizer,
            "scheduler": scheduler,
            "scaler": scaler,
            "data": data,
            **others,
        }
        if settings not in ("saved", "given"):
            raise UsageError(f"settings={settings!r}", "TrainingState", "say 'saved' or 'given'")
        self._settings: Settings = settings
        self._parts: dict[str, Any] = {
            name: map_members(name, part, lambda _, member: stateful(member))
            for name, part in given.items()
            if part is not None
        }
        for reserved in ("rng", "rng_state", "gradients", UNSYNCHRONISED, "step", "epoch", "metrics"):
            if reserved in others:
                raise UsageError(f"{reserved!r} is kept anyway", "TrainingState", "choose another name")
        for name, part in self._parts.items():
            for label, member in members(name, part).items():
                check_member(label, member, is_model=name == "model")
        self._optimizer_names()

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of what it was made of: `model`, `optimizer`, …"""
        return tuple(self._parts)

    # --- taking

    def state_dict(self) -> dict[str, Any]:
        """The dictionary of PyTorch's tutorial: `model_state_dict`, `optimizer_state_dict`, …, `rng_state`.

        Tensors are the live ones, not copies; all else is plain data. Takes no random number.

        Raises: LossyError naming a value that is not plain data.
        """
        names = self._names()
        state: dict[str, Any] = {}
        for part_name, part in self._parts.items():
            key = f"{part_name}_state_dict"

            def take(label: str, member: Any) -> Any:
                if isinstance(member, nn.Module):
                    return state_of(member)
                if has_groups(member):
                    return as_plain_data(optimizer_state(member, names, label), label)
                return as_plain_data(member.state_dict(), label)

            state[key] = map_members(part_name, part, take)
        if gradients := {label: found for label, m in self._modules().items() if (found := gradients_of(m))}:
            state["gradients"] = gradients
        whole = {label: unsynchronised_of(module, label) for label, module in self._modules().items()}
        if whole := {label: found for label, found in whole.items() if found}:
            state[UNSYNCHRONISED] = whole
        state["rng_state"] = training_rng.capture()
        return state

    def kinds(self) -> dict[tuple[str | int, ...], str]:
        """What ranks may well have different values of, by the path's beginning in `state_dict()`: the kinds
        of `rank_values`."""
        kinds: dict[tuple[str | int, ...], str] = {}
        for part_name, part in self._parts.items():
            for label, member in members(part_name, part).items():
                key = label.removeprefix(part_name).removeprefix(".")
                place: str | int = int(key) if key and isinstance(part, (list, tuple)) else key
                path = (f"{part_name}_state_dict", *((place,) if key else ()))
                if isinstance(member, nn.Module):
                    kinds[path] = WEIGHTS
                    kinds |= {(*path, name): BUFFER for name in buffers_of(member)}
                elif isinstance(member, Generator):
                    kinds[path] = GENERATOR
                elif is_zero(member):
                    kinds[(*path, "state")] = SHARD
        return kinds

    # --- giving back

    def load_state_dict(
        self,
        state: Mapping[str, Any],
        *,
        allow_missing: str | Sequence[str] = (),
        allow_unexpected: str | Sequence[str] = (),
        min_coverage: float = 0.5,
    ) -> list[str]:
        """Give everything its state back; returns in words what could not be restored, best nothing.

        `state` is what `state_dict` gave, or what someone else's training code saved. Parameters stay the
        same tensors: the values are copied into them.

        Names of modules that fit a glob of `allow_missing` may be absent, and those that fit one of
        `allow_unexpected` are left in `state`; a layer that was replaced by one of another shape needs both.
        It keeps its values, the optimizer begins anew with its parameters, and its gradients are left. A
        module of which `state` has less than the share `min_coverage` of its elements is refused.

        Raises: LossyError with what does not fit. Nothing was changed then.
        """
        with options_of(signature(TrainingState.load_state_dict).parameters):
            allowed = Allowed(
                *([g] if isinstance(g, str) else list(g) for g in (allow_missing, allow_unexpected))
            )
            return self._give(state, Wanted(allowed, min_coverage=min_coverage))

    def _give(self, state: Mapping[str, Any], wanted: Wanted) -> list[str]:
        """What `load_state_dict` does."""
        parts, notes = canonical(state, self._parts)
        modules, optimizers, generic, notes = self._plan(parts, notes, wanted)
        fresh = {label: set(plan.report.fresh) for label, plan in modules.items()}

        def of_kept(label: str, gradients: Any) -> Any:
            names = fresh.get(label)
            return (
                {k: g for k, g in gradients.items() if k not in names} if gradients and names else gradients
            )

        saved = parts.get("gradients") or {}
        gradients = {
            label: plan_gradients(module, of_kept(label, saved.get(label)), label)
            for label, module in self._modules().items()
        }
        whole = parts.get(UNSYNCHRONISED) or {}
        unsynchronised = [
            pair
            for label, module in self._modules().items()
            for pair in plan_unsynchronised(module, of_kept(label, whole.get(label)), label)
        ]
        rng, rng_notes = training_rng.check(parts.get("rng") or {})
        notes += (
            rng_notes if parts.get("rng") is not None else ["rng_state: random numbers go on from elsewhere"]
        )
        own = self._modules()
        steps = [Step(label, part, partial(part.load_state_dict, value)) for label, part, value in generic]
        steps += [Step(plan.label, plan.optimizer, plan.apply) for plan in optimizers]
        steps += [Step(label, plan.module, plan.apply) for label, plan in modules.items()]
        steps += [Step(label, None, partial(set_gradients, own[label], gradients[label])) for label in own]
        if self._settings == "given":
            made = [(label, part, value) for label, part, value in generic if is_scheduler(value)]
            steps += [Step(label, None, partial(follow, part, value)) for label, part, value in made]
        steps.append(Step("gradients", None, partial(set_unsynchronised, unsynchronised)))
        apply_all([*steps, Step("rng_state", None, partial(training_rng.restore, rng))], list(own.values()))
        return notes

    def _plan(
        self, parts: Mapping[str, Any], notes: list[str], wanted: Wanted
    ) -> tuple[dict[str, ModulePlan], list[OptimizerPlan], list[tuple[str, Any, Any]], list[str]]:
        """What goes where, with everything checked that can be.

        Raises: LossyError.
        """
        names = self._names()
        modules: dict[str, ModulePlan] = {}
        optimizers: list[tuple[str, Any, Any]] = []
        generic: list[tuple[str, Any, Any]] = []
        for part_name, part in self._parts.items():
            saved = parts.get(part_name)
            if saved is None:
                if part_name == "model":
                    raise LossyError(
                        "the saved state holds no model's state dict",
                        "model_state_dict",
                        "`ptsave inspect` lists what is there",
                    )
                if any(state_of_part(member) for member in members(part_name, part).values()):  # in use
                    notes.append(f"{part_name}: not in the checkpoint, goes on as it is")
                continue
            for label, (member, value) in pairs(part_name, part, saved).items():
                if (inert := first_inert(value, label)) is not None:
                    raise LossyError(
                        f"{inert[0]!r} is a {inert[1]}, which is not plain data", label, _INERT_HINT
                    )
                if not isinstance(value, Mapping):
                    raise LossyError(
                        f"the saved state is a {type(value).__name__}, not a state dict", label, _INERT_HINT
                    )
                if isinstance(member, nn.Module):
                    modules[label] = plan_module(member, value, label, wanted=wanted)
                    notes += modules[label].notes
                elif has_groups(member):
                    optimizers.append((label, member, value))
                else:
                    generic.append((label, member, value))
        there, here = self._orders(modules)
        dtypes = {key: dtype for plan in modules.values() for key, dtype in plan.dtypes().items()}
        fresh = {key for plan in modules.values() for key in plan.fresh()}
        plans = []
        moved = {
            id(member.optimizer)
            for _, member, value in generic
            if isinstance(member, Plateau) and BASE_RATES in value
        }
        for label, optimizer, value in optimizers:
            orders = there, here
            is_moved = id(getattr(optimizer, "optimizer", optimizer)) in moved or id(optimizer) in moved
            plans.append(
                plan_optimizer(
                    optimizer,
                    value,
                    names,
                    orders,
                    dtypes,
                    label,
                    self._settings,
                    is_lr_moved=is_moved,
                    fresh=fresh,
                )
            )
            notes += plans[-1].notes
        checked = []
        for label, member, value in generic:
            own = member.state_dict()
            _check_generic(label, member, own, value)
            value = like(own, value)
            if is_scheduler(own) and isinstance(value, Mapping):
                notes += scheduler_differences(own, value, label, self._settings)
                value = with_own_settings(own, value) if self._settings == "given" else value
            checked.append((label, member, value))
        return modules, plans, checked, notes

    def _modules(self) -> dict[str, nn.Module]:
        """Every module among the parts, the models first."""
        return {
            label: member
            for name, part in self._parts.items()
            for label, member in members(name, part).items()
            if isinstance(member, nn.Module)
        }

    def _names(self) -> Names:
        """The parameters of all modules; those of a lone model by their bare names."""
        by_id: dict[int, str] = {}
        by_name: dict[str, Any] = {}
        for label, module in self._modules().items():
            reshard_parameters(module)
            is_model = label.startswith("model.")  # one of several
            prefix = (
                f"{label.removeprefix('model.')}." if is_model else "" if label == "model" else f"{label}:"
            )
            for name, parameter in parameters_of(module).items():
                by_id.setdefault(id(parameter), prefix + name)
                by_name.setdefault(prefix + name, parameter)
        return Names(by_id, by_name)

    def _orders(self, plans: Mapping[str, ModulePlan]) -> tuple[list[str], list[str]]:
        """The parameters of the lone model in the file's order and in the order of here; else nothing."""
        plan = plans.get("model")
        if plan is None:
            return [], []
        seen: set[int] = set()
        here = []
        for name, parameter in parameters_of(plan.module).items():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                here.append(name)
        canonical_names = {id(p): n for n, p in reversed(parameters_of(plan.module).items())}
        named = parameters_of(plan.module)
        return [canonical_names[id(named[name])] for name in plan.order], here

    def _optimizer_names(self) -> None:
        """Raise LossyError when an optimizer has a parameter that is in no module."""
        names = self._names()
        for name, part in self._parts.items():
            for label, member in members(name, part).items():
                if has_groups(member):
                    names_in(member, names, label)


_INERT_HINT = (
    "only plain data and tensors are restored; leave that part out of TrainingState to go on without"
)


def _check_generic(label: str, member: Any, own: Any, saved: Mapping[str, Any]) -> None:
    """Raise LossyError for what a scheduler or a scaler would take and then be wrong, or half-way refuse."""
    optimizer = getattr(member, "optimizer", None)
    rates = saved.get("base_lrs")
    if optimizer is not None and has_groups(optimizer) and isinstance(rates, (list, tuple)):
        num_groups = len(optimizer.param_groups)
        if len(rates) != num_groups:
            raise LossyError(
                f"the saved state is for {len(rates)} parameter groups, the optimizer has {num_groups}",
                label,
                "group the parameters as they were when it was saved",
            )
    kinds = [scheduler_kind(one) if is_scheduler(one) else "unknown" for one in (saved, own)]
    if kinds[0] != kinds[1] and "unknown" not in kinds:
        raise LossyError(
            f"the saved state belongs to {kinds[0]}, and the scheduler here is {kinds[1]}",
            label,
            "use the same one",
        )
    if (
        isinstance(own, Mapping)
        and hasattr(member, "base_lrs")
        and (lacking := sorted(set(own) - set(saved)))
    ):
        raise LossyError(
            f"the saved state belongs to another scheduler: it lacks {', '.join(map(str, lacking))}",
            label,
            "use the same one",
        )

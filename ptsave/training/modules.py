"""A module's part of a training: its state dict under the architecture's own names, and its gradients."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ptsave.core.finding import counted
from ptsave.core.parts.fits import covers, insist, misfit
from ptsave.core.parts.keys import EXACT, KeyReport, Wanted
from ptsave.core.parts.select import (
    PARALLEL_WRAPPER,
    Selection,
    strip_wrappers,
    under_prefix,
    without_wrappers,
)
from ptsave.core.storage import MemoryStorage
from ptsave.core.tree import as_state_dict, with_items
from ptsave.errors import LossyError
from ptsave.models.weights.fitting import fit_of, goes_by_name
from ptsave.models.weights.loading_code import (
    NeedsValuesError,
    Outcome,
    after,
    assigned,
    give,
    is_tensor,
    state_dict,
    taken_as_they_are,
    versions,
    with_ties,
    without_memory,
)
from ptsave.models.weights.sharded import has_sharded, is_fsdp_module, is_sharded, placed
from ptsave.training.keys import header

NO_BYTES = MemoryStorage(memoryview(b""))


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside what DataParallel, DDP and torch.compile put around it as a whole."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules:
            module = module._orig_mod  # type: ignore[assignment]
        else:
            return module


def clean_names(names: Iterable[str]) -> dict[str, str]:
    """Name of a live module → the architecture's name, without what compiling or checkpointing an inner
    module puts into it; as they are where two names would become one."""
    cleaned = {name: without_wrappers(name) for name in names}
    return cleaned if len(set(cleaned.values())) == len(cleaned) else {name: name for name in cleaned}


def state_of(module: nn.Module) -> OrderedDict[str, Any]:
    """The state dict of `module` under the architecture's names: the live tensors themselves."""
    state = unwrap(module).state_dict()
    cleaned = clean_names(state)
    if all(old == new for old, new in cleaned.items()):
        return OrderedDict(state) if not isinstance(state, OrderedDict) else state
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        # The innermost module of a name has the version that counts, and comes last.
        versions = OrderedDict((without_wrappers(name), version) for name, version in versions.items())
    return as_state_dict(((cleaned[name], value) for name, value in state.items()), versions)


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by the architecture's name, as they are registered; a tied one under each name."""
    named = dict(unwrap(module).named_parameters(remove_duplicate=False))
    cleaned = clean_names(named)
    return {cleaned[name]: parameter for name, parameter in named.items()}


def buffers_of(module: nn.Module) -> list[str]:
    """The names of the buffers, as the state dict has them."""
    names = clean_names(name for name, _ in unwrap(module).named_buffers(remove_duplicate=False))
    return list(names.values())


class ModulePlan(NamedTuple):
    """A saved state dict that was found to fit a module."""

    module: nn.Module
    values: OrderedDict[str, Any]
    """By the module's own names, or those that its loading code knows."""
    order: list[str]
    """The parameters in the order of registration there, by the names of here; tied ones once. Empty where
    the checkpoint does not say: only an OrderedDict keeps the order, and safetensors sorts."""
    notes: list[str]
    report: KeyReport
    taken: Mapping[str, list[str]] | None
    """What the module's loading code only puts somewhere, and where; None where it has none."""
    label: str

    def dtypes(self) -> dict[int, torch.dtype]:
        """The saved dtype of each parameter, by the parameter's identity."""
        parameters = self.module.named_parameters(remove_duplicate=False)
        return {id(p): self.values[name].dtype for name, p in parameters if name in self.values}

    def fresh(self) -> set[int]:
        """The parameters that keep their initial values, by identity."""
        parameters = self.module.named_parameters(remove_duplicate=False)
        names = set(self.report.fresh)
        return {id(parameter) for name, parameter in parameters if name in names}

    def apply(self) -> None:
        """Copy the values into the module's own tensors, as strict `load_state_dict` does.

        Raises: LossyError for what the module's loading code refuses; what that raises.
        """
        state = self.module.state_dict(keep_vars=True)
        if self.taken is None:
            full = {name: state[name] for name in self.report.fresh}
            full |= {name: placed(value, state[name]) for name, value in self.values.items()}
            self.module.load_state_dict(with_items(self.values, full.items()), strict=True)
            return
        if has_sharded(state):
            outcome = _assign_sharded(self.module, self.values, self.taken, self.label)
        else:
            outcome = give(self.module, self.values, assign=False)
        if not (late := after(self.report, state, outcome)).fits:
            raise _named_misfit(misfit(late, Path(self.label)), self.label)


def _assign_sharded(
    module: nn.Module, values: Mapping[str, Any], taken: Mapping[str, list[str]], label: str
) -> Outcome:
    """Run the loading code of a module that is sharded over ranks, on whole tensors of which each rank keeps
    its part.

    Every rank calls it.

    Raises: as `assigned`; LossyError in place of NeedsValuesError.
    """
    stand_ins = {
        name: torch.empty(values[name].shape, dtype=values[name].dtype, device="meta") for name in taken
    }
    whole = with_items(values, ((name, _gathered(stand_ins.get(name, v))) for name, v in values.items()))
    try:
        outcome, given = assigned(module, whole, stand_ins)
    except NeedsValuesError as error:
        what = f"the loading code works with the model's own values, which no rank has whole: {error.why}"
        raise LossyError(what, label, "load it by one process, and go on from what that saves") from error
    with torch.no_grad():
        for slots, made in given:
            want = slots[0].tensor
            value = values[made] if isinstance(made, str) else made
            want.copy_(placed(value, want) if is_sharded(want) else _gathered(value))
    return outcome


def _gathered(value: Any) -> Any:
    return value.full_tensor() if is_sharded(value) else value


def plan_module(
    module: nn.Module, saved: Mapping[str, Any], label: str, where: str = "", wanted: Wanted = EXACT
) -> ModulePlan:
    """Find the values for `module` in the state dict `saved`, whatever wrappers are in front of its names.

    The module's own loading code is the judge, where it has such code.

    Raises: LossyError with every name that is missing, unexpected or of another shape.
    """
    module = unwrap(module)
    state = module.state_dict(keep_vars=True)
    best: tuple[KeyReport, Selection, list[str]] | None = None
    for reading, said in _readings(saved, list(clean_names(state).values()), label):
        selection, report = fit_of(module, reading, wanted)
        is_taken = report.fits and covers(report, wanted)
        if best is None or is_taken:
            best = (report, selection, said)
        if is_taken:
            break
    assert best is not None
    report, selection, notes = best
    try:
        insist(report, wanted, Path(where or label))
    except LossyError as error:
        raise _named_misfit(error, label) from None
    names = {old: new for new, old in selection.original.items()}
    values: Any = OrderedDict((names[old], value) for old, value in saved.items() if old in names)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    _refuse_untied(parameters, values, label)
    if report.recast:
        name, want, found = report.recast[0]
        cast = counted(len(report.recast), "tensor is", "tensors are")
        notes.append(f"{label}: {cast} cast to the model's dtype ({name}: {found} → {want})")
    taken: Mapping[str, list[str]] | None = None
    if goes_by_name(module, selection, report):
        places: Mapping[str, list[str]] = {name: [name] for name in values}
        values = OrderedDict((name, value) for name, value in values.items() if name in state)
    else:
        bare = without_memory(selection.tensors)
        taken = taken_as_they_are(module, with_ties(state, state_dict(module, selection, bare)), bare)
        places = {name: [name] for name in values} | dict(taken)
    order = _order(values, places, parameters) if isinstance(saved, OrderedDict) else []
    values = as_state_dict(with_ties(state, values), versions(module, selection))
    own = clean_names(parameters)
    if report.fresh and report.coverage is not None:
        notes.append(
            f"{label}: {report.coverage.sentence()} from the checkpoint; fresh: {_few([*report.fresh])}"
        )
    if report.left:
        notes.append(f"{label}: left in the checkpoint: {_few([*report.left])}")
    return ModulePlan(module, values, [own[name] for name in order], notes, report, taken, label)


def _order(
    values: Iterable[str], places: Mapping[str, list[str]], parameters: Mapping[str, nn.Parameter]
) -> list[str]:
    """The parameters in the order in which they are in a state dict; none where it does not say of all."""
    order: dict[int, str] = {}
    for name in values:
        for place in places[name]:
            if place in parameters:
                order.setdefault(id(parameters[place]), place)
    return list(order.values()) if len(order) == len(set(map(id, parameters.values()))) else []


def _refuse_untied(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Any], label: str) -> None:
    """Raise LossyError where names of one parameter have different values, of which one would win."""
    first: dict[int, str] = {}
    for name, parameter in parameters.items():
        if name in values:
            other = first.setdefault(id(parameter), name)
            one, two = values[other], values[name]
            if one is not two and not (is_sharded(one) or is_sharded(two)) and not torch.equal(one, two):
                what = f"{other!r} and {name!r} are one parameter in {label}, and differ in the checkpoint"
                raise LossyError(what, "", "drop one of the two names first: `ptsave convert --drop NAME`")


def _readings(
    saved: Mapping[str, Any], expected: Sequence[str], label: str
) -> Iterator[tuple[Selection, list[str]]]:
    """The saved names as they are, without wrappers, and under a prefix (Lightning's `model.`)."""
    tensors = {name: header(name, value, NO_BYTES) for name, value in saved.items() if is_tensor(value)}
    extra = {name: value for name, value in saved.items() if name not in tensors}
    metadata = getattr(saved, "_metadata", None)
    plain = Selection("", tensors, extra, metadata, {name: name for name in saved})
    yield plain, []
    yield (stripped := strip_wrappers(plain)), []
    yield from _under_a_prefix(stripped, expected, "", label)
    yield from _under_a_prefix(plain, expected, f"{PARALLEL_WRAPPER}.", label)


def _under_a_prefix(
    saved: Selection, expected: Sequence[str], front: str, label: str
) -> Iterator[tuple[Selection, list[str]]]:
    """The saved values whose names have a prefix more than the `expected` ones, behind `front`.

    An average (`module.0.weight` beside `n_averaged`) keeps what lies beside its `module`.
    """
    first = next((name.removeprefix(front) for name in expected if name.startswith(front)), "")
    beside = {name for name in expected if front and not name.startswith(front) and name in saved.original}
    for name in saved.original:
        if first and name.startswith(front) and name.endswith(f".{first}") and name != f"{front}{first}":
            prefix = name.removesuffix(first)
            inside = under_prefix(saved, prefix, front, beside)
            others = [n for n in saved.original if not n.startswith(prefix) and n not in beside]
            notes = [f"{label}: took the names under {prefix!r}"]
            if others:
                notes.append(f"{label}: not used: {_few(others)}")
            yield inside, notes


def _named_misfit(error: LossyError, label: str) -> LossyError:
    error.what = error.what.replace(
        "the checkpoint does not fit the model", f"the checkpoint does not fit {label}"
    )
    return error


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", … ({len(names)})" if len(names) > 3 else "")


# --- gradients --------------------------------------------------------------------------------------------


def gradients_of(module: nn.Module) -> dict[str, Any]:
    """The gradients that are there, by parameter; a sparse one as its parts. The live tensors themselves."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for name, parameter in parameters_of(module).items():
        if parameter.grad is not None and id(parameter) not in seen:
            seen.add(id(parameter))
            found[name] = _parts(parameter.grad.detach())
    return found


def _parts(gradient: torch.Tensor) -> Any:
    if gradient.layout is not torch.sparse_coo:
        return gradient
    gradient = gradient.coalesce()
    return {
        "indices": gradient.indices(),
        "values": gradient.values(),
        "shape": tuple(gradient.shape),
    }


def unsynchronised_of(module: nn.Module, label: str) -> dict[str, torch.Tensor]:
    """The gradients that FSDP2 keeps whole on each rank until it is to synchronise them, by parameter.

    Raises: LossyError for what an accumulation has halfway, reduced among some of the ranks.
    """
    found: dict[str, torch.Tensor] = {}
    for name, parameter in _fsdp_parameters(module, label):
        whole = getattr(parameter, "_unsharded_param", None)
        gradients = [parameter.unsharded_accumulated_grad, whole.grad if whole is not None else None]
        for gradient in gradients:
            if gradient is not None:
                found[name] = found[name] + gradient if name in found else gradient.detach()
    return found


def _fsdp_parameters(module: nn.Module, label: str) -> Iterator[tuple[str, Any]]:
    """What FSDP2 has for each parameter, by the architecture's name.

    Source: torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py of torch 2.13 (`post_backward`); before
    2.12 a module had at most one group.

    Raises: LossyError for gradients that are reduced among some of the ranks.
    """
    names = {id(p): name for name, p in reversed(parameters_of(module).items())}
    for inner in module.modules():
        if not is_fsdp_module(inner):
            continue
        state: Any = inner._get_fsdp_state()  # type: ignore[operator]
        one = [] if hasattr(state, "_fsdp_param_groups") else [state._fsdp_param_group]
        for group in getattr(state, "_fsdp_param_groups", one):
            if group is None:
                continue
            if getattr(group, "_partial_reduce_output", None) is not None:
                raise LossyError(
                    "gradients are reduced among some of the ranks (set_requires_all_reduce(False))",
                    label,
                    "save after the backward pass that reduces them among all",
                )
            for parameter in group.fsdp_params:
                yield names.get(id(parameter.sharded_param), parameter._param_fqn), parameter


def plan_unsynchronised(module: nn.Module, saved: Any, label: str) -> list[tuple[Any, torch.Tensor | None]]:
    """What FSDP2 has for each parameter, with the whole gradient of `saved` that it is to go on from.

    Raises: LossyError for one that belongs to no parameter that FSDP2 shards.
    """
    left = dict(saved) if isinstance(saved, Mapping) else {}
    ready: list[tuple[Any, torch.Tensor | None]] = []
    for name, parameter in _fsdp_parameters(module, label):
        gradient = left.pop(name, None)
        if gradient is not None:
            is_good = isinstance(gradient, torch.Tensor) and gradient.shape == parameter.sharded_param.shape
            if not is_good or parameter.is_dtensor:
                left[name] = gradient
                break
            gradient = gradient.to(parameter.sharded_param.device, copy=True)
        ready.append((parameter, gradient))
    if left:
        raise LossyError(
            f"the checkpoint has a gradient of {next(iter(left))!r} that was not synchronised, and no "
            "parameter takes it",
            label,
            "resume with the model, and sharded, as it was saved",
        )
    return ready


def set_unsynchronised(ready: Iterable[tuple[Any, torch.Tensor | None]]) -> None:
    """Let each parameter of FSDP2 go on from its whole gradient, and the others from none."""
    for parameter, gradient in ready:
        if (whole := getattr(parameter, "_unsharded_param", None)) is not None:
            whole.grad = None
        parameter.unsharded_accumulated_grad = gradient


def plan_gradients(module: nn.Module, saved: Any, label: str) -> dict[str, torch.Tensor]:
    """The gradients of `saved` as the parameters of `module` take them, by name.

    Raises: LossyError for one that belongs to no parameter, or to one of another shape.
    """
    parameters = parameters_of(module)
    ready = {}
    for name, value in saved.items() if isinstance(saved, Mapping) else ():
        gradient = value
        if isinstance(value, Mapping):
            try:
                gradient = torch.sparse_coo_tensor(
                    value["indices"], value["values"], value["shape"], check_invariants=True
                )
            except (RuntimeError, TypeError, ValueError, KeyError) as error:
                raise LossyError(f"the gradient of {name!r} is damaged: {error}", label) from error
        parameter = parameters.get(name)
        if (
            not isinstance(gradient, torch.Tensor)
            or parameter is None
            or gradient.shape != parameter.shape
            or gradient.dtype is not parameter.dtype
        ):
            raise LossyError(
                f"the checkpoint has a gradient of {name!r} that no parameter takes",
                label,
                "resume with the model that was saved",
            )
        gradient = placed(gradient, parameter)
        if gradient.layout is torch.strided:
            gradient = torch.empty_like(parameter).copy_(gradient)
        ready[name] = gradient.to(parameter.device).coalesce() if gradient.is_sparse else gradient
    return ready


def set_gradients(module: nn.Module, ready: Mapping[str, torch.Tensor]) -> None:
    """Give each parameter its gradient, and the others none."""
    parameters = parameters_of(module)
    for parameter in parameters.values():
        parameter.grad = None
    for name, gradient in ready.items():  # of a tied parameter, under one of its names
        parameters[name].grad = gradient

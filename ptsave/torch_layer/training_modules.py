"""A module's part of a training: its state dict under the architecture's own names, and its gradients."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ptsave.core.keys import KeyReport, compare
from ptsave.core.select import PARALLEL_WRAPPER, WRAPPERS, strip_wrapper_names
from ptsave.core.storage import MemoryStorage
from ptsave.errors import LossyError
from ptsave.torch_layer.fill import expected_of, extra_of, misfit
from ptsave.torch_layer.spread import is_spread, placed
from ptsave.torch_layer.training_keys import header

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
    names = list(names)
    cleaned = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names}
    return cleaned if len(set(cleaned.values())) == len(names) else {name: name for name in names}


def state_of(module: nn.Module) -> OrderedDict[str, Any]:
    """The state dict of `module` under the architecture's names: the live tensors themselves."""
    state = unwrap(module).state_dict()
    cleaned = clean_names(state)
    if all(old == new for old, new in cleaned.items()):
        return OrderedDict(state) if not isinstance(state, OrderedDict) else state
    result: Any = OrderedDict((cleaned[name], value) for name, value in state.items())
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        # The innermost module of a name has the version that counts, and comes last.
        result._metadata = OrderedDict(
            (".".join(part for part in name.split(".") if part not in WRAPPERS), version)
            for name, version in versions.items()
        )
    return result  # type: ignore[no-any-return]


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
    """By the module's own names."""
    order: list[str]
    """The parameters in the order of registration there, by the names of here; tied ones once. Empty where
    the checkpoint does not say: only an OrderedDict keeps the order, and safetensors sorts."""
    notes: list[str]

    def dtypes(self) -> dict[int, torch.dtype]:
        """The saved dtype of each parameter, by the parameter's identity."""
        parameters = self.module.named_parameters(remove_duplicate=False)
        return {id(p): self.values[name].dtype for name, p in parameters if name in self.values}

    def apply(self) -> None:
        """Copy the values into the module's own tensors."""
        self.module.load_state_dict(self.values, strict=True)


def plan_module(module: nn.Module, saved: Mapping[str, Any], label: str, where: str = "") -> ModulePlan:
    """Find the values for `module` in the state dict `saved`, whatever wrappers are in front of its names.

    Raises: LossyError with every name that is missing, unexpected or of another shape.
    """
    module = unwrap(module)
    state = module.state_dict(keep_vars=True)
    own = clean_names(state)
    expected = {own.get(name, name): want for name, want in expected_of(module).items()}
    extra = {own[name] for name in extra_of(module)}
    best: tuple[KeyReport, dict[str, Any], list[str]] | None = None
    for values, notes in _readings(saved, [*expected, *extra], label):
        tensors = {name: header(name, value, NO_BYTES) for name, value in values.items() if _is_plain(value)}
        report = compare(expected, tensors, extra, [name for name in values if name not in tensors])
        if best is None or report.fits:
            best = (report, values, notes)
        if report.fits:
            break
    assert best is not None
    report, values, notes = best
    if not report.fits:
        raise _named_misfit(misfit(report, Path(where or label)), label)
    _refuse_untied(parameters_of(module), values, label)
    if report.recast:
        name, want, found = report.recast[0]
        notes.append(
            f"{label}: {len(report.recast)} tensors are cast to the model's dtype ({name}: {found} → {want})"
        )
    full: OrderedDict[str, Any] = OrderedDict()
    parameters = parameters_of(module)
    for own_name, name in own.items():
        if name in values:
            full[own_name] = values[name]
        else:  # tied, and in the file under another of its names
            target = parameters[name]
            full[own_name] = next(values[n] for n, p in parameters.items() if p is target and n in values)
        full[own_name] = placed(full[own_name], state[own_name])
    if (versions := getattr(saved, "_metadata", None)) is not None:
        full._metadata = versions  # type: ignore[attr-defined]
    seen: set[int] = set()
    order = []
    for name in values if isinstance(saved, OrderedDict) else ():
        if name in parameters and id(parameters[name]) not in seen:
            seen.add(id(parameters[name]))
            order.append(name)
    return ModulePlan(module, full, order, notes)


def _refuse_untied(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Any], label: str) -> None:
    """Raise LossyError where names of one parameter have different values, of which one would win."""
    first: dict[int, str] = {}
    for name, parameter in parameters.items():
        if name in values:
            other = first.setdefault(id(parameter), name)
            one, two = values[other], values[name]
            if one is not two and not (is_spread(one) or is_spread(two)) and not torch.equal(one, two):
                what = f"{other!r} and {name!r} are one parameter in {label}, and differ in the checkpoint"
                raise LossyError(what, "", "drop one of the two names first: `ptsave convert --drop NAME`")


def _readings(
    saved: Mapping[str, Any], expected: list[str], label: str
) -> Iterable[tuple[dict[str, Any], list[str]]]:
    """The saved names as they are, without wrappers, and under a prefix (Lightning's `model.`)."""
    renamed, _ = strip_wrapper_names(saved)
    stripped = {renamed[name]: value for name, value in saved.items()}
    cleaned = {new: saved[old] for old, new in clean_names(saved).items()}
    yield cleaned, []
    yield stripped, []
    yield from _under_a_prefix(stripped, expected, "", label)
    yield from _under_a_prefix(cleaned, expected, f"{PARALLEL_WRAPPER}.", label)


def _under_a_prefix(
    saved: Mapping[str, Any], expected: Sequence[str], front: str, label: str
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """The saved values whose names have a prefix more than the `expected` ones, behind `front`.

    An average (`module.0.weight` beside `n_averaged`) keeps what lies beside its `module`.
    """
    first = next((name.removeprefix(front) for name in expected if name.startswith(front)), "")
    wanted = set(expected)
    beside = {n: v for n, v in saved.items() if front and not n.startswith(front) and n in wanted}
    for name in saved:
        if first and name.startswith(front) and name.endswith(f".{first}") and name != f"{front}{first}":
            prefix = name.removesuffix(first)
            inside = {front + n.removeprefix(prefix): v for n, v in saved.items() if n.startswith(prefix)}
            others = [n for n in saved if not n.startswith(prefix) and n not in beside]
            notes = [f"{label}: took the names under {prefix!r}"]
            if others:
                notes.append(f"{label}: not used: {_few(others)}")
            yield inside | beside, notes


def _named_misfit(error: LossyError, label: str) -> LossyError:
    error.what = error.what.replace(
        "the checkpoint does not fit the model", f"the checkpoint does not fit {label}"
    )
    return error


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", … ({len(names)})" if len(names) > 3 else "")


def _is_plain(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_quantized


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
        if not (callable(getattr(inner, "_get_fsdp_state", None)) and hasattr(inner, "unshard")):
            continue
        state = inner._get_fsdp_state()  # type: ignore[operator]
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

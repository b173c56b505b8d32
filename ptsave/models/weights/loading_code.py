"""A model's own loading code: what it says of a state dict, and what it makes of one.

Modules rename, convert and make up entries in `_load_from_state_dict`, in hooks and in `load_state_dict`
itself. So what fits a model that has such code is asked of the code, as strict `load_state_dict` does.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ptsave.core.nodes import TensorEntry
from ptsave.core.parts.keys import KeyReport
from ptsave.core.parts.select import Selection, without_wrappers
from ptsave.core.tree import as_state_dict
from ptsave.errors import LossyError
from ptsave.models.torch_texts import is_about, is_not_copied, loading_errors
from ptsave.models.weights.shapes_only import ShapesOnly
from ptsave.models.weights.sharded import is_fsdp_module, is_sharded
from ptsave.models.weights.tensors import to_torch, torch_dtype


class NeedsValuesError(LossyError):
    """A model without memory is to keep some of its own values, or its loading code works with them."""

    def __init__(self, why: str) -> None:
        self.why = why
        what = f"the model has no values of its own, and some are needed: {why}"
        super().__init__(what, "", "give the model memory first")


class Outcome(NamedTuple):
    """What loading code said."""

    missing: list[str]
    unexpected: list[str]
    errors: list[str]


def takes_names_as_they_are(model: nn.Module, *, with_torchs: bool = True) -> bool:
    """Whether `load_state_dict` does nothing but copy each value into the tensor of its name.

    Some of torch's own layers make up for names that are missing, or are too many; without `with_torchs`
    they count as code, too.
    """
    return type(model).load_state_dict is nn.Module.load_state_dict and all(
        has_no_code(module, with_torchs) for module in model.modules()
    )


def has_no_code(module: nn.Module, with_torchs: bool = True) -> bool:
    """Whether a module, but for those in it, loads its own tensors as torch's own modules do."""
    load = type(module)._load_from_state_dict
    if not all(_is_of_fsdp(hook) for hooks in _loading_hooks(module) for hook in hooks.values()):
        return False
    is_torchs = with_torchs and load.__module__.startswith("torch.nn.modules.")
    return load is nn.Module._load_from_state_dict or is_torchs


def _loading_hooks(module: nn.Module) -> tuple[dict[int, Any], dict[int, Any]]:
    return module._load_state_dict_pre_hooks, module._load_state_dict_post_hooks


def _is_of_fsdp(hook: Any) -> bool:
    """Whether a hook is FSDP2's own, which only looks after the parts that it holds of parameters."""
    return str(getattr(getattr(hook, "hook", hook), "__module__", "")).startswith("torch.distributed.fsdp.")


def versions(model: nn.Module, selection: Selection) -> OrderedDict[str, dict[str, Any]] | None:
    """The `_metadata` of a state dict, for torch to write into; None where the file says nothing.

    What is said of a module is said of it inside of wrappers, too.
    """
    if not isinstance(selection.metadata, Mapping):
        return None
    known = {k: v for k, v in selection.metadata.items() if isinstance(k, str) and isinstance(v, dict)}
    for name, _ in model.named_modules(remove_duplicate=False):
        plain = without_wrappers(name)
        if name not in known and plain in known:
            known[name] = known[plain]
    return OrderedDict((name, dict(about)) for name, about in known.items())


def judged(model: nn.Module, selection: Selection, by_name: KeyReport) -> tuple[KeyReport, str]:
    """How `selection` fits `model`, as its loading code has it; or `by_name`, and why that cannot be asked.

    The code runs on a copy of the model without memory, with tensors that have none; a copy that cannot be
    made, or code that looks at values, gives no answer.
    """
    values = state_dict(model, selection, without_memory(selection.tensors))
    try:
        copied = _on_meta(model)
        _count_batches(copied, values)
        with ShapesOnly():
            outcome = give(copied, values, assign=False)
    except Exception as error:  # the user's code, on what it was not written for: no answer
        return by_name, f"{type(error).__name__}: {error}"
    mismatched = [m for m in by_name.mismatched if any(is_about(text, m.name) for text in outcome.errors)]
    others = [
        text
        for text in outcome.errors
        if not is_not_copied(text) and not any(is_about(text, m.name) for m in mismatched)
    ]
    unexpected = [name for name in outcome.unexpected if name not in by_name.recomputed]
    missing = untouched(model.state_dict(keep_vars=True), outcome.missing)
    report = replace(
        by_name,
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mismatched=tuple(mismatched),
        refusal=others[0].strip() if others else "",
        nearest={
            name: near for name, near in by_name.nearest.items() if name in missing and near in unexpected
        },
    )
    return report, ""


def _count_batches(model: nn.Module, values: OrderedDict[str, Any]) -> None:
    """Give `values` the counters that batch norms make up where a file has none and does not say its version.

    Theirs would have memory, and torch warns of what it copies into a model without.
    Source: torch/nn/modules/batchnorm.py, `_NormBase._load_from_state_dict`.
    """
    metadata = getattr(values, "_metadata", None) or {}
    for path, module in model.named_modules(remove_duplicate=False):
        counter = getattr(module, "num_batches_tracked", None)
        is_old = (metadata.get(path, {}).get("version") or 1) < module._version
        if isinstance(module, nn.modules.batchnorm._NormBase) and is_old and counter is not None:
            values.setdefault(f"{path}.num_batches_tracked".removeprefix("."), counter)


def without_memory(entries: Mapping[str, TensorEntry]) -> dict[str, torch.Tensor]:
    """Each entry as a tensor without memory."""
    return {
        name: torch.empty(entry.shape, dtype=torch_dtype(entry), device="meta")
        for name, entry in entries.items()
    }


def state_dict(
    model: nn.Module, selection: Selection, tensors: Mapping[str, torch.Tensor], *, is_checked: bool = True
) -> OrderedDict[str, Any]:
    """The state dict of `selection` for `model`, with the values of its tensors from `tensors`.

    Raises: LossyError for what is not plain data.
    """
    values: dict[str, Any] = {name: tensors[name] for name in selection.tensors}
    values |= {name: to_torch(value, name, is_checked) for name, value in selection.extra.items()}
    return as_state_dict(values, versions(model, selection))


def with_ties(state: Mapping[str, Any], values: OrderedDict[str, Any]) -> OrderedDict[str, Any]:
    """`values` with each tensor under all names that it has in `state`, a model's state dict."""
    for group in tied_names(state):
        there = [name for name in group if name in values]
        values.update((name, values[there[0]]) for name in group if there and name not in values)
    return values


def tied_names(state: Mapping[str, Any]) -> Iterator[list[str]]:
    """The names of each tensor of a state dict."""
    groups: dict[int, list[str]] = {}
    for name, value in state.items():
        if is_tensor(value):
            groups.setdefault(id(value), []).append(name)
    yield from groups.values()


def is_tensor(value: Any) -> bool:
    """Whether a file holds it as plain bytes: not quantized, not sparse, not nested."""
    return (
        isinstance(value, torch.Tensor)
        and not value.is_quantized
        and (nn.parameter.is_lazy(value) or (value.layout is torch.strided and not value.is_nested))
    )


def taken_as_they_are(
    model: nn.Module, values: Mapping[str, Any], tensors: Iterable[str]
) -> dict[str, list[str]]:
    """Those `tensors` of a state dict that the model's loading code only puts somewhere, without a look at
    their values, with the places where.

    `values` have no memory. It is tried out as in `judged`; no answer is none.
    """
    parameters = {slot.name: id(slot.tensor) for slot in slots(model)}
    names = {_memory_of(values[name]): name for name in tensors}
    try:
        copied = _on_meta(model)
        with _Watch() as watch:
            give(copied, values, assign=True)
    except Exception:  # as in `judged`; the code gets all values then
        return {}
    places: dict[str, list[str]] = {}
    sources: dict[int | None, set[str | None]] = {}
    for slot in slots(copied):
        name = names.get(_memory_of(slot.tensor))
        sources.setdefault(parameters.get(slot.name), set()).add(name)
        if name is not None and _memory_of(slot.tensor) not in watch.used:
            places.setdefault(name, []).append(slot.name)
    apart = {name for several in sources.values() if len(several - {None}) > 1 for name in several}
    return {name: where for name, where in places.items() if name not in apart}


class _Watch(ShapesOnly):  # type: ignore[no-untyped-call]
    """Notes the memory of each tensor that anything is computed with."""

    def __init__(self) -> None:
        super().__init__()
        self.used: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.detach.default:  # as every nn.Parameter does with what it is made of
            self.used.update(
                _memory_of(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)
            )
        return super().__torch_dispatch__(func, types, args, kwargs)


def _memory_of(tensor: Any) -> int:
    """What a tensor and its views have in common, even where it is on the meta device."""
    is_strided = isinstance(tensor, torch.Tensor) and not nn.parameter.is_lazy(tensor)
    if is_strided and tensor.layout is torch.strided and not is_sharded(tensor):
        return int(tensor.untyped_storage()._cdata)
    return id(tensor)


def untouched(state: Mapping[str, Any], missing: list[str]) -> list[str]:
    """Those of the missing names whose tensor in `state` has no other name that was there."""
    absent = set(missing)
    filled = {id(value) for name, value in state.items() if name not in absent}
    return [name for name in missing if name not in state or id(state[name]) not in filled]


def after(report: KeyReport, state: Mapping[str, Any], outcome: Outcome) -> KeyReport:
    """`report`, with what loading code said once it had the values; `state` is the model's state dict."""
    return replace(
        report,
        missing=tuple(n for n in untouched(state, outcome.missing) if n not in report.fresh),
        unexpected=tuple(n for n in outcome.unexpected if n not in report.recomputed),
        refusal=outcome.errors[0].strip() if outcome.errors else "",
    )


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy of `model` without memory, whole where it is sharded over ranks, and without what runs around a
    forward pass."""
    memo: dict[int, Any] = {}
    blank: list[tuple[nn.Module, nn.Module]] = []
    for module in model.modules():
        for tensor in (
            *module._parameters.values(),
            *module._buffers.values(),
            *(value for value in vars(module).values() if isinstance(value, torch.Tensor)),
        ):
            if tensor is not None and not nn.parameter.is_lazy(tensor):
                memo[id(tensor)] = _hollow(tensor)
        for name, value in vars(module).items():
            if name in _AROUND_FORWARD or name.startswith(_COMPOSABLE):
                memo[id(value)] = OrderedDict()
        if is_fsdp_module(module):  # FSDP2's class refuses to be copied; the one below it is the model's
            kind: type[nn.Module] = type(module).__mro__[2]
            memo[id(module)] = copied = kind.__new__(kind)
            blank.append((module, copied))
    for module, copied in blank:
        vars(copied).update(copy.deepcopy(vars(module), memo))
    return copy.deepcopy(model, memo)


_AROUND_FORWARD = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


_COMPOSABLE = "__composable_api_"
"""How the attributes begin that FSDP2 keeps its state in.

Source: torch/distributed/_composable/contract.py."""


def _hollow(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor like `tensor` without memory; all of it, where that is a part of one."""
    if is_sharded(tensor):
        bare = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    else:
        bare = tensor.detach().to("meta")
    return nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare


def give(model: nn.Module, values: Mapping[str, Any], *, assign: bool) -> Outcome:
    """Run strict `load_state_dict`; what it misses is told, not raised.

    Raises: what the model's code raises.
    """
    outcome = Outcome([], [], [])

    def take(module: nn.Module, keys: Any) -> None:
        outcome.missing.extend(keys.missing_keys)
        outcome.unexpected.extend(keys.unexpected_keys)
        keys.missing_keys.clear()
        keys.unexpected_keys.clear()

    handle = model.register_load_state_dict_post_hook(take)  # type: ignore[no-untyped-call]
    try:
        model.load_state_dict(values, **_options(model, assign))
    except RuntimeError as error:
        if (errors := loading_errors(error)) is None:
            raise
        outcome.errors.extend(errors)
    finally:
        handle.remove()
    return outcome


def _options(model: nn.Module, assign: bool) -> dict[str, bool]:
    """The arguments for strict loading, as far as the model's `load_state_dict` takes them."""
    wanted = {"strict": True, "assign": True} if assign else {"strict": True}
    parameters = inspect.signature(type(model).load_state_dict).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return wanted
    if assign and "assign" not in parameters:
        raise NeedsValuesError("its load_state_dict cannot assign")
    return {name: value for name, value in wanted.items() if name in parameters}


class Slot(NamedTuple):
    """A place in a module where a parameter or buffer is."""

    name: str
    """The first of its fully qualified names."""
    registry: dict[str, Any]
    key: str
    tensor: torch.Tensor
    """What was there."""


def slots(model: nn.Module) -> list[Slot]:
    """Every place of a parameter or a buffer."""
    return [
        Slot(f"{path}.{key}" if path else key, registry, key, tensor)
        for path, module in model.named_modules()
        for registry in (module._parameters, module._buffers)
        for key, tensor in registry.items()
        if isinstance(tensor, torch.Tensor)
    ]


class Given(NamedTuple):
    """What loading code gave to one parameter or buffer."""

    slots: list[Slot]
    """Where it is."""
    value: str | torch.Tensor
    """The name of a tensor that it is, as the file has it, or what the code made."""


def assigned(
    model: nn.Module, values: Mapping[str, Any], stand_ins: Mapping[str, torch.Tensor]
) -> tuple[Outcome, list[Given]]:
    """Run the loading code of `model`, whose tensors are put back; those over ranks are whole meanwhile, and
    have no memory.

    `stand_ins`: those of the tensors in `values` that are taken as they are, which may have no memory. What
    the code changes beside parameters and buffers stays changed.

    Raises: what the code raises; NeedsValuesError where it wants to work with the model's own values, or
    does not load a tensor that has none; LossyError where it gives two tensors to one parameter.
    """
    hooks = [(all_, dict(all_)) for module in model.modules() for all_ in _loading_hooks(module)]
    before = slots(model)
    hollow = {id(slot.tensor): _hollow(slot.tensor) for slot in before if is_sharded(slot.tensor)}
    for slot in before:
        slot.registry[slot.key] = hollow.get(id(slot.tensor), slot.tensor)
    for all_, known in hooks:
        for key in [key for key, hook in known.items() if _is_of_fsdp(hook)]:
            del all_[key]
    try:
        outcome = give(model, values, assign=True)
        taken = {_memory_of(tensor): name for name, tensor in stand_ins.items()}
        return outcome, list(_given(before, hollow, taken))
    finally:
        for slot in before:
            slot.registry[slot.key] = slot.tensor
        for all_, known in hooks:
            all_.update(known)


def _given(
    before: list[Slot], hollow: Mapping[int, torch.Tensor], taken: Mapping[int, str]
) -> Iterator[Given]:
    groups: dict[int, list[Slot]] = {}
    for slot in before:
        groups.setdefault(id(slot.tensor), []).append(slot)
    for group in groups.values():
        old = group[0].tensor
        was = hollow.get(id(old), old)
        got = [now for slot in group if (now := slot.registry.get(slot.key)) is not None and now is not was]
        if not got:
            if old.is_meta and not nn.parameter.is_lazy(old):
                raise NeedsValuesError(f"{group[0].name!r} was not loaded")
            continue
        new = got[-1]
        name = taken.get(_memory_of(new))
        if name is None and new.is_meta:
            raise NeedsValuesError(f"{group[0].name!r} was made of the model's own")
        if any(not _is_same(new, other) for other in got[:-1]):
            what = f"the model's loading code gives two different tensors to one parameter, {group[0].name!r}"
            raise LossyError(what, "", "convert the checkpoint to the model's own names first")
        yield Given(group, name if name is not None else new)


def _is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if _memory_of(a) == _memory_of(b) and (a.shape, a.storage_offset()) == (b.shape, b.storage_offset()):
        return True
    return not a.is_meta and not b.is_meta and torch.equal(a, b)

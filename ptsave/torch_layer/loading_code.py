"""A model's own loading code: what it says of a state dict, and what it makes of one.

Modules rename, convert and make up entries in `_load_from_state_dict`, in hooks and in `load_state_dict`
itself. So what fits a model that has such code is asked of the code, as strict `load_state_dict` does.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from ptsave.core.keys import KeyReport
from ptsave.core.select import WRAPPERS, Selection
from ptsave.errors import LossyError
from ptsave.torch_layer.tensors import to_torch, torch_dtype

_FAILED = "Error(s) in loading state_dict"
"""How torch begins what it says of errors. Source: torch.nn.Module.load_state_dict."""


_NO_ANSWER = ", an exception occurred : "
"""What torch says where a value without memory cannot be copied into a tensor of this kind."""


class NeedsValuesError(LossyError):
    """A model without memory is to keep some of its own values, or its loading code works with them."""

    def __init__(self, why: str) -> None:
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
    if module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks:
        return False
    is_torchs = with_torchs and load.__module__.startswith("torch.nn.modules.")
    return load is nn.Module._load_from_state_dict or is_torchs


def versions(model: nn.Module, selection: Selection) -> OrderedDict[str, dict[str, Any]] | None:
    """The `_metadata` of a state dict, for torch to write into; None where the file says nothing.

    What is said of a module is said of it inside of wrappers, too.
    """
    if not isinstance(selection.metadata, Mapping):
        return None
    known = {k: v for k, v in selection.metadata.items() if isinstance(k, str) and isinstance(v, dict)}
    for name, _ in model.named_modules(remove_duplicate=False):
        plain = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if name not in known and plain in known:
            known[name] = known[plain]
    return OrderedDict((name, dict(about)) for name, about in known.items())


def judged(model: nn.Module, selection: Selection, by_name: KeyReport) -> KeyReport:
    """How `selection` fits `model`, as its loading code has it; `by_name` where that cannot be asked.

    The code runs on a copy of the model without memory, with tensors that have none; a copy that cannot be
    made, or code that looks at values, gives no answer.
    """
    values: Any = OrderedDict()
    for name, entry in selection.tensors.items():
        values[name] = torch.empty(entry.shape, dtype=torch_dtype(entry), device="meta")
    values.update((name, to_torch(value, name)) for name, value in selection.extra.items())
    values._metadata = versions(model, selection)
    try:
        outcome = give(_on_meta(model), values, assign=False)
    except Exception:  # the user's code, on what it was not written for: no answer
        return by_name
    mismatched = [m for m in by_name.mismatched if any(f" {m.name}:" in text for text in outcome.errors)]
    others = [
        text
        for text in outcome.errors
        if _NO_ANSWER not in text and not any(f" {m.name}:" in text for m in mismatched)
    ]
    unexpected = [name for name in outcome.unexpected if name not in by_name.recomputed]
    missing = untouched(model.state_dict(keep_vars=True), outcome.missing)
    return replace(
        by_name,
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mismatched=tuple(mismatched),
        refusal=others[0].strip() if others else "",
        nearest={
            name: near for name, near in by_name.nearest.items() if name in missing and near in unexpected
        },
    )


def untouched(state: Mapping[str, Any], missing: list[str]) -> list[str]:
    """Those of the missing names whose tensor in `state` has no other name that was there."""
    absent = set(missing)
    filled = {id(value) for name, value in state.items() if name not in absent}
    return [name for name in missing if name not in state or id(state[name]) not in filled]


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy of `model` whose parameters and buffers have no memory."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if not nn.parameter.is_lazy(tensor):
            bare = tensor.detach().to("meta")
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(bare, tensor.requires_grad) if is_parameter else bare
    return copy.deepcopy(model, memo)


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
        if not str(error).startswith(_FAILED):
            raise
        outcome.errors.extend(str(error).splitlines()[1:])
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

    registry: dict[str, Any]
    key: str
    tensor: torch.Tensor
    """What was there."""


def slots(model: nn.Module) -> list[Slot]:
    """Every place of a parameter or a buffer."""
    return [
        Slot(registry, key, tensor)
        for module in model.modules()
        for registry in (module._parameters, module._buffers)
        for key, tensor in registry.items()
        if isinstance(tensor, torch.Tensor)
    ]


def settle(before: list[Slot], names: Callable[[torch.Tensor], str]) -> None:
    """Make what loading by assignment left a model like the one that copying would have left.

    Tensors keep the model's dtypes, and what was one parameter in several places is one again.

    Raises: NeedsValuesError where one has got no values; LossyError where the code gave two tensors to one
    parameter.
    """
    groups: dict[int, list[Slot]] = {}
    for slot in before:
        groups.setdefault(id(slot.tensor), []).append(slot)
    for group in groups.values():
        old = group[0].tensor
        got = [now for slot in group if (now := slot.registry.get(slot.key)) is not None and now is not old]
        if not got:
            if old.is_meta and not nn.parameter.is_lazy(old):
                raise NeedsValuesError(f"{names(old)!r} was not loaded")
            continue
        new = got[-1]
        if new.is_meta:
            raise NeedsValuesError(f"{names(old)!r} was made of the model's own")
        if any(not _is_same(new, other) for other in got[:-1]):
            what = f"the model's loading code gives two different tensors to one parameter, {names(old)!r}"
            raise LossyError(what, "", "convert the checkpoint to the model's own names first")
        wanted = old.dtype if not nn.parameter.is_lazy(old) else new.dtype
        if new.dtype is not wanted:
            cast = new.detach().to(wanted)
            new = nn.Parameter(cast, new.requires_grad) if isinstance(new, nn.Parameter) else cast
        for slot in group:
            slot.registry[slot.key] = new


def _is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape) or bool(torch.equal(a, b))


def names_in(model: nn.Module) -> Callable[[torch.Tensor], str]:
    """The first name of each tensor that `model` holds now."""
    named: dict[int, str] = {}
    for name, tensor in _named(model):
        named.setdefault(id(tensor), name)
    return lambda tensor: named.get(id(tensor), "")


def _named(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()

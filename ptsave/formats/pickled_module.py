"""Whole modules in a pickle (`torch.save(model)`): their state dict, without their classes.

Source: torch/nn/modules/module.py (`__getstate__`, `state_dict`, `_save_to_state_dict`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ptsave.core.dtypes import DType
from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.core.tree import is_scalar

MAX_PLAIN_ITEMS = 64
"""Most items of a container that is still shown as an attribute of a module."""

OWN_ATTRIBUTES = frozenset(
    {
        "_backend",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_buffers",
        "_compiled_call_impl",
        "_forward_hooks",
        "_forward_hooks_always_called",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks",
        "_forward_pre_hooks_with_kwargs",
        "_is_full_backward_hook",
        "_load_state_dict_post_hooks",
        "_load_state_dict_pre_hooks",
        "_modules",
        "_non_persistent_buffers_set",
        "_parameters",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
    }
)
"""What every module has, of any version of torch; the rest says something about the model."""


class PickledModule(Opaque):
    """An `nn.Module` as `torch.save(model)` writes it.

    Its children are what `state_dict()` gives, under the same names and in the same order: its own
    parameters, its own persistent buffers, its submodules. After them come its plain attributes.
    """

    shared = True
    """A state dict repeats a shared submodule's tensors under each of its names."""

    @property
    def is_call_of_scalars(self) -> bool:
        return False

    @property
    def num_parts(self) -> int:
        tables = (self.state.get(table) for table in ("_parameters", "_buffers", "_modules"))
        return len(self.state) + sum(len(table) for table in tables if isinstance(table, dict))

    def children(self) -> Iterator[tuple[Any, Any]]:
        state: dict[Any, Any] = self.state
        yield from _tensors(state.get("_parameters"))
        transient = state.get("_non_persistent_buffers_set")
        for name, buffer in _tensors(state.get("_buffers")):
            if not isinstance(transient, (set, frozenset)) or name not in transient:
                yield name, buffer
        modules = state.get("_modules")
        if isinstance(modules, dict):
            for name, module in modules.items():
                if module is not None:
                    yield name, module
        for name, value in state.items():
            if name not in OWN_ATTRIBUTES and is_plain(value):
                yield name, value


def is_module_state(state: Any) -> bool:
    """Whether `state` is what a module's BUILD sets: the three tables that each version of torch has."""
    return isinstance(state, dict) and all(
        isinstance(state.get(table), dict) for table in ("_parameters", "_buffers", "_modules")
    )


def _tensors(table: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(table, dict):
        for name, tensor in table.items():
            if isinstance(tensor, (TensorEntry, Opaque)):
                yield name, tensor


def is_plain(value: Any) -> bool:
    """Whether `value` is a scalar, or a small container of scalars."""
    if is_scalar(value) or isinstance(value, DType):
        return True
    if isinstance(value, dict):
        return len(value) <= MAX_PLAIN_ITEMS and all(map(is_scalar, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return len(value) <= MAX_PLAIN_ITEMS and all(map(is_scalar, value))
    return isinstance(value, Opaque) and value.is_call_of_scalars

"""Whole modules in a pickle (`torch.save(model)`): their state dict, without their classes.

Source: torch/nn/modules/module.py (`__getstate__`, `state_dict`, `_save_to_state_dict`).
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from functools import cached_property
from typing import Any

from ptsave.core.dtypes import DType
from ptsave.core.nodes import Global, Opaque, TensorEntry
from ptsave.core.tree import is_scalar

MAX_PLAIN_ITEMS = 2000
"""Most values in a container that is still shown as an attribute of a module (class names, a config)."""
MAX_PLAIN_DEPTH = 10
"""Cap on how deep such a container nests."""

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

    @cached_property
    def _attributes(self) -> list[tuple[Any, Any]]:
        return plain_attributes(self.state, OWN_ATTRIBUTES)

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
        yield from self._attributes


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


def plain_attributes(state: dict[Any, Any], others: Set[Any]) -> list[tuple[Any, Any]]:
    """The attributes of a module that are plain data, less `others`."""
    return [(name, value) for name, value in state.items() if name not in others and _is_plain(value)]


def _is_plain(value: Any) -> bool:
    """Whether `value` is a scalar, or a container of nothing but scalars, and not too large a one."""
    left = MAX_PLAIN_ITEMS
    level = [value]
    for _ in range(MAX_PLAIN_DEPTH):
        below: list[Any] = []
        for item in level:
            left -= 1
            if left < 0:
                return False
            if isinstance(item, (dict, list, tuple, set, frozenset)):
                if len(item) > left:
                    return False
                below.extend(item.values() if isinstance(item, dict) else item)
            elif not is_scalar(item) and not _says_itself(item):
                return False
        if not below:
            return True
        level = below
    return False


def _says_itself(value: Any) -> bool:
    """Whether `value` is fully said by its name and scalars: a dtype, a function's name, a path."""
    return isinstance(value, (DType, Global)) or (isinstance(value, Opaque) and value.is_call_of_scalars)

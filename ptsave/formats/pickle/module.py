"""Whole modules in a pickle (`torch.save(model)`): their state dict, without their classes.

Source: torch/nn/modules/module.py (`__getstate__`, `state_dict`, `_save_to_state_dict`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from functools import cached_property
from typing import Any

from ptsave.core.dtypes import DType
from ptsave.core.nodes import Global, Opaque, TensorEntry
from ptsave.core.tree import CYCLE, is_scalar, items_of, walk
from ptsave.formats.kinds import quantized
from ptsave.formats.pickle.shapes import UNKNOWN, Budget, as_it_is

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
    parameters, its own persistent buffers, what its class adds (a quantized layer's packed weight), its
    submodules. After them come its plain attributes.
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
        return plain_attributes(self.state, OWN_ATTRIBUTES | dict(self._added).keys())

    @cached_property
    def _added(self) -> list[tuple[str, Any]]:
        return quantized.module_entries(self.name, self.state)

    def entries(self) -> Iterator[tuple[Any, Any]]:
        state: dict[Any, Any] = self.state
        added = dict(self._added)
        for name, tensor in _tensors(state.get("_parameters")):
            if name not in added:
                yield name, tensor
        for name, buffer in _tensors(state.get("_buffers")):
            if name not in added and not self._is_transient(name):
                yield name, buffer
        yield from self._added
        modules = state.get("_modules")
        if isinstance(modules, dict):
            for name, module in modules.items():
                if module is not None:
                    yield name, module

    def children(self) -> Iterator[tuple[Any, Any]]:
        yield from self.entries()
        yield from self._attributes

    def hidden(self) -> Iterator[tuple[Any, Any, bool]]:
        for name, buffer in _tensors(self.state.get("_buffers")):
            if self._is_transient(name):
                yield name, buffer, True
        for name, value in self.state.items():
            yield (None if name in ("_parameters", "_buffers", "_modules") else name), value, False

    def _is_transient(self, name: Any) -> bool:
        transient = self.state.get("_non_persistent_buffers_set")
        return isinstance(transient, (set, frozenset)) and name in transient


class TupleModule(Opaque):
    """A quantized module that its class pickles as a tuple: a convolution, or a sparse layer's packed weight.

    Source: torch/ao/nn/quantized/modules/conv.py (`_ConvNd.__getstate__`, `_save_to_state_dict`),
    torch/ao/nn/sparse/quantized/linear.py (`LinearPackedParams`).
    """

    shared = True

    @property
    def is_call_of_scalars(self) -> bool:
        return False

    @cached_property
    def _values(self) -> dict[str, Any]:
        fields = _CONV_FIELDS if is_quantized_conv_state(self.state) else _SPARSE_FIELDS
        return dict(zip(fields, self.state, strict=True))

    @cached_property
    def _entries(self) -> list[tuple[str, Any]]:
        values = self._values
        if "weight" not in values:
            return [(name, values[name]) for name in ("dtype", "_packed_params")]
        scales = quantized.scale_tensors(values["scale"], values["zero_point"])
        return [("weight", values["weight"]), ("bias", values["bias"]), *scales]

    @cached_property
    def _attributes(self) -> list[tuple[str, Any]]:
        taken = dict(self._entries)
        return [(name, value) for name, value in self._values.items() if name not in taken]

    def entries(self) -> Iterator[tuple[Any, Any]]:
        return iter(self._entries)

    def children(self) -> Iterator[tuple[Any, Any]]:
        yield from self._entries
        yield from self._attributes


_CONV_FIELDS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "transposed",
    "output_padding",
    "groups",
    "padding_mode",
    "weight",
    "bias",
    "scale",
    "zero_point",
    "training",
)
_SPARSE_FIELDS = ("_packed_params", "training", "dtype")
_CONV_TYPES = (int, int, tuple, tuple, tuple, tuple, bool, tuple, int, str, None, None, float, int, bool)


def is_quantized_conv_state(state: Any) -> bool:
    """Whether `state` is what a quantized convolution's BUILD sets."""
    return (
        type(state) is tuple
        and len(state) == len(_CONV_TYPES)
        and all(kind is None or type(value) is kind for value, kind in zip(state, _CONV_TYPES, strict=True))
        and isinstance(state[10], (TensorEntry, Opaque))
        and (state[11] is None or isinstance(state[11], (TensorEntry, Opaque)))
    )


def is_tuple_state(state: Any) -> bool:
    """Whether `state` is what the BUILD of a `TupleModule` sets."""
    return is_quantized_conv_state(state) or (
        type(state) is tuple
        and len(state) == len(_SPARSE_FIELDS)
        and quantized.packed_class(state[0]) == quantized.SPARSE_LINEAR
        and type(state[1]) is bool
        and isinstance(state[2], DType)
    )


def graph_module(args: tuple[Any, ...], budget: Budget) -> Any:
    """`reduce_graph_module(attributes, imports)`: a module of torch.fx; a real unpickler runs its code.

    Source: torch/fx/graph_module.py.
    """
    if len(args) not in (2, 3) or not is_module_state(args[0]):
        return UNKNOWN
    budget.spend(4)
    body = as_it_is(args[0], budget)
    for table in ("_parameters", "_buffers", "_modules"):  # which a module of its own has copies of
        body[table] = as_it_is(body[table], budget)
    return PickledModule("torch.fx.graph_module.GraphModule", args[1:], body)


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
    return [(name, value) for name, value in state.items() if name not in others and is_plain(value)]


def is_plain(value: Any) -> bool:
    """Whether `value` is a scalar, or a container of nothing but scalars, and not too large a one."""
    for number, (path, node) in enumerate(walk(value, _items, once=False)):
        if number >= MAX_PLAIN_ITEMS or len(path) >= MAX_PLAIN_DEPTH or node is CYCLE:
            return False
        is_container = isinstance(node, (dict, list, tuple, set, frozenset))
        if not is_container and not is_scalar(node) and not _says_itself(node):
            return False
    return True


def _items(node: Any) -> Iterable[tuple[Any, Any]]:
    return enumerate(node) if isinstance(node, (set, frozenset)) else items_of(node)


def _says_itself(value: Any) -> bool:
    """Whether `value` is fully said by its name and scalars: a dtype, a function's name, a path."""
    return isinstance(value, (DType, Global)) or (isinstance(value, Opaque) and value.is_call_of_scalars)

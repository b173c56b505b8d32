"""Tensors that are no strided bytes, as inert objects: which of them a torch file can say again.

Beside `kinds.sparse` and `kinds.quantized`: nested tensors of torch.strided (`Opaque("torch.nested")`),
tensors without values (`Opaque("torch.meta")`), parameters of all these, and subclasses with a state.

Source: torch/_tensor.py (`_reduce_ex_internal`), torch/_utils.py.
"""

from __future__ import annotations

from typing import Any

from ptsave.core.dtypes import DType
from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.formats.kinds.quantized import is_quantized
from ptsave.formats.kinds.sparse import is_sparse

NESTED = "torch.nested"
NESTED_PARTS = ("buffer", "sizes", "strides", "storage_offsets")
META = "torch.meta"
META_PARTS = ("dtype", "size", "stride", "requires_grad")
PARAMETER = "torch.nn.parameter.Parameter"


class TensorSubclass(Opaque):
    """A tensor of a subclass with a state: `args` is its plain tensor, `state` what its class adds."""


def is_nested(value: Any) -> bool:
    """Whether `value` is a nested tensor (not a jagged one) with all that it takes to make it again."""
    parts = _parts(value, NESTED, NESTED_PARTS)
    return parts is not None and all(isinstance(part, TensorEntry) for part in parts)


def is_meta(value: Any) -> bool:
    """Whether `value` is a tensor of the meta device: a shape and a dtype."""
    parts = _parts(value, META, META_PARTS)
    if parts is None or not isinstance(parts[0], DType) or type(parts[3]) is not bool:
        return False
    if parts[0].kind == "quantized":  # which torch writes and does not load
        return False
    return all(type(one) is tuple and all(type(n) is int and n >= 0 for n in one) for one in parts[1:3])


def parts_by_name(value: Opaque) -> tuple[Any, ...]:
    """The parts of a nested or meta tensor, as its function of torch takes them."""
    return tuple(value.state[name] for name in (NESTED_PARTS if value.name == NESTED else META_PARTS))


def parameter_data(value: Any) -> Any:
    """The tensor in a parameter of such a kind; `value` itself where it is none."""
    is_parameter = type(value) is Opaque and value.name == PARAMETER and type(value.state) is dict
    return value.state.get("data") if is_parameter and not value.args else value


def is_tensor_object(value: Any) -> bool:
    """Whether `value` is a tensor that lies in the tree as an object, and can be written as it is."""
    value = parameter_data(value)
    return is_sparse(value) or is_quantized(value) or is_nested(value) or is_meta(value)


def _parts(value: Any, name: str, names: tuple[str, ...]) -> tuple[Any, ...] | None:
    if type(value) is not Opaque or value.name != name or type(value.state) is not dict:
        return None
    return tuple(value.state.values()) if tuple(value.state) == names else None

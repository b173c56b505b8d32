"""Tensors that are no strided bytes, as inert objects: which of them a torch file can say again.

Beside `kinds.sparse` and `kinds.quantized`: nested tensors of torch.strided (`Opaque("torch.nested")`),
tensors without values (`Opaque("torch.meta")`), parameters of all these, and subclasses with a state.

Source: torch/_tensor.py (`_reduce_ex_internal`), torch/_utils.py.
"""

from __future__ import annotations

from typing import Any

from ptsave.core.dtypes import DType
from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.core.values.gather import contiguous
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
    if parts is None or not all(isinstance(part, TensorEntry) for part in parts):
        return False
    return all(part.dtype.name == "int64" for part in parts[1:])


def why_outside(value: Any) -> str:
    """Why the values of a nested tensor are not all in its buffer; empty where they are.

    torch takes sizes, strides and offsets as they are, and shows what lies behind the buffer in its storage.

    Source: ATen/NestedTensorImpl.cpp (`NestedTensorImpl`), ATen/native/nested/NestedTensorMath.cpp.
    """
    if not is_nested(value):
        return ""
    buffer, *about = parts_by_name(value)
    sizes, strides, offsets = about
    if sizes.shape != strides.shape or any(part.num_bytes > part.storage.num_bytes for part in about):
        return f"a nested tensor has sizes {list(sizes.shape)} and strides {list(strides.shape)}"
    if (len(sizes.shape), len(offsets.shape)) != (2, 1):  # of no tensors
        return ""
    lengths, steps, first = map(_numbers, about)
    reach = first + ((lengths - 1) * steps).sum(axis=1)
    is_outside = (lengths > 0).all(axis=1) & (reach >= buffer.num_elements)
    is_negative = any((numbers < 0).any() for numbers in (lengths, steps, first))
    return "a nested tensor has values outside its buffer" if is_negative or is_outside.any() else ""


def _numbers(entry: TensorEntry) -> Any:
    """The integers of a small tensor as floats, which no product of them overflows."""
    import numpy as np

    storage, offset_bytes = contiguous(entry)
    data = bytearray(entry.num_bytes)
    storage.read_into(offset_bytes, memoryview(data))
    return np.frombuffer(data, entry.dtype.numpy).reshape(entry.shape).astype("f8")


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

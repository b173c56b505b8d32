"""Tensors that are not dense: quantized, sparse, nested, without bytes, and subclasses.

Each becomes an Opaque that holds its parts under torch's names for them (see `torch_objects`).

Source: torch/_utils.py, torch/_tensor.py (`_rebuild_from_type_v2`).
"""

from __future__ import annotations

from typing import Any

from ptsave.core import dtypes
from ptsave.core.dtypes import DType
from ptsave.core.nodes import Global, Opaque, TensorEntry
from ptsave.core.values.cast import CASTABLE, can_cast, cast
from ptsave.core.values.resolved import resolved
from ptsave.errors import CorruptError
from ptsave.formats.kinds.objects import META, META_PARTS, NESTED, NESTED_PARTS, TensorSubclass
from ptsave.formats.kinds.quantized import PACKED
from ptsave.formats.kinds.sparse import PARTS
from ptsave.formats.pickle import numpy_objects
from ptsave.formats.pickle.python_objects import is_name_only
from ptsave.formats.pickle.shapes import UNKNOWN, Budget, Known, as_it_is, known_names
from ptsave.formats.torch.storages import UINT8, StorageNode
from ptsave.formats.torch.tensors import are_sizes, changed, drop_attributes, spelled, tensor

_PLAIN_TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")


def _rebuild_from_type(args: tuple[Any, ...], budget: Budget) -> Any:
    """`_rebuild_from_type_v2(function, type, args, state)`: a subclass, or a tensor with attributes."""
    if len(args) != 4 or type(args[0]) is not Known or type(args[2]) is not tuple:
        return UNKNOWN
    function, kind, inner, state = args
    if not isinstance(kind, Global) or not function.name.startswith("torch._utils._rebuild_"):
        return UNKNOWN
    value = function.call(inner, budget)
    if isinstance(value, TensorEntry):
        if kind.name in _PLAIN_TYPES:
            drop_attributes(state, budget)
            return value
        if not state:
            return changed(value, kind.name, value.requires_grad)
        return TensorSubclass(kind.name, (value,), as_it_is(state, budget))
    if not isinstance(value, Opaque):
        return UNKNOWN
    return Opaque(kind.name, (value,), as_it_is(state, budget))


def _rebuild_meta(args: tuple[Any, ...], budget: Budget) -> Any:
    """`_rebuild_meta_tensor_no_storage(dtype, size, stride, requires_grad)`."""
    if len(args) != 4 or type(args[0]) is not DType or not are_sizes(*args[1:3]):
        return UNKNOWN
    return Opaque(META, (), dict(zip(META_PARTS, args, strict=True)))


def _rebuild_wrapper_subclass(args: tuple[Any, ...], budget: Budget) -> Any:
    if len(args) != 8 or not isinstance(args[0], Global) or type(args[1]) is not DType:
        return UNKNOWN
    if not are_sizes(*args[2:4]):
        return UNKNOWN
    names = ("dtype", "size", "stride", "storage_offset", "layout", "device", "requires_grad")
    return Opaque(META, (), dict(zip(names, args[1:], strict=True)))


def _rebuild_device_tensor(args: tuple[Any, ...], budget: Budget) -> Any:
    """`(data, dtype, device, requires_grad)`: a tensor of an accelerator that has no storages."""
    if len(args) != 4 or type(args[1]) is not DType or type(args[3]) is not bool:
        return UNKNOWN
    data, dtype, device, requires_grad = args
    entry = data if isinstance(data, TensorEntry) else None
    if isinstance(data, Opaque) and data.state is not None:
        entry = data.as_tensor()
    if entry is not None and entry.dtype is not dtype and can_cast(entry.dtype) and dtype.name in CASTABLE:
        entry = cast(resolved(entry), dtype)  # NumPy has no bfloat16
    if entry is not None and entry.dtype is dtype:
        return changed(entry, "tensor", requires_grad)
    if entry is None and not (isinstance(data, Opaque) and data.state is not None):
        return UNKNOWN  # an array that the pickle fills later, of which torch has made an empty tensor
    state = {"data": data, "dtype": dtype, "device": device, "requires_grad": requires_grad}
    return Opaque("torch.Tensor", (), state)


def _rebuild_quantized(args: tuple[Any, ...], budget: Budget) -> Any:
    if len(args) != 7 or type(args[0]) is not StorageNode or type(args[4]) is not tuple:
        return UNKNOWN
    node, offset, size, stride, quantizer, requires_grad, _hooks = args
    if not quantizer or not isinstance(quantizer[0], Global) or node.dtype.kind != "quantized":
        return UNKNOWN
    scheme = quantizer[0].name.removeprefix("torch.")
    if node.dtype.name in PACKED:  # several elements a byte: shown as the bytes that they are
        bits = tensor(node, UINT8, 0, (node.num_elements,), (1,), False)
        _check_packed(offset, size, stride, bits.num_bytes * 8 // PACKED[node.dtype.name])
        state = {"packed": bits, "size": size, "stride": stride, "offset": offset}
    else:
        dtype = dtypes.BY_NAME.get(node.dtype.name.removeprefix("q"), node.dtype)
        state = {"int_repr": tensor(node, dtype, offset, size, stride, requires_grad)}
    state["dtype"] = node.dtype
    state["qscheme"] = scheme
    if scheme == "per_tensor_affine" and len(quantizer) == 3:
        names: tuple[str, ...] = ("scale", "zero_point")
    elif scheme.startswith("per_channel_affine") and len(quantizer) == 4:
        names = ("scales", "zero_points", "axis")
        if not _fit_channels(size, *quantizer[1:]):
            raise CorruptError(f"the scales of a quantized tensor do not fit its shape {spelled(size)}")
    else:
        return UNKNOWN
    values = (list(value) if type(value) is list else value for value in quantizer[1:])
    return Opaque("torch.quantized", (), state | dict(zip(names, values, strict=True)))


def _fit_channels(size: Any, scales: Any, zero_points: Any, axis: Any) -> bool:
    """Whether there are a scale and a zero point for each index along `axis`, both in lists or in tensors."""
    if type(axis) is not int or type(size) is not tuple or not 0 <= axis < len(size):
        return False
    if type(scales) is list and type(zero_points) is list:
        counts = {len(scales), len(zero_points)}
    elif isinstance(scales, TensorEntry) and isinstance(zero_points, TensorEntry):
        counts = {scales.num_elements, zero_points.num_elements}
    else:
        return False
    return counts == {size[axis]}


def _check_packed(offset: Any, size: Any, stride: Any, num_elements: int) -> None:
    """Insist that a view of so many elements is one.

    Raises: CorruptError.
    """
    if not numpy_objects.is_shape(size) or not numpy_objects.is_shape(stride) or len(size) != len(stride):
        raise CorruptError(f"a quantized tensor's shape is {spelled(size)}, its strides {spelled(stride)}")
    last = sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if type(offset) is not int or offset < 0 or (0 not in size and offset + last >= num_elements):
        what = f"a quantized tensor of shape {size} at {spelled(offset)} has {num_elements} elements"
        raise CorruptError(what)


def _get_layout(args: tuple[Any, ...], budget: Budget) -> Any:
    if len(args) != 1 or type(args[0]) is not str or args[0] not in _LAYOUTS:
        return UNKNOWN
    return Opaque("torch.layout", args)


_LAYOUTS: dict[str, tuple[str, ...]] = {
    "torch.strided": (),
    "torch._mkldnn": (),
    "torch.jagged": (),
    **PARTS,
}


def _rebuild_sparse(args: tuple[Any, ...], budget: Budget) -> Any:
    if len(args) != 2 or not isinstance(args[0], Opaque) or args[0].name != "torch.layout":
        return UNKNOWN
    parts = args[1]
    name = args[0].args[0] if args[0].args and type(args[0].args[0]) is str else ""
    names = _LAYOUTS.get(name, ())
    if not names or type(parts) is not tuple or len(parts) not in (3, 4) or len(parts) > len(names):
        return UNKNOWN
    made = {name: _as_it_is(part) for name, part in zip(names, parts, strict=False)}
    is_told = type(made.get("is_coalesced")) in (bool, type(None))
    if not numpy_objects.is_shape(made.get("size")) or not is_told:
        return UNKNOWN
    return Opaque(name, (), made)


def _as_it_is(part: Any) -> Any:
    """A part of a tensor, which what the pickle sets on that part later does not change.

    Source: ATen/native/sparse/SparseTensor.cpp (`new_with_dims_and_tensor_sparse`): shallow copies.
    """
    return changed(part, part.kind, part.requires_grad) if isinstance(part, TensorEntry) else part


def _rebuild_nested(args: tuple[Any, ...], budget: Budget) -> Any:
    if len(args) != 4 or not all(isinstance(part, (TensorEntry, Opaque)) for part in args):
        return UNKNOWN
    return Opaque(NESTED, (), dict(zip(NESTED_PARTS, args, strict=True)))


SCHEMES = (
    "per_tensor_affine",
    "per_tensor_symmetric",
    "per_channel_affine",
    "per_channel_symmetric",
    "per_channel_affine_float_qparams",
)
"""The names of how tensors are quantized: `torch.per_tensor_affine`."""

_FROM_TYPE = dict.fromkeys(("_rebuild_from_type_v2", "_rebuild_from_type"), _rebuild_from_type)
NAMES: dict[str, Any] = {
    **known_names(
        "torch._utils",
        {
            "_rebuild_qtensor": _rebuild_quantized,
            "_rebuild_sparse_tensor": _rebuild_sparse,
            "_rebuild_nested_tensor": _rebuild_nested,
            "_rebuild_meta_tensor_no_storage": _rebuild_meta,
            "_rebuild_wrapper_subclass": _rebuild_wrapper_subclass,
            "_rebuild_device_tensor_from_numpy": _rebuild_device_tensor,
            "_rebuild_device_tensor_from_cpu_tensor": _rebuild_device_tensor,
            "_rebuild_xla_tensor": _rebuild_device_tensor,
        },
    ),
    **known_names("torch._tensor", _FROM_TYPE),
    **known_names("torch.tensor", _FROM_TYPE),  # before 1.8
    **known_names("torch", dict.fromkeys(SCHEMES, is_name_only)),
    **known_names("torch.serialization", {"_get_layout": _get_layout}),
}
"""What stands for each of torch's names for tensors that are not dense."""

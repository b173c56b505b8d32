"""torch's objects in a pickle: the exact shapes that become tensors and data.

How each is presented:

- tensors and parameters: `TensorEntry` (`kind` "tensor" or "parameter"; a subclass's dotted name; "conj"
  or "neg" where the bytes still wait for that operation)
- `torch.Size` → tuple; a dtype → its `DType`; `torch.device("cpu")` → `Opaque("torch.device", ("cpu",))`
- a storage by itself → `StorageNode`, an Opaque whose one child `data` is a flat tensor
- quantized → `Opaque("torch.quantized")` with `int_repr`, `qscheme`, `scale`/`zero_point` or
  `scales`/`zero_points`/`axis`
- sparse → `Opaque("torch.sparse_coo")` (csr, csc, bsr, bsc) with `indices`, `values`, `size`, … as torch
  names them
- nested → `Opaque("torch.nested")` with `buffer`, `sizes`, `strides`, `storage_offsets`
- without bytes (meta, FakeTensor, wrapper subclasses) → `Opaque("torch.meta")`, or an Opaque of the
  subclass's name, with `dtype`, `size`, `stride`, …

All of these are known shapes and leave nothing in `Checkpoint.globals`, but for a subclass's own name.

Source: torch/_utils.py, torch/_tensor.py, torch/nn/parameter.py, torch/serialization.py,
torch/_weights_only_unpickler.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

from ptsave.core import dtypes
from ptsave.core.dtypes import DType
from ptsave.core.nodes import Global, Opaque, TensorEntry, contiguous_strides
from ptsave.core.storage import MemoryStorage, Storage, SwappedStorage
from ptsave.errors import CorruptError, LimitError
from ptsave.formats import numpy_objects, python_objects
from ptsave.formats.pickle_shapes import UNKNOWN, Budget, Known, Payload, Shapes
from ptsave.formats.pickled_module import PickledModule, is_module_state

MAX_RANK = 64
"""Cap on a tensor's number of dimensions, as in torch."""
MAX_EXPANDED_ELEMENTS = 2**32
"""Cap on the elements of a view that repeats its storage (stride 0): a few bytes can claim any number."""

_INT64_MAX = 2**63 - 1
_UINT8 = dtypes.BY_NAME["uint8"]
_PACKED = ("quint4x2", "quint2x4")
_PLAIN_TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")


class StorageNode(Opaque):
    """A storage that a pickle names: what tensors are rebuilt from, or a leaf by itself."""

    def __init__(
        self,
        name: str,
        dtype: DType,
        num_elements: int,
        storage: Storage,
        big_endian: bool = False,
        first: int = 0,
    ) -> None:
        """`storage` holds the bytes as they are in the file; the node is `num_elements` elements of `dtype`
        in it, from `first` on (a view, where that is not all)."""
        self.name = name
        self.dtype = dtype
        self.num_elements = num_elements
        self.first = first
        self._raw = storage
        self._swapped: dict[int, Storage] | None = {} if big_endian else None
        self.storage = self.of_dtype(dtype) if big_endian else storage

    def of_dtype(self, dtype: DType) -> Storage:
        """The bytes in little-endian order, when they are elements of `dtype`."""
        word = dtype.word_bytes
        if self._swapped is None or word == 1:
            return self._raw
        if word not in self._swapped:
            self._swapped[word] = SwappedStorage(self._raw, word)
        return self._swapped[word]

    @property
    def is_call_of_scalars(self) -> bool:
        return False

    def children(self) -> Iterator[tuple[Any, Any]]:
        count = self.num_elements
        yield "data", TensorEntry("", self.dtype, (count,), (1,), self.storage, self.first)


def tensor(
    node: Any, dtype: DType, offset: Any, size: Any, stride: Any, requires_grad: Any, kind: str = "tensor"
) -> TensorEntry:
    """The view of `node`'s storage, every bound of it checked.

    `offset` and `stride` are in elements of `dtype`.

    Raises: CorruptError when any element would lie outside the storage, or a number is not one;
    LimitError past MAX_RANK or MAX_EXPANDED_ELEMENTS.
    """
    if type(node) is not StorageNode:
        raise CorruptError(f"makes a tensor of a {_spelled(node)}, which is no storage")
    if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride):
        raise CorruptError(f"a tensor's shape {_spelled(size)} and strides {_spelled(stride)} do not match")
    if len(size) > MAX_RANK:
        raise LimitError("rank", MAX_RANK, len(size))
    if type(offset) is not int or not 0 <= offset <= _INT64_MAX:
        raise CorruptError(f"a tensor's offset is {_spelled(offset)}")
    if type(requires_grad) is not bool:
        raise CorruptError(f"a tensor's requires_grad is {_spelled(requires_grad)}")
    count = 1
    last = offset
    for length, step in zip(size, stride, strict=True):
        if type(length) is not int or type(step) is not int:
            raise CorruptError("a tensor's shape or stride is not an integer")
        if not 0 <= length <= _INT64_MAX or not 0 <= step <= _INT64_MAX:
            raise CorruptError(f"a tensor of shape {size} and strides {stride} is impossible")
        count *= length
        last += (length - 1) * step
    storage = node.storage if dtype is node.dtype else node.of_dtype(dtype)
    if count:
        needed = (last + 1) * dtype.itemsize
        there = node.num_elements * node.dtype.itemsize
        if needed > there:
            raise CorruptError(f"a tensor of shape {size} needs {needed} bytes of a storage of {there}")
        if count > MAX_EXPANDED_ELEMENTS and count * dtype.itemsize > there:
            raise LimitError("expanded_elements", MAX_EXPANDED_ELEMENTS, count)
        if node.first:
            if dtype.itemsize != node.dtype.itemsize:
                raise CorruptError(f"a tensor of {dtype} views a part of a storage of {node.dtype}")
            offset += node.first
    else:
        offset = 0  # any offset is legal for no elements, and may lie outside
    return TensorEntry("", dtype, size, stride, storage, offset, kind, requires_grad)


def _spelled(value: Any) -> str:
    """`value` for a message, short whatever it is."""
    if isinstance(value, (int, float, str, bytes)):
        text = repr(value)
        return text if len(text) <= 40 else text[:40] + "…"
    if isinstance(value, tuple) and len(value) <= 8 and all(type(part) is int for part in value):
        return str(value)
    return type(value).__name__


def _rebuild_tensor(args: tuple[Any, ...], budget: Budget) -> Any:
    if len(args) != 4:
        return UNKNOWN
    node, offset, size, stride = args
    return tensor(node, _dtype_of(node), offset, size, stride, False)


def _rebuild_tensor_v2(args: tuple[Any, ...], budget: Budget) -> Any:
    if len(args) == 6:
        node, offset, size, stride, requires_grad, _hooks = args
        kind = "tensor"
    elif len(args) == 7:
        node, offset, size, stride, requires_grad, _hooks, bits = args
        kind = _kind_of_bits(bits)
    else:
        return UNKNOWN
    return tensor(node, _dtype_of(node), offset, size, stride, requires_grad, kind)


def _rebuild_tensor_v3(args: tuple[Any, ...], budget: Budget) -> Any:
    if not 7 <= len(args) <= 8 or type(args[6]) is not DType:
        return UNKNOWN
    node, offset, size, stride, requires_grad, _hooks, dtype = args[:7]
    kind = _kind_of_bits(args[7]) if len(args) == 8 else "tensor"
    return tensor(node, dtype, offset, size, stride, requires_grad, kind)


def _dtype_of(node: Any) -> DType:
    return node.dtype if type(node) is StorageNode else _UINT8


def _kind_of_bits(bits: Any) -> str:
    """The kind of a tensor whose bytes wait for a conjugation or a negation."""
    if bits is None:
        return "tensor"
    if type(bits) is not dict or len(bits) > 2 or not all(type(flag) is bool for flag in bits.values()):
        raise CorruptError("a tensor's metadata is malformed")
    return "_".join(str(name) for name, flag in bits.items() if flag) or "tensor"


def _rebuild_parameter(args: tuple[Any, ...], budget: Budget) -> Any:
    if len(args) not in (3, 4) or type(args[1]) is not bool:
        return UNKNOWN
    if len(args) == 4:
        _note_attributes(args[3], budget)
    return _parameter(args[0], args[1])


def _new_parameter(args: tuple[Any, ...], budget: Budget) -> Any:
    """`Parameter.__new__(Parameter, data, requires_grad)`, as torch before 0.4 wrote it."""
    if len(args) not in (1, 2) or (len(args) == 2 and type(args[1]) is not bool):
        return UNKNOWN
    return _parameter(args[0], args[1] if len(args) == 2 else True)


def _new_variable(args: tuple[Any, ...], budget: Budget) -> Any:
    if len(args) != 1 or not isinstance(args[0], TensorEntry):
        return UNKNOWN
    return _changed(args[0], args[0].kind, False)


def _parameter(data: Any, requires_grad: bool) -> Any:
    if isinstance(data, TensorEntry):
        return _changed(data, "parameter" if data.kind == "tensor" else data.kind, requires_grad)
    if isinstance(data, Opaque):
        return Opaque("torch.nn.parameter.Parameter", (), {"data": data, "requires_grad": requires_grad})
    return UNKNOWN


def _changed(entry: TensorEntry, kind: str, requires_grad: bool) -> TensorEntry:
    return TensorEntry(
        "", entry.dtype, entry.shape, entry.strides, entry.storage, entry.offset, kind, requires_grad
    )


def _note_attributes(state: Any, budget: Budget) -> None:
    if state and state != (None, None):
        budget.note("attributes that the file sets on tensors are left out")


def _rebuild_from_type(args: tuple[Any, ...], budget: Budget) -> Any:
    """`_rebuild_from_type_v2(function, type, args, state)`: a subclass, or a tensor with attributes."""
    if len(args) != 4 or type(args[0]) is not Known or type(args[2]) is not tuple:
        return UNKNOWN
    function, kind, inner, state = args
    if not isinstance(kind, Global) or function.name not in _REBUILD_NAMES:
        return UNKNOWN
    value = function.call(inner, budget)
    if isinstance(value, TensorEntry):
        if kind.name in _PLAIN_TYPES:
            _note_attributes(state, budget)
            return value
        if not state:
            return _changed(value, kind.name, value.requires_grad)
        return Opaque(kind.name, (value,), state)
    return Opaque(kind.name, (value,), state) if isinstance(value, Opaque) else UNKNOWN


def _rebuild_meta(args: tuple[Any, ...], budget: Budget) -> Any:
    """`_rebuild_meta_tensor_no_storage(dtype, size, stride, requires_grad)`."""
    if len(args) != 4 or type(args[0]) is not DType:
        return UNKNOWN
    names = ("dtype", "size", "stride", "requires_grad")
    return Opaque("torch.meta", (), dict(zip(names, args, strict=True)))


def _rebuild_wrapper_subclass(args: tuple[Any, ...], budget: Budget) -> Any:
    if len(args) != 8 or not isinstance(args[0], Global) or type(args[1]) is not DType:
        return UNKNOWN
    names = ("dtype", "size", "stride", "storage_offset", "layout", "device", "requires_grad")
    return Opaque("torch.meta", (), dict(zip(names, args[1:], strict=True)))


def _rebuild_device_tensor(args: tuple[Any, ...], budget: Budget) -> Any:
    """`(data, dtype, device, requires_grad)`: a tensor of an accelerator that has no storages."""
    if len(args) != 4 or type(args[1]) is not DType or type(args[3]) is not bool:
        return UNKNOWN
    data, dtype, device, requires_grad = args
    entry = data if isinstance(data, TensorEntry) else _from_numpy(data)
    if entry is not None and entry.dtype is dtype:
        return _changed(entry, "tensor", requires_grad)
    state = {"data": data, "dtype": dtype, "device": device, "requires_grad": requires_grad}
    return Opaque("torch.Tensor", (), state)


def _from_numpy(array: Any) -> TensorEntry | None:
    """The tensor in what an array shows of itself; checked again, for a file can spell that too."""
    if not isinstance(array, Opaque) or array.name != "numpy.ndarray" or not isinstance(array.state, dict):
        return None
    data, shape, named = (array.state.get(field) for field in ("data", "shape", "dtype"))
    dtype = dtypes.BY_NAME.get(named) if type(named) is str else None
    if dtype is None or array.state.get("order") != "C" or not numpy_objects.is_shape(shape):
        return None
    if isinstance(data, Payload) and data.name == "builtins.bytes":
        storage: Storage = data.storage
    elif isinstance(data, (bytes, bytearray)):
        storage = MemoryStorage(memoryview(data))
    else:
        return None
    if storage.num_bytes != prod(shape) * dtype.itemsize:
        return None
    return TensorEntry("", dtype, shape, contiguous_strides(shape), storage, 0)


def _rebuild_quantized(args: tuple[Any, ...], budget: Budget) -> Any:
    if len(args) != 7 or type(args[0]) is not StorageNode or type(args[4]) is not tuple:
        return UNKNOWN
    node, offset, size, stride, quantizer, requires_grad, _hooks = args
    if not quantizer or not isinstance(quantizer[0], Global):
        return UNKNOWN
    scheme = quantizer[0].name.removeprefix("torch.")
    if node.dtype.name in _PACKED:  # several elements a byte: shown as the bytes that they are
        if not numpy_objects.is_shape(size):
            raise CorruptError(f"a quantized tensor's shape is {_spelled(size)}")
        per_byte = 2 if node.dtype.name == "quint4x2" else 4
        if prod(size) > node.storage.num_bytes * per_byte:
            raise CorruptError(f"a quantized tensor of shape {size} has {node.storage.num_bytes} bytes")
        packed = node.storage.num_bytes
        state = {"packed": tensor(node, _UINT8, 0, (packed,), (1,), False), "size": size}
    else:
        dtype = dtypes.BY_NAME.get(node.dtype.name.removeprefix("q"), node.dtype)
        state = {"int_repr": tensor(node, dtype, offset, size, stride, requires_grad)}
    state["dtype"] = node.dtype
    state["qscheme"] = scheme
    if scheme == "per_tensor_affine" and len(quantizer) == 3:
        names: tuple[str, ...] = ("scale", "zero_point")
    elif scheme.startswith("per_channel_affine") and len(quantizer) == 4:
        names = ("scales", "zero_points", "axis")
    else:
        return UNKNOWN
    return Opaque("torch.quantized", (), state | dict(zip(names, quantizer[1:], strict=True)))


def _get_layout(args: tuple[Any, ...], budget: Budget) -> Any:
    if len(args) != 1 or type(args[0]) is not str or args[0] not in _LAYOUTS:
        return UNKNOWN
    return Opaque("torch.layout", args)


_LAYOUTS = {
    "torch.strided": (),
    "torch._mkldnn": (),
    "torch.jagged": (),
    "torch.sparse_coo": ("indices", "values", "size", "is_coalesced"),
    "torch.sparse_csr": ("crow_indices", "col_indices", "values", "size"),
    "torch.sparse_bsr": ("crow_indices", "col_indices", "values", "size"),
    "torch.sparse_csc": ("ccol_indices", "row_indices", "values", "size"),
    "torch.sparse_bsc": ("ccol_indices", "row_indices", "values", "size"),
}


def _rebuild_sparse(args: tuple[Any, ...], budget: Budget) -> Any:
    if len(args) != 2 or not isinstance(args[0], Opaque) or args[0].name != "torch.layout":
        return UNKNOWN
    parts = args[1]
    name = args[0].args[0] if args[0].args and type(args[0].args[0]) is str else ""
    names = _LAYOUTS.get(name, ())
    if not names or type(parts) is not tuple or len(parts) not in (3, 4) or len(parts) > len(names):
        return UNKNOWN
    return Opaque(name, (), dict(zip(names, parts, strict=False)))


def _rebuild_nested(args: tuple[Any, ...], budget: Budget) -> Any:
    if len(args) != 4:
        return UNKNOWN
    names = ("buffer", "sizes", "strides", "storage_offsets")
    return Opaque("torch.nested", (), dict(zip(names, args, strict=True)))


def _size(args: tuple[Any, ...], budget: Budget) -> Any:
    if not args:
        return ()
    if len(args) != 1 or type(args[0]) not in (tuple, list) or len(args[0]) > MAX_RANK:
        return UNKNOWN
    return tuple(args[0]) if all(type(length) is int for length in args[0]) else UNKNOWN


def _device(args: tuple[Any, ...], budget: Budget) -> Any:
    if not 1 <= len(args) <= 2 or type(args[0]) is not str:
        return UNKNOWN
    if len(args) == 2 and type(args[1]) is not int:
        return UNKNOWN
    return Opaque("torch.device", args)


def _old_tensor(dtype: DType) -> Callable[[tuple[Any, ...], Budget], Any]:
    """`torch.FloatTensor.__new__(torch.FloatTensor)`: empty until BUILD says what it views."""

    def call(args: tuple[Any, ...], budget: Budget) -> Any:
        if args:
            return UNKNOWN
        return TensorEntry("", dtype, (0,), (1,), MemoryStorage(memoryview(b"")), 0)

    return call


def build(target: Any, state: Any, budget: Budget) -> bool:
    """BUILD on a tensor (torch before 0.4), a module, an array, or a state dict."""
    if type(target) is TensorEntry:
        return _build_tensor(target, state)
    if isinstance(target, (PickledModule, StorageNode)):
        raise CorruptError(f"sets the state of a {target.name} twice")
    if isinstance(target, Opaque):
        if type(target) is Opaque and target.state is None and is_module_state(state):
            # the object is already known by identity (memo), so it changes its class in place
            target.__class__ = PickledModule
            target.state = state
            return True
        return numpy_objects.build(target, state, budget)
    return python_objects.build(target, state, budget)


def _build_tensor(target: TensorEntry, state: Any) -> bool:
    """Source: torch/_tensor.py, `Tensor.__setstate__`."""
    if type(state) is not tuple:
        return False
    if len(state) == 4:  # (storage, offset, size, stride)
        node, offset, size, stride = state
        if _dtype_of(node) is not target.dtype:
            raise CorruptError(f"a tensor of {target.dtype} is made of a storage of {_dtype_of(node)}")
        made = tensor(node, target.dtype, offset, size, stride, False)
    elif len(state) == 3 and type(state[0]) is bool:  # (requires_grad, volatile, hooks)
        made = _changed(target, target.kind, state[0])
    elif len(state) == 5 and isinstance(state[0], TensorEntry) and type(state[3]) is bool:
        made = _changed(state[0], target.kind, state[3])  # (data, grad, hooks, requires_grad, volatile)
    else:
        return False
    for field in ("dtype", "shape", "strides", "storage", "offset", "requires_grad"):
        setattr(target, field, getattr(made, field))
    return True


STORAGE_DTYPES: dict[str, DType] = {}
"""Dotted name of a storage class → its elements. An untyped storage counts bytes."""
for _class, _element in dtypes.BY_STORAGE_CLASS.items():
    for _module in ("torch", "torch.cuda", "torch.storage"):
        STORAGE_DTYPES[f"{_module}.{_class}"] = _element
for _name in ("torch.storage.UntypedStorage", "torch.UntypedStorage", "torch.storage._UntypedStorage"):
    STORAGE_DTYPES[_name] = _UINT8

_REBUILDERS = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._utils._rebuild_qtensor": _rebuild_quantized,
    "torch._utils._rebuild_sparse_tensor": _rebuild_sparse,
    "torch._utils._rebuild_nested_tensor": _rebuild_nested,
    "torch._utils._rebuild_meta_tensor_no_storage": _rebuild_meta,
    "torch._utils._rebuild_wrapper_subclass": _rebuild_wrapper_subclass,
    "torch._utils._rebuild_device_tensor_from_numpy": _rebuild_device_tensor,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _rebuild_device_tensor,
    "torch._utils._rebuild_xla_tensor": _rebuild_device_tensor,
}
_REBUILD_NAMES = frozenset(_REBUILDERS)
_OTHERS = {
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.tensor._rebuild_from_type_v2": _rebuild_from_type,  # where it was before 1.8
    "torch._tensor._rebuild_from_type": _rebuild_from_type,
    "torch.tensor._rebuild_from_type": _rebuild_from_type,
    "torch.serialization._get_layout": _get_layout,
    "torch.Size": _size,
    "torch.device": _device,
}
_NAME_ONLY = (
    *(f"torch.{scheme}" for scheme in ("per_tensor_affine", "per_tensor_symmetric")),
    *(f"torch.per_channel_{scheme}" for scheme in ("affine", "symmetric", "affine_float_qparams")),
    "torch.Tensor",
    *STORAGE_DTYPES,
)

NAMES: dict[str, Any] = {
    **python_objects.NAMES,
    **numpy_objects.NAMES,
    **{f"torch.{name}": dtype for name, dtype in dtypes.BY_NAME.items()},
    **{name: Known(name, call) for name, call in (_REBUILDERS | _OTHERS).items()},
    **{name: Known(name, python_objects.is_name_only) for name in _NAME_ONLY},
    **{
        f"{module}.{dtypes_class.removesuffix('Storage')}Tensor": Known(
            f"{module}.{dtypes_class.removesuffix('Storage')}Tensor", _old_tensor(element)
        )
        for dtypes_class, element in dtypes.BY_STORAGE_CLASS.items()
        for module in ("torch", "torch.cuda")
    },
    "torch.nn.parameter.Parameter": Known("torch.nn.parameter.Parameter", _new_parameter, new=True),
    "torch.autograd.variable.Variable": Known("torch.autograd.variable.Variable", _new_variable, new=True),
}
"""What stands for each dotted name that a torch pickle may use."""


def torch_shapes(persistent_load: Callable[[Any], Any] | None = None) -> Shapes:
    """The shapes for one container, whose storages `persistent_load` finds."""
    return Shapes(NAMES, build, persistent_load)


def storage_type(kind: Any) -> DType | None:
    """The element type of a storage class as a pickle names it; None for anything else.

    Source: torch/serialization.py, `find_class`: any module's `XStorage` is torch's.
    """
    if not isinstance(kind, Global):
        return None
    if kind.name in STORAGE_DTYPES:
        return STORAGE_DTYPES[kind.name]
    return dtypes.BY_STORAGE_CLASS.get(kind.name.rpartition(".")[2])


_TEXT_ID = re.compile(
    r"\('storage', <class '(?P<kind>torch\.[\w.]*Storage)'>, '(?P<key>\w+)', '(?P<place>[\w:]+)', "
    r"(?P<count>\d{1,18})(?P<no_view>, None)?\)"
)


def storage_id(persistent_id: Any) -> Any:
    """A storage's persistent id as a tuple.

    Protocol 0 can only write the text of it, which torch itself does not read back.
    """
    if type(persistent_id) is not str:
        return persistent_id
    found = _TEXT_ID.fullmatch(persistent_id)
    if found is None:
        return persistent_id
    parts = ("storage", NAMES.get(found["kind"]), found["key"], found["place"], int(found["count"]))
    return (*parts, None) if found["no_view"] else parts

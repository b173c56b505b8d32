"""Dense tensors and parameters in a torch pickle, every bound of them checked.

Source: torch/_utils.py, torch/_tensor.py (`__setstate__`), torch/nn/parameter.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ptsave.core.dtypes import BY_STORAGE_CLASS, DType
from ptsave.core.nodes import BITS, PARAMETER_, UNRESOLVED, Opaque, TensorEntry
from ptsave.core.storage import MemoryStorage
from ptsave.core.tree import are_scalars, is_scalar
from ptsave.core.values.resolved import resolved
from ptsave.errors import CorruptError, LimitError
from ptsave.formats.kinds.objects import META, META_PARTS, PARAMETER
from ptsave.formats.pickle.shapes import UNKNOWN, Budget, Known, known_names
from ptsave.formats.torch.storages import UINT8, MetaStorage, StorageNode

MAX_RANK = 64
"""Cap on a tensor's number of dimensions, as in torch."""
MAX_EXPANDED_ELEMENTS = 2**32
"""Cap on the elements of a view that repeats its storage (stride 0): a few bytes can claim any number."""

MAX_NAMED = 5
"""How many attributes are named."""
_INT64_MAX = 2**63 - 1


def tensor(
    node: Any, dtype: DType, offset: Any, size: Any, stride: Any, requires_grad: Any, kind: str = "tensor"
) -> TensorEntry:
    """The view of `node`'s storage, every bound of it checked.

    `offset` and `stride` are in elements of `dtype`.

    Raises: CorruptError when any element would lie outside the storage, or a number is not one;
    LimitError past MAX_RANK or MAX_EXPANDED_ELEMENTS.
    """
    if type(node) is not StorageNode:
        raise CorruptError(f"the pickle makes a tensor from a {spelled(node)}, which is not a storage")
    if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride):
        raise CorruptError(f"a tensor's shape {spelled(size)} and strides {spelled(stride)} do not match")
    if len(size) > MAX_RANK:
        raise LimitError("rank", MAX_RANK, len(size))
    if type(offset) is not int or not 0 <= offset <= _INT64_MAX:
        raise CorruptError(f"a tensor's offset is {spelled(offset)}")
    if type(requires_grad) is not bool:
        raise CorruptError(f"a tensor's requires_grad is {spelled(requires_grad)}")
    _check_gradient(dtype, requires_grad)
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


def _check_gradient(dtype: DType, requires_grad: bool) -> None:
    """Raises: CorruptError for a gradient of integers, which torch refuses."""
    if requires_grad and dtype.kind not in ("float", "complex"):
        raise CorruptError(f"a tensor of {dtype} requires a gradient, which torch does not make")


def are_sizes(size: Any, stride: Any) -> bool:
    """Whether they are the shape and the strides of a tensor: as torch writes them, fixed."""
    return all(
        type(sizes) is tuple and all(type(length) is int and 0 <= length <= _INT64_MAX for length in sizes)
        for sizes in (size, stride)
    )


def spelled(value: Any) -> str:
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
        node, offset, size, stride, requires_grad, hooks = args
        metadata = None
    elif len(args) == 7:
        node, offset, size, stride, requires_grad, hooks, metadata = args
    else:
        return UNKNOWN
    if type(node) is MetaStorage:
        if not are_sizes(size, stride):
            return UNKNOWN
        parts = (node.dtype, size, stride, requires_grad)
        return Opaque(META, (), dict(zip(META_PARTS, parts, strict=True)))
    _note_hooks(hooks, budget)
    made = tensor(node, _dtype_of(node), offset, size, stride, requires_grad)
    return _with_metadata(made, metadata, budget) if metadata else made


def _rebuild_tensor_v3(args: tuple[Any, ...], budget: Budget) -> Any:
    if not 7 <= len(args) <= 8 or type(args[6]) is not DType:
        return UNKNOWN
    node, offset, size, stride, requires_grad, hooks, dtype = args[:7]
    _note_hooks(hooks, budget)
    made = tensor(node, dtype, offset, size, stride, requires_grad)
    return _with_metadata(made, args[7], budget) if len(args) == 8 and args[7] else made


def _dtype_of(node: Any) -> DType:
    return node.dtype if type(node) is StorageNode else UINT8


def _with_metadata(entry: TensorEntry, metadata: Any, budget: Budget) -> TensorEntry:
    """`entry` as torch has it after `set_tensor_metadata`: that a bit is named sets it, whatever its value.

    Source: torch/csrc/jit/serialization/pickler.h, `setTensorMetadata`.
    """
    kinds = {(type(name), type(value)) for name, value in metadata.items()} if type(metadata) is dict else ()
    if kinds != {(str, bool)}:
        raise CorruptError("a tensor's metadata is malformed")
    for name in metadata:
        if name not in BITS:
            budget.drop(f"the metadata {spelled(name)} of tensors, which only the device that wrote it knows")
    bits = [name for name in BITS if name in metadata]
    if bits:
        numbers = _CONJUGATED if "conj" in bits else _NEGATED
        if entry.dtype.kind not in numbers or entry.dtype.itemsize < _SMALLEST[entry.dtype.kind]:
            raise CorruptError(f"a tensor of {entry.dtype} cannot be {' and '.join(bits)}")
        entry.kind = "_".join(bits)
    return entry


_CONJUGATED = ("complex",)
_NEGATED = ("complex", "float", "int", "uint")
_SMALLEST = {"complex": 4, "float": 2, "int": 1, "uint": 1}
"""Bytes of the smallest element that torch conjugates or negates, by kind: no float8."""


def _note_hooks(hooks: Any, budget: Budget) -> None:
    if hooks:
        budget.drop("hooks that the file sets on tensors")


def _rebuild_parameter(args: tuple[Any, ...], budget: Budget) -> Any:
    if len(args) not in (3, 4) or type(args[1]) is not bool:
        return UNKNOWN
    if len(args) == 4:
        drop_attributes(args[3], budget)
    return _parameter(args[0], args[1])


def _new_parameter(args: tuple[Any, ...], budget: Budget) -> Any:
    """`Parameter.__new__(Parameter, data, requires_grad)`, as torch before 0.4 wrote it."""
    if len(args) not in (1, 2) or (len(args) == 2 and type(args[1]) is not bool):
        return UNKNOWN
    return _parameter(args[0], args[1] if len(args) == 2 else True)


def _new_variable(args: tuple[Any, ...], budget: Budget) -> Any:
    if len(args) != 1 or not isinstance(args[0], TensorEntry):
        return UNKNOWN
    return changed(args[0], args[0].kind, False)


def _parameter(data: Any, requires_grad: bool) -> Any:
    if isinstance(data, TensorEntry):
        kind = "parameter" if data.kind in ("tensor", *UNRESOLVED) else data.kind
        return changed(data, kind, requires_grad)
    if isinstance(data, Opaque):
        return Opaque(PARAMETER, (), {"data": data, "requires_grad": requires_grad})
    return UNKNOWN


def changed(entry: TensorEntry, kind: str, requires_grad: bool) -> TensorEntry:
    """A copy of the entry as another kind of tensor, of the same values: a conjugate stays one.

    Raises: CorruptError for a gradient of integers.
    """
    _check_gradient(entry.dtype, requires_grad)
    if entry.kind in UNRESOLVED and kind != entry.kind:
        bits = entry.kind.removeprefix(PARAMETER_)
        if kind in _WITH_BITS:
            kind = _WITH_BITS[kind] + bits
        else:
            entry = resolved(entry)
    return TensorEntry(
        "", entry.dtype, entry.shape, entry.strides, entry.storage, entry.offset, kind, requires_grad
    )


_WITH_BITS = {"tensor": "", "parameter": PARAMETER_}
"""The kinds that also say of a view that it is conjugate or negative, by what comes before that."""


def drop_attributes(state: Any, budget: Budget) -> None:
    """Say what `state`, which a file sets on a tensor, would set, where there is any: it is not kept.

    Plain data under a user's own name (`tag = "x"`, `partition_dim = 0`) and torch's own marks are noted: no
    state dict has them, and what they stand beside has the same values without them. All else is a loss:
    `data` replaces a tensor's values, and another tensor may be a weight.

    Source: torch/_utils.py, `_set_obj_state`.
    """
    for part in state if type(state) is tuple else (state,):
        if type(part) is dict and part:
            budget.spend(len(part))
            noted = [name for name, value in part.items() if _is_tag(name, value, budget)]
            lost = part.keys() - noted if len(noted) < len(part) else ()
            if noted:
                budget.note(f"left out attributes of tensors, which no state dict has ({_names(noted)})")
            if lost:
                left = [name for name in part if name in lost]
                budget.drop(f"attributes that the file sets on tensors ({_names(left)})")
        elif part:
            budget.drop("a state that the file sets on tensors")


def _names(names: list[Any]) -> str:
    more = f", … {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(spelled(name) for name in names[:MAX_NAMED]) + more


def _is_tag(name: Any, value: Any, budget: Budget) -> bool:
    """Whether an attribute is plain data, under a mark's name or one that is neither torch's nor private."""
    if type(name) is not str or name in OWN_ATTRIBUTES:
        return False
    if name.startswith("_") and not name.startswith(MARKS):
        return False
    if type(value) not in (list, tuple, set, frozenset):
        return is_scalar(value)
    budget.spend(len(value))
    return are_scalars(value)


MARKS = ("_is_buffer", "_is_param", "_ddp_ignored", "_fsdp_flattened", "_dynamo_", "_has_dynamo_dim_marking")
"""How the private names begin under which torch marks tensors: buffers, what a compiled optimizer holds.

Source: torch/nn/parameter.py, torch/nn/parallel/distributed.py, torch/distributed/fsdp/_common_utils.py,
torch/_dynamo/decorators.py."""

OWN_ATTRIBUTES = frozenset(
    {
        "H",
        "T",
        "data",
        "device",
        "dtype",
        "grad",
        "grad_dtype",
        "grad_fn",
        "imag",
        "is_cpu",
        "is_cuda",
        "is_ipu",
        "is_leaf",
        "is_maia",
        "is_meta",
        "is_mkldnn",
        "is_mps",
        "is_mtia",
        "is_nested",
        "is_quantized",
        "is_sparse",
        "is_sparse_csr",
        "is_vulkan",
        "is_xla",
        "is_xpu",
        "itemsize",
        "layout",
        "mH",
        "mT",
        "name",
        "names",
        "nbytes",
        "ndim",
        "output_nr",
        "real",
        "requires_grad",
        "retains_grad",
        "shape",
        "volatile",
    }
)
"""The attributes of a tensor that are not an instance's own: setting one does something, or fails.

Source: torch/csrc/autograd/python_variable.cpp, `THPVariable_properties`."""


def _old_tensor(dtype: DType) -> Callable[[tuple[Any, ...], Budget], Any]:
    """`torch.FloatTensor.__new__(torch.FloatTensor)`: empty until BUILD says what it views."""

    def call(args: tuple[Any, ...], budget: Budget) -> Any:
        if args:
            return UNKNOWN
        return TensorEntry("", dtype, (0,), (1,), MemoryStorage(memoryview(b"")), 0)

    return call


def build_tensor(target: TensorEntry, state: Any) -> bool:
    """Source: torch/_tensor.py, `Tensor.__setstate__`."""
    if type(state) is not tuple:
        return False
    if len(state) in (4, 5) and (target.num_elements or target.kind in UNRESOLVED):
        raise CorruptError(
            "the pickle sets the values of a tensor that already has values, which may be in use"
        )
    if len(state) == 4:  # (storage, offset, size, stride)
        node, offset, size, stride = state
        if _dtype_of(node) is not target.dtype:
            raise CorruptError(f"a tensor of {target.dtype} is made of a storage of {_dtype_of(node)}")
        made = tensor(node, target.dtype, offset, size, stride, False, target.kind)
    elif len(state) == 3 and type(state[0]) is bool:  # (requires_grad, volatile, hooks)
        made = changed(target, target.kind, state[0])
    elif len(state) == 5 and isinstance(state[0], TensorEntry) and type(state[3]) is bool:
        made = changed(state[0], target.kind, state[3])  # (data, grad, hooks, requires_grad, volatile)
    else:
        return False
    for field in ("dtype", "shape", "strides", "storage", "offset", "kind", "requires_grad"):
        setattr(target, field, getattr(made, field))
    return True


NAMES: dict[str, Any] = {
    **known_names(
        "torch._utils",
        {
            "_rebuild_tensor": _rebuild_tensor,
            "_rebuild_tensor_v2": _rebuild_tensor_v2,
            "_rebuild_tensor_v3": _rebuild_tensor_v3,
            "_rebuild_parameter": _rebuild_parameter,
            "_rebuild_parameter_with_state": _rebuild_parameter,
        },
    ),
    **{
        f"{module}.{name}": Known(f"{module}.{name}", _old_tensor(dtype))
        for storage_class, dtype in BY_STORAGE_CLASS.items()
        for name in (storage_class.removesuffix("Storage") + "Tensor",)
        for module in ("torch", "torch.cuda")
    },
    "torch.nn.parameter.Parameter": Known("torch.nn.parameter.Parameter", _new_parameter, new=True),
    "torch.autograd.variable.Variable": Known("torch.autograd.variable.Variable", _new_variable, new=True),
}
"""What stands for each of torch's names for dense tensors."""

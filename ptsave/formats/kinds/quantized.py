"""Quantized tensors as inert objects: what the reader makes, and the writer and a live model take.

`Opaque("torch.quantized")` with `int_repr` (its integers, a tensor), `dtype` (`qint8`, …), `qscheme`, and
`scale` and `zero_point`, or for each channel `scales`, `zero_points` (tensors) and `axis`. Where a byte holds
several integers, `packed` (the storage's bytes), `size`, `stride` and `offset` take the place of `int_repr`.

Source: `torch._utils._rebuild_qtensor`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import copysign, inf
from typing import Any

from ptsave.core.dtypes import BY_NAME, DType
from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.core.storage import MemoryStorage

NAME = "torch.quantized"
PER_TENSOR = "per_tensor_affine"
PER_CHANNEL = ("per_channel_affine", "per_channel_affine_float_qparams")
DTYPES = ("qint8", "quint8", "qint32")
"""Those with one element to an integer."""
PACKED = {"quint4x2": 4, "quint2x4": 2}
"""Those with several elements to a byte, the first in its lowest bits → how many bits an element has."""


def is_quantized(value: Any) -> bool:
    """Whether `value` is a quantized tensor with all that it takes to make it again."""
    if not isinstance(value, Opaque) or value.name != NAME or not isinstance(value.state, dict):
        return False
    state = value.state
    integers, dtype = state.get("packed", state.get("int_repr")), state.get("dtype")
    if not isinstance(integers, TensorEntry) or not isinstance(dtype, DType):
        return False
    if dtype.name not in (PACKED if "packed" in state else DTYPES):
        return False
    if integers.dtype.name != ("uint8" if "packed" in state else dtype.name.removeprefix("q")):
        return False
    if state.get("qscheme") == PER_TENSOR:
        return isinstance(state.get("scale"), float) and isinstance(state.get("zero_point"), int)
    return (
        state.get("qscheme") in PER_CHANNEL
        and isinstance(state.get("scales"), TensorEntry)
        and isinstance(state.get("zero_points"), TensorEntry)
        and isinstance(state.get("axis"), int)
    )


def integers_of(value: Opaque) -> TensorEntry:
    """The bytes of a quantized tensor: one integer for each element, or several in a byte."""
    found: TensorEntry = value.state["packed"] if "packed" in value.state else value.state["int_repr"]
    return found


def parameters(value: Opaque) -> tuple[Any, ...]:
    """What follows the scheme's name among the parameters of a quantizer."""
    state = value.state
    names = ("scale", "zero_point") if state["qscheme"] == PER_TENSOR else ("scales", "zero_points", "axis")
    return tuple(state[name] for name in names)


# --- quantized layers ---------------------------------------------------------------------------------

SPARSE_LINEAR = "sparse.LinearPackedParamsBase"
"""Of a linear layer whose weight is stored in blocks: torch makes a dense one of it in `state_dict()`."""

_PACKED = "__torch__.torch.classes."
"""How the classes of packed parameters are called, which C++ keeps and pickles as `torch.ScriptObject`."""


def packed_class(value: Any) -> str:
    """The class of a packed parameter (`quantized.LinearPackedParamsBase`), or "" for anything else."""
    if not isinstance(value, Opaque) or value.name != "torch.ScriptObject":
        return ""
    state = value.state
    if type(state) is not tuple or len(state) != 2 or type(state[1]) is not str:
        return ""
    return state[1].removeprefix(_PACKED) if state[1].startswith(_PACKED) else ""


def module_entries(name: str, state: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    """What the class of a pickled quantized module adds to its state dict, beside parameters and buffers.

    `state`: the module's attributes. The packed parameters of a recurrent layer stay as they are pickled, as
    torch's own state dict has them.

    Source: `_save_to_state_dict` in torch/ao/nn/quantized/modules/linear.py, embedding_ops.py,
    functional_modules.py, dynamic/modules/rnn.py and torch/ao/nn/sparse/quantized/linear.py.
    """
    params: Any = state.get("_packed_params")
    if packed_class(params).endswith("LinearPackedParamsBase"):
        return [("dtype", state.get("dtype")), ("_packed_params", params.state[0])]
    weight: Any = state.get("_packed_weight")
    if packed_class(weight) == "quantized.EmbeddingPackedParamsBase":
        tensor = _embedding_weight(weight.state[0])
        if tensor is not None:
            return [("dtype", state.get("dtype")), ("_packed_weight", tensor)]
    if packed_class(state.get("param")) == "rnn.CellParamsBase":
        return [("param", state["param"])]
    cell = ("_packed_weight_ih", "_packed_weight_hh")
    if all(packed_class(state.get(key)) for key in cell):
        return [(key, state[key]) for key in cell]
    inner = state["_modules"].get("_packed_params") if isinstance(state.get("_modules"), dict) else None
    packed = inner.state if isinstance(inner, Opaque) else None
    if isinstance(packed, dict):
        packed = packed.get("_packed_params")
    elif type(packed) is tuple and packed:  # of a sparse layer
        packed = packed[0]
    if packed_class(packed) or (name.startswith("torch.") and name.endswith(".QFunctional")):
        return scale_tensors(state.get("scale"), state.get("zero_point"))
    return []


def scale_tensors(scale: Any, zero_point: Any) -> list[tuple[str, Any]]:
    """`torch.tensor(scale)` and `torch.tensor(zero_point)`, as a quantized layer's state dict has them.

    One that is a tensor already stays it.
    """
    made = []
    for name, value in (("scale", scale), ("zero_point", zero_point)):
        if type(value) is float:
            value = _scalar("float32", _float32(value))
        elif type(value) is int and -(2**63) <= value < 2**63:
            value = _scalar("int64", struct.pack("<q", value))
        if isinstance(value, (TensorEntry, Opaque)):
            made.append((name, value))
    return made


def _float32(value: float) -> bytes:
    """The bytes of `value` as torch rounds it: infinite where it is too large."""
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", copysign(inf, value))


def _scalar(dtype: str, data: bytes) -> TensorEntry:
    return TensorEntry("", BY_NAME[dtype], (), (), MemoryStorage(memoryview(data)), 0)


def _embedding_weight(content: Any) -> Any:
    """The one tensor in `(version, [weight], [], [number of bits])`."""
    if type(content) is tuple and len(content) >= 2 and type(content[1]) is list and len(content[1]) == 1:
        return content[1][0]
    return None

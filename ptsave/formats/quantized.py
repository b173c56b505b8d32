"""Quantized tensors as inert objects: what the reader makes, and the writer and a live model take.

`Opaque("torch.quantized")` with `int_repr` (its integers, a tensor), `dtype` (`qint8`, …), `qscheme`, and
`scale` and `zero_point`, or for each channel `scales`, `zero_points` (tensors) and `axis`.

Source: `torch._utils._rebuild_qtensor`.
"""

from __future__ import annotations

from typing import Any

from ptsave.core.dtypes import DType
from ptsave.core.nodes import Opaque, TensorEntry

NAME = "torch.quantized"
PER_TENSOR = "per_tensor_affine"
PER_CHANNEL = ("per_channel_affine", "per_channel_affine_float_qparams")
DTYPES = ("qint8", "quint8", "qint32")
"""Those with one element to an integer."""


def is_quantized(value: Any) -> bool:
    """Whether `value` is a quantized tensor with all that it takes to make it again."""
    if not isinstance(value, Opaque) or value.name != NAME or not isinstance(value.state, dict):
        return False
    state = value.state
    integers, dtype = state.get("int_repr"), state.get("dtype")
    if not isinstance(integers, TensorEntry) or not isinstance(dtype, DType) or dtype.name not in DTYPES:
        return False
    if integers.dtype.name != dtype.name.removeprefix("q"):
        return False
    if state.get("qscheme") == PER_TENSOR:
        return isinstance(state.get("scale"), float) and isinstance(state.get("zero_point"), int)
    return (
        state.get("qscheme") in PER_CHANNEL
        and isinstance(state.get("scales"), TensorEntry)
        and isinstance(state.get("zero_points"), TensorEntry)
        and isinstance(state.get("axis"), int)
    )


def parameters(value: Opaque) -> tuple[Any, ...]:
    """What follows the scheme's name among the parameters of a quantizer."""
    state = value.state
    names = ("scale", "zero_point") if state["qscheme"] == PER_TENSOR else ("scales", "zero_points", "axis")
    return tuple(state[name] for name in names)

"""Quantized tensors as float32, computed as they are read, equal to torch's `dequantize()` bit by bit.

Source: fbgemm's `Dequantize`: scale · (q - zero_point), the scale as float32. For each channel, the kernels
in ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp: the difference in float32, its product with a
float64 scale in float64; all in float32 where zero points are floating-point (ATen/quantized/Quantizer.cpp).
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from ptsave.core.dtypes import BY_NAME
from ptsave.core.nodes import Opaque, TensorEntry, contiguous_strides
from ptsave.core.storage import Storage
from ptsave.core.values.gather import contiguous
from ptsave.core.values.numbers import decode
from ptsave.errors import LossyError, Option
from ptsave.formats.kinds.quantized import PACKED, PER_TENSOR, integers_of

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_FLOAT32 = BY_NAME["float32"]
_BYTES = 4
_NUMBERS = ("float", "int", "uint")
STEP_ELEMENTS = 64 * 1024
"""How many elements are computed at a time."""


def dequantized(value: Opaque) -> TensorEntry:
    """The values of a quantized tensor (see `formats.kinds.quantized`) as a contiguous tensor of float32.

    Raises: LossyError where its parts do not go together.
    """
    state = value.state
    shape = state["size"] if "packed" in state else state["int_repr"].shape
    if state["qscheme"] == PER_TENSOR:
        if not -(2**31) <= state["zero_point"] < 2**31:
            raise _damaged("its zero point is not an integer of 32 bits")
    else:
        axis, scales, zero_points = state["axis"], state["scales"], state["zero_points"]
        channels = (shape[axis],) if 0 <= axis < len(shape) else None
        if scales.shape != channels or zero_points.shape != channels:
            raise _damaged(f"of shape {list(shape)} and axis {axis}, it has scales {list(scales.shape)}")
        if not all(entry.dtype.numpy and entry.dtype.kind in _NUMBERS for entry in (scales, zero_points)):
            raise _damaged(f"its scales are {scales.dtype}, its zero points {zero_points.dtype}")
    if "packed" in state and (state["offset"] or state["stride"] != contiguous_strides(shape)):
        raise _damaged(f"it packs several elements into a byte, and has the strides {list(state['stride'])}")
    storage = DequantizedStorage(value, shape)
    return TensorEntry("", _FLOAT32, shape, contiguous_strides(shape), storage, 0)


def _damaged(why: str) -> LossyError:
    what = f"a quantized tensor is damaged: {why}"
    return LossyError(what, "", ("save it again, or leave it out", Option("drop", lead=" with ")))


class DequantizedStorage(Storage):
    """The elements of a quantized tensor, row-major, as float32."""

    def __init__(self, value: Opaque, shape: tuple[int, ...]) -> None:
        state = value.state
        integers = integers_of(value)
        self.num_bytes = prod(shape) * _BYTES
        self._integers, self._offset = contiguous(integers)
        self._dtype = integers.dtype
        self._bits = PACKED.get(state["dtype"].name)
        self.sources: tuple[Storage, ...] = (integers.storage,)
        self._one: tuple[float, int] | None = None
        if state["qscheme"] == PER_TENSOR:
            self._one = state["scale"], state["zero_point"]
            return
        self._inner = prod(shape[state["axis"] + 1 :])
        self._num_channels = shape[state["axis"]]
        self._scales, self._zero_points = state["scales"], state["zero_points"]
        self.sources += (self._scales.storage, self._zero_points.storage)
        self._is_float = self._scales.dtype.kind == self._zero_points.dtype.kind == "float"

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        import numpy as np

        first, last = offset_bytes // _BYTES, -(-(offset_bytes + len(buffer)) // _BYTES)
        skip = offset_bytes - first * _BYTES
        for start in range(first, last, STEP_ELEMENTS):
            with np.errstate(all="ignore"):
                values = self._values(start, min(start + STEP_ELEMENTS, last)).astype("<f4", copy=False)
            at = max((start - first) * _BYTES - skip, 0)
            made = memoryview(values.tobytes())[skip if start == first else 0 :][: len(buffer) - at]
            buffer[at : at + len(made)] = made

    def _values(self, first: int, last: int) -> Array:
        import numpy as np

        integers = self._read_integers(first, last)
        if self._one is not None:
            scale, zero_point = self._one
            return (integers - zero_point).astype("<f4") * np.float32(scale)
        channels = np.arange(first, last) // self._inner
        low = int(channels[0])
        scales, zero_points = (
            self._of_channels(entry, low, int(channels[-1]) + 1)[channels - low]
            for entry in (self._scales, self._zero_points)
        )
        gaps = integers.astype("<f4") - zero_points.astype("<f4" if self._is_float else "<i8").astype("<f4")
        return gaps * scales.astype("<f4" if self._is_float else "<f8")  # type: ignore[no-any-return]

    def _read_integers(self, first: int, last: int) -> Array:
        import numpy as np

        if self._bits is None:
            item = self._dtype.itemsize
            buffer = memoryview(bytearray((last - first) * item))
            self._integers.read_into(self._offset + first * item, buffer)
            return decode(buffer, self._dtype).astype("<i8")
        each = 8 // self._bits
        begin = first // each
        buffer = memoryview(bytearray(-(-last // each) - begin))
        self._integers.read_into(self._offset + begin, buffer)
        shifts = np.arange(0, 8, self._bits, dtype=np.uint8)
        parts = (np.frombuffer(buffer, np.uint8)[:, None] >> shifts) & np.uint8((1 << self._bits) - 1)
        made: Array = parts.reshape(-1)[first - begin * each : last - begin * each].astype("<i8")
        return made

    def _of_channels(self, entry: TensorEntry, first: int, last: int) -> Array:
        """The numbers of the channels from `first` to `last`, counted on where they begin again."""
        import numpy as np

        count = self._num_channels
        if last - first >= count:
            repeated: Array = np.take(_read(entry, 0, count), np.arange(first, last) % count)
            return repeated
        begin, end = first % count, (last - 1) % count + 1
        if begin < end:
            return _read(entry, begin, end)
        return np.concatenate([_read(entry, begin, count), _read(entry, 0, end)])


def _read(entry: TensorEntry, first: int, last: int) -> Array:
    storage, offset = contiguous(entry)
    item = entry.dtype.itemsize
    buffer = memoryview(bytearray((last - first) * item))
    storage.read_into(offset + first * item, buffer)
    values: Array = decode(buffer, entry.dtype)
    return values

"""Casting floating-point tensors block by block, as torch casts them, bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ptsave.core.dtypes import BY_NAME, DType
from ptsave.core.nodes import TensorEntry, contiguous_strides
from ptsave.core.storage import Storage
from ptsave.core.values.gather import contiguous
from ptsave.core.values.numbers import decode

if TYPE_CHECKING:
    import numpy as np

CASTABLE = {name: BY_NAME[name] for name in ("float64", "float32", "float16", "bfloat16")}
"""What can be cast to."""


def can_cast(dtype: DType) -> bool:
    """Whether `--dtype` touches tensors of `dtype`: real floating-point ones."""
    return dtype.kind == "float" and dtype.name != "float4_e2m1fn_x2"


def cast(entry: TensorEntry, dtype: DType) -> TensorEntry:
    """`entry` as a contiguous tensor of `dtype`, computed as it is read."""
    return TensorEntry(
        entry.name,
        dtype,
        entry.shape,
        contiguous_strides(entry.shape),
        CastStorage(entry, dtype),
        0,
        entry.kind,
        entry.requires_grad,
    )


class CastStorage(Storage):
    """The elements of a tensor in another dtype, rounded to nearest, ties to even.

    Narrowing goes through float32, as torch's own conversions do (c10/util/Half.h, BFloat16.h take a
    float), so that float64 → bfloat16 rounds twice here as it does there. A NaN stays one; as bfloat16 it is
    0x7fc0, where torch says that or 0xffff, as the tensor's layout and the processor have it.
    """

    def __init__(self, entry: TensorEntry, dtype: DType) -> None:
        self.num_bytes = entry.num_elements * dtype.itemsize
        self._offset: int
        self.inner: Storage
        self.inner, self._offset = contiguous(entry)
        self._from, self._to = entry.dtype, dtype
        self._overflows: dict[int, int] = {}

    @property
    def num_overflowed(self) -> int:
        """Finite elements that became infinite, of what has been read so far."""
        return sum(self._overflows.values())

    def expect(self, offset_bytes: int, num_bytes: int) -> None:
        source, target = self._from.itemsize, self._to.itemsize
        first, last = offset_bytes // target, -(-(offset_bytes + num_bytes) // target)
        self.inner.expect(self._offset + first * source, (last - first) * source)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        item = self._to.itemsize
        first, last = offset_bytes // item, -(-(offset_bytes + len(buffer)) // item)
        source = bytearray((last - first) * self._from.itemsize)
        self.inner.read_into(self._offset + first * self._from.itemsize, memoryview(source))
        values = decode(memoryview(source), self._from)
        result, overflowed = converted(values, self._to)
        if overflowed:
            self._overflows[offset_bytes] = overflowed
        skip = offset_bytes - first * item
        buffer[:] = result.view("u1").data[skip : skip + len(buffer)]


def converted(values: np.ndarray[Any, Any], dtype: DType) -> tuple[np.ndarray[Any, Any], int]:
    """`values` as elements of `dtype` (bfloat16 as its bits), and how many finite ones overflowed."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):
        if dtype.name == "float64":
            return _quiet(np.ascontiguousarray(values, "<f8"), 1 << 51), 0
        singles = np.ascontiguousarray(values, "<f4")
        if dtype.name == "float32":
            result = (
                singles if values.dtype == singles.dtype else _quiet(singles, 1 << 22)
            )  # bfloat16: shifted
        elif dtype.name == "float16":
            result = _quiet(singles, 1 << 22).astype("<f2")
        else:
            bits = singles.view("<u4")
            rounded = bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))
            result = (rounded >> np.uint32(16)).astype("<u2")
            nan = np.isnan(singles)
            if nan.any():
                result[nan] = 0x7FC0
            infinite = (result & 0x7FFF) == 0x7F80
            return result, int(np.count_nonzero(infinite & np.isfinite(values))) if infinite.any() else 0
    infinite = np.isinf(result)
    return result, int(np.count_nonzero(infinite & np.isfinite(values))) if infinite.any() else 0


def _quiet(result: np.ndarray[Any, Any], quiet_bit: int) -> np.ndarray[Any, Any]:
    """`result` with its signalling NaNs made quiet, as the processor does when it converts for torch."""
    import numpy as np

    nan = np.isnan(result)
    if nan.any():
        if not result.flags.writeable:
            result = result.copy()
        result.view(f"<u{result.itemsize}")[nan] |= quiet_bit
    return result

"""The numbers in a tensor, streamed and decoded without torch, in bounded memory.

NumPy has no bfloat16, no 8-bit or 4-bit float and no half-precision complex; these are decoded to the
narrowest NumPy type that holds every one of their values exactly.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from ptsave.core.dtypes import DType
from ptsave.core.nodes import TensorEntry
from ptsave.core.storage import BLOCK_BYTES
from ptsave.core.values.gather import contiguous
from ptsave.core.values.resolved import resolved
from ptsave.errors import LimitError

if TYPE_CHECKING:
    import numpy

MAX_REPEATED_BYTES = 4 * 1024**3
"""Cap on the bytes that a view may spell by repeating those of a smaller storage (strides of 0, or
overlapping ones), so that the time taken grows with the file and not with a number in it."""
MAX_REPEATS = 16
"""A view no larger than this many times its storage is never refused."""


class SmallFloat(NamedTuple):
    """A float of at most 8 bits: sign, exponent, mantissa, and which patterns are not numbers."""

    exponent_bits: int
    mantissa_bits: int
    bias: int
    infinity: int | None
    """The pattern without its sign bit; None where the format has none."""
    first_nan: int | None
    """The lowest pattern without its sign bit that is NaN; None where none is."""
    nan_is_negative_zero: bool = False
    """The `uz` formats: the one NaN is where -0 would be."""
    signed: bool = True


SMALL_FLOATS = {
    "float8_e4m3fn": SmallFloat(4, 3, 7, None, 0x7F),
    "float8_e5m2": SmallFloat(5, 2, 15, 0x7C, 0x7D),
    "float8_e4m3fnuz": SmallFloat(4, 3, 8, None, None, nan_is_negative_zero=True),
    "float8_e5m2fnuz": SmallFloat(5, 2, 16, None, None, nan_is_negative_zero=True),
    "float8_e8m0fnu": SmallFloat(8, 0, 127, None, 0xFF, signed=False),
    "float4_e2m1fn_x2": SmallFloat(2, 1, 1, None, None),
}
"""Sources: OCP 8-bit Floating Point Specification 1.0 (e4m3fn, e5m2); "8-bit Numerical Formats for Deep
Neural Networks", arXiv 2206.02915 (the fnuz formats); OCP Microscaling Formats 1.0 (e8m0, e2m1)."""

_RAW = {
    "bfloat16": "<u2",
    "complex32": "<f2",
    "qint8": "|i1",
    "qint32": "<i4",
    "bits16": "<u2",
}
"""The NumPy type of the stored words, where the dtype table names none and `|u1` is not it."""

_SCALAR = {
    "float64": "<d",
    "float32": "<f",
    "float16": "<e",
    "int64": "<q",
    "int32": "<i",
    "int16": "<h",
    "int8": "<b",
    "uint64": "<Q",
    "uint32": "<I",
    "uint16": "<H",
    "uint8": "<B",
    "bool": "<?",
}
"""The `struct` format of a single element."""


def values_per_element(dtype: DType) -> int:
    """How many numbers one element of `dtype` decodes to: 2 for float4_e2m1fn_x2, otherwise 1."""
    return 2 if dtype.name == "float4_e2m1fn_x2" else 1


def has_values(entry: TensorEntry) -> bool:
    """Whether there are bytes behind `entry`: a tensor on the meta device has a shape alone."""
    return not entry.num_bytes or entry.storage.num_bytes > 0


def raw_blocks(entry: TensorEntry, max_bytes: int = BLOCK_BYTES) -> Iterator[memoryview]:
    """The bytes of `entry` in row-major order, in whole elements, `max_bytes` (or one element) at a time.

    They are those of its values: of a conjugate or negative view, as if it were resolved. A block is
    valid until the next one is asked for.

    Raises: LimitError when a small storage is repeated past MAX_REPEATED_BYTES; CorruptError or
    UnreadableError when the storage cannot be read.
    """
    num_bytes = entry.num_bytes
    if not num_bytes:
        return
    if num_bytes > MAX_REPEATED_BYTES and num_bytes > MAX_REPEATS * entry.storage.num_bytes:
        raise LimitError("repeated_bytes", MAX_REPEATED_BYTES, num_bytes, entry.name)
    entry = resolved(entry)
    itemsize = entry.dtype.itemsize
    step = max(max_bytes // itemsize, 1) * itemsize
    storage, start = contiguous(entry)
    buffer = memoryview(bytearray(min(step, num_bytes)))
    storage.expect(start, num_bytes)
    for done in range(0, num_bytes, step):
        part = buffer[: num_bytes - done]
        storage.read_into(start + done, part)
        yield part


def any_order(entry: TensorEntry) -> tuple[TensorEntry, int]:
    """A view with each element of the storage once, in the fastest order to read; and how often each repeats.

    A transposed tensor becomes contiguous, an expanded one (stride 0) as small as its storage.
    """
    if entry.is_contiguous:
        return entry, 1
    repeats = math.prod(size for size, stride in zip(entry.shape, entry.strides, strict=True) if stride == 0)
    dims = zip(entry.strides, entry.shape, strict=True)
    kept = sorted(((stride, size) for stride, size in dims if stride and size > 1), reverse=True)
    shape, strides = tuple(size for _, size in kept), tuple(stride for stride, _ in kept)
    return replace(entry, shape=shape, strides=strides), repeats


def blocks(entry: TensorEntry, max_bytes: int = BLOCK_BYTES) -> Iterator[numpy.ndarray[Any, Any]]:
    """The elements of `entry` in row-major order, as one-dimensional arrays; see `decode`.

    `max_bytes` counts stored bytes; a decoded block is at most 8 times as large (float4_e2m1fn_x2). A
    block is valid until the next one is asked for.

    Raises: as `raw_blocks`.
    """
    for block in raw_blocks(entry, max_bytes):
        yield decode(block, entry.dtype)


def decode(buffer: memoryview, dtype: DType) -> numpy.ndarray[Any, Any]:
    """The numbers that the bytes `buffer` (whole elements, little-endian) spell, all of them exactly.

    float64, float32, float16, complex64, complex128, integers and bool keep their NumPy type and may
    share `buffer`; bfloat16, float8 and float4 become float32 (two numbers for each float4_e2m1fn_x2
    element), complex32 becomes complex64, quantized and bits dtypes are their stored integers.
    """
    import numpy as np

    name = dtype.name
    words: numpy.ndarray[Any, Any] = np.frombuffer(buffer, dtype.numpy or _RAW.get(name, "|u1"))
    if name in SMALL_FLOATS:
        words = _table(name).take(words, axis=0, mode="clip").reshape(-1)
    elif name == "bool":
        # torch takes any byte but 0 for True; a NumPy bool that is neither 0 nor 1 misbehaves.
        words = words.view(np.uint8) != 0
    elif name == "bfloat16":
        words = (words.astype("<u4") << np.uint32(16)).view("<f4")
    elif name == "complex32":
        words = words.astype("<f4").view("<c8")
    return words


def scalar(entry: TensorEntry) -> int | float | bool | None:
    """The value of a tensor of one real element, without NumPy; None for any other tensor."""
    form = _SCALAR.get(entry.dtype.name)
    if entry.num_elements != 1 or (form is None and entry.dtype.name != "bfloat16"):
        return None
    entry = resolved(entry)
    itemsize = entry.dtype.itemsize
    buffer = bytearray(itemsize)
    entry.storage.read_into(entry.offset * itemsize, memoryview(buffer))
    if form is None:
        form, buffer = "<f", bytearray(2) + buffer
    value: int | float | bool = struct.unpack(form, buffer)[0]
    return value


def small_float_values(name: str) -> list[float]:
    """The value of every pattern of the small float `name`, from its definition."""
    spec = SMALL_FLOATS[name]
    magnitude_bits = spec.exponent_bits + spec.mantissa_bits
    magnitudes = [_magnitude(spec, bits) for bits in range(1 << magnitude_bits)]
    if not spec.signed:
        return magnitudes
    negatives = [-value for value in magnitudes]
    if spec.nan_is_negative_zero:
        negatives[0] = math.nan
    return magnitudes + negatives


def _magnitude(spec: SmallFloat, bits: int) -> float:
    if bits == spec.infinity:
        return math.inf
    if spec.first_nan is not None and bits >= spec.first_nan:
        return math.nan
    exponent, mantissa = divmod(bits, 1 << spec.mantissa_bits)
    # Without mantissa bits (e8m0) there is no zero and nothing is subnormal.
    if exponent == 0 and spec.mantissa_bits:
        return math.ldexp(mantissa, 1 - spec.bias - spec.mantissa_bits)
    significand = mantissa + (1 << spec.mantissa_bits)
    return math.ldexp(significand, exponent - spec.bias - spec.mantissa_bits)


@cache
def _table(name: str) -> numpy.ndarray[Any, numpy.dtype[numpy.float32]]:
    """Stored byte → float32 value; for float4_e2m1fn_x2, stored byte → its two values.

    Source: torch packs the first of two 4-bit values into the low half of the byte.
    """
    import numpy as np

    table = np.array(small_float_values(name), np.float32)
    if len(table) == 256:
        return table
    byte = np.arange(256)
    return np.stack([table[byte & 0xF], table[byte >> 4]], axis=1)

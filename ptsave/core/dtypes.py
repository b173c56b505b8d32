"""THE dtype table: every spelling of every dtype that a checkpoint can hold.

Sources: torch's `torch.storage._dtype_to_storage_type_map` (storage class names), the safetensors
format description (tags), NumPy's array interface (type strings).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ptsave.core.names import hint_for
from ptsave.errors import Text, UsageError


@dataclass(frozen=True, slots=True)
class DType:
    """One element type."""

    name: str
    """As torch spells it, without `torch.`."""
    itemsize: int
    """Bytes of one element. Packed types (float4_e2m1fn_x2, quint4x2, …) count as torch counts them:
    one element is one byte."""
    kind: str
    """`float`, `complex`, `int`, `uint`, `bool`, `quantized` or `bits`."""
    safetensors: str | None = None
    """The tag in a safetensors header, or None where safetensors has none."""
    storage_class: str | None = None
    """The name under `torch` of the typed storage class in a pickle, or None."""
    numpy: str | None = None
    """The type string of NumPy's array interface (little-endian), or None where NumPy has none."""

    @property
    def is_float(self) -> bool:
        """Whether `--dtype` casts it and `finite` looks at it (complex numbers included)."""
        return self.kind in ("float", "complex")

    @property
    def word_bytes(self) -> int:
        """Bytes of the unit whose order endianness changes: half an element for complex numbers."""
        return self.itemsize // 2 if self.kind == "complex" else self.itemsize

    def __repr__(self) -> str:
        return self.name


TABLE: tuple[DType, ...] = (
    DType("float64", 8, "float", "F64", "DoubleStorage", "<f8"),
    DType("float32", 4, "float", "F32", "FloatStorage", "<f4"),
    DType("float16", 2, "float", "F16", "HalfStorage", "<f2"),
    DType("bfloat16", 2, "float", "BF16", "BFloat16Storage"),
    DType("float8_e4m3fn", 1, "float", "F8_E4M3"),
    DType("float8_e5m2", 1, "float", "F8_E5M2"),
    DType("float8_e4m3fnuz", 1, "float", "F8_E4M3FNUZ"),
    DType("float8_e5m2fnuz", 1, "float", "F8_E5M2FNUZ"),
    DType("float8_e8m0fnu", 1, "float", "F8_E8M0"),
    DType("float4_e2m1fn_x2", 1, "float", "F4"),
    DType("complex32", 4, "complex"),
    DType("complex64", 8, "complex", "C64", "ComplexFloatStorage", "<c8"),
    DType("complex128", 16, "complex", None, "ComplexDoubleStorage", "<c16"),
    DType("int64", 8, "int", "I64", "LongStorage", "<i8"),
    DType("int32", 4, "int", "I32", "IntStorage", "<i4"),
    DType("int16", 2, "int", "I16", "ShortStorage", "<i2"),
    DType("int8", 1, "int", "I8", "CharStorage", "|i1"),
    DType("uint64", 8, "uint", "U64", None, "<u8"),
    DType("uint32", 4, "uint", "U32", None, "<u4"),
    DType("uint16", 2, "uint", "U16", None, "<u2"),
    DType("uint8", 1, "uint", "U8", "ByteStorage", "|u1"),
    DType("bool", 1, "bool", "BOOL", "BoolStorage", "|b1"),
    DType("qint8", 1, "quantized", None, "QInt8Storage"),
    DType("quint8", 1, "quantized", None, "QUInt8Storage"),
    DType("qint32", 4, "quantized", None, "QInt32Storage"),
    DType("quint4x2", 1, "quantized", None, "QUInt4x2Storage"),
    DType("quint2x4", 1, "quantized", None, "QUInt2x4Storage"),
    DType("bits8", 1, "bits"),
    DType("bits16", 2, "bits"),
    DType("bits1x8", 1, "bits"),
    DType("bits2x4", 1, "bits"),
    DType("bits4x2", 1, "bits"),
    *(DType(f"int{n}", 1, "bits") for n in range(1, 8)),
    *(DType(f"uint{n}", 1, "bits") for n in range(1, 8)),
)

BY_NAME = {d.name: d for d in TABLE} | {
    alias: next(d for d in TABLE if d.name == name)
    for alias, name in {
        "double": "float64",
        "float": "float32",
        "half": "float16",
        "chalf": "complex32",
        "cfloat": "complex64",
        "cdouble": "complex128",
        "long": "int64",
        "int": "int32",
        "short": "int16",
    }.items()
}
"""Every name that `torch.NAME` is a dtype under, aliases included."""
WRITTEN_AS = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}
"""How people write dtypes that torch has no such name for."""
BY_SAFETENSORS = {d.safetensors: d for d in TABLE if d.safetensors}
BY_STORAGE_CLASS = {d.storage_class: d for d in TABLE if d.storage_class}
BY_NUMPY = {d.numpy: d for d in TABLE if d.numpy}


def parse_dtype(
    text: str, where: Text, known: Mapping[str, DType] = BY_NAME, refusal: str = "unknown dtype"
) -> DType:
    """The dtype of `known` that a person names, with or without `torch.`.

    Raises: UsageError with the nearest name.
    """
    name = text.removeprefix("torch.")
    name = WRITTEN_AS.get(name, name)
    name = BY_NAME[name].name if name in BY_NAME else name
    if name not in known:
        raise UsageError(f"{refusal} {text!r}", where, hint_for(name, known, "dtypes"))
    return known[name]

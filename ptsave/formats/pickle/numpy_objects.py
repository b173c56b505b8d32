"""NumPy's arrays, scalars and dtypes in a pickle: shown with their contents, without NumPy.

An array is `Opaque("numpy.ndarray")` with `dtype`, `shape`, `order` and its `values` (or, past a small
number of elements, its `data` as little-endian bytes); a scalar is `Opaque("numpy.float64", (value,))`.
Arrays and numbers of plain dtypes, and arrays of objects, are known shapes where they are spelled exactly as
NumPy spells them. Other dtypes (records, dates) are shown but stay outside: a dtype's state has flags that
NumPy believes, with which bytes become pointers.

Source: NumPy's numpy/_core/src/multiarray/methods.c (`array_reduce`, `array_setstate`),
descriptor.c (`arraydescr_reduce`), scalartypes.c.src (`gentype_reduce`).
"""

from __future__ import annotations

import struct
from functools import cached_property
from math import prod
from typing import Any, TypeGuard

from ptsave.core.dtypes import BY_NAME, DType
from ptsave.core.nodes import Global, Opaque, TensorEntry, contiguous_strides
from ptsave.core.storage import MemoryStorage, Storage, SwappedStorage
from ptsave.errors import CorruptError
from ptsave.formats.pickle.python_objects import is_name_only
from ptsave.formats.pickle.shapes import BYTES_PER_UNIT, UNKNOWN, Budget, Known, Payload

MAX_SHOWN_ELEMENTS = 64
MAX_RANK = 64

_NAMES = {
    "b1": "bool",
    "i1": "int8",
    "i2": "int16",
    "i4": "int32",
    "i8": "int64",
    "u1": "uint8",
    "u2": "uint16",
    "u4": "uint32",
    "u8": "uint64",
    "f2": "float16",
    "f4": "float32",
    "f8": "float64",
    "c8": "complex64",
    "c16": "complex128",
}
_OBJECTS = ("O", "O4", "O8")
_PLAIN_STATE, _OBJECT_STATE = (-1, -1, 0), (-1, -1, 63)
"""The size, the alignment and the flags in the state of a plain dtype, and of that of objects."""
_STRUCT_CODES = {
    "b1": "?",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "f2": "e",
    "f4": "f",
    "f8": "d",
    "c8": "ff",
    "c16": "dd",
}


class NumpyArray(Opaque):
    """An array, which its state shows."""

    is_array = True

    def as_tensor(self) -> TensorEntry | None:
        return self._tensor

    @cached_property
    def _tensor(self) -> TensorEntry | None:
        state = self.state if type(self.state) is dict else {}  # checked again: a file can spell it too
        named, shape, values, data = (state.get(field) for field in ("dtype", "shape", "values", "data"))
        dtype = BY_NAME.get(named) if type(named) is str else None
        if (
            dtype is None
            or dtype.numpy is None
            or not is_shape(shape)
            or state.get("order") not in ("C", "F")
        ):
            return None
        if type(values) is list:
            data = _packed(dtype, values)
        if isinstance(data, Payload):
            storage: Storage = data.storage
        elif isinstance(data, (bytes, bytearray)):
            storage = MemoryStorage(memoryview(bytes(data)))
        else:
            return None
        if storage.num_bytes != prod(shape) * dtype.itemsize:
            return None
        strides = contiguous_strides(shape)
        if state.get("order") == "F":
            strides = contiguous_strides(shape[::-1])[::-1]
        return TensorEntry("", dtype, shape, strides, storage, 0)


def _packed(dtype: DType, values: list[Any]) -> bytes | None:
    """The numbers of a small array as the bytes that they were; None where they are no such numbers."""
    letters = _STRUCT_CODES[next(code for code, name in _NAMES.items() if name == dtype.name)]
    if not all(isinstance(number, (bool, int, float, complex)) for number in values):
        return None
    if len(letters) == 2:
        values = [part for number in values for part in (number.real, number.imag)]
    try:
        return struct.pack(f"<{len(values)}{letters[0]}", *values)
    except (struct.error, OverflowError):
        return None


def _dtype(args: tuple[Any, ...], budget: Budget) -> Any:
    """`numpy.dtype("f4", False, True)`."""
    if len(args) != 3 or type(args[0]) is not str or args[1:] != (False, True):
        return UNKNOWN
    if args[0] not in _NAMES and args[0] not in _OBJECTS:
        return UNKNOWN
    return Opaque("numpy.dtype", args[:1])


def _reconstruct(args: tuple[Any, ...], budget: Budget) -> Any:
    """`_reconstruct(numpy.ndarray, (0,), b"b")`: an empty array that BUILD fills."""
    if len(args) != 3 or not isinstance(args[0], Global) or args[0].name != "numpy.ndarray":
        return UNKNOWN
    if args[1] != (0,) or type(args[2]) not in (bytes, str) or args[2] not in (b"b", "b"):
        return UNKNOWN
    return NumpyArray("numpy.ndarray")


def _frombuffer(args: tuple[Any, ...], budget: Budget) -> Any:
    """`_frombuffer(data, dtype, shape, order)`: how protocol 5 spells an array."""
    if len(args) != 4 or not isinstance(args[0], (bytes, bytearray, Payload)):
        return UNKNOWN
    data, dtype, shape, order = args
    is_number = _is_exact(dtype) and dtype.args[0] in _NAMES
    if (_is_exact(dtype) and not is_number) or type(order) is not str or order not in ("C", "F"):
        return UNKNOWN
    state = _contents(shape, dtype, order == "F", data, budget)
    return UNKNOWN if state is None else NumpyArray("numpy.ndarray", (), state)


def _scalar(args: tuple[Any, ...], budget: Budget) -> Any:
    """`scalar(dtype, data)`."""
    if len(args) != 2 or not isinstance(args[1], bytes):
        return UNKNOWN
    code = _type_code(args[0])
    if code is None or code[1] not in _NAMES:
        return UNKNOWN
    _settle(args[0])
    values = _values(code, args[1], 1)
    return Opaque(f"numpy.{_NAMES[code[1]]}", tuple(values))


NAMES: dict[str, Any] = {
    name: Known(name, call)
    for name, call in {
        "numpy.dtype": _dtype,
        "numpy.ndarray": is_name_only,
        "numpy.core.multiarray._reconstruct": _reconstruct,
        "numpy._core.multiarray._reconstruct": _reconstruct,
        "numpy.core.multiarray.scalar": _scalar,
        "numpy._core.multiarray.scalar": _scalar,
        "numpy.core.numeric._frombuffer": _frombuffer,
        "numpy._core.numeric._frombuffer": _frombuffer,
    }.items()
}


def build(target: Any, state: Any, budget: Budget) -> bool:
    """Fill an array or a dtype, where the state is of the shape that NumPy writes."""
    if not isinstance(target, Opaque) or type(state) is not tuple or target.state is not None:
        return False
    if target.name == "numpy.dtype" and len(state) >= 8 and state[1] in ("<", ">", "|", "="):
        simple = all(part is None for part in state[2:5])
        if _is_exact(target) and (state[0] != 3 or not simple or state[5:] != _sizes(target)):
            return False
        target.state = {"byteorder": state[1]} if simple else list(state)
        return True
    if target.name == "numpy.ndarray" and len(state) in (4, 5):  # the first ones had no version in front
        shape, dtype, fortran, data = state[-4:]
        if len(state) == 5 and (type(state[0]) is not int or state[0] not in (0, 1)):
            raise CorruptError(f"a numpy array has a pickle of the version {str(state[0])[:20]}")
        contents = _contents(shape, dtype, fortran, data, budget)
        if contents is not None:
            target.state = contents
            return True
    return False


def _is_exact(dtype: Any) -> bool:
    """Whether it is a dtype of numbers or of objects, made as NumPy does it."""
    return isinstance(dtype, Opaque) and dtype.name == "numpy.dtype" and len(dtype.args) == 1


def _sizes(dtype: Opaque) -> tuple[int, int, int]:
    return _OBJECT_STATE if dtype.args[0] in _OBJECTS else _PLAIN_STATE


def _settle(dtype: Any) -> None:
    """Let a dtype keep the byte order that it has: one that the pickle sets later would change its arrays."""
    if _is_exact(dtype) and dtype.state is None:
        dtype.state = {"byteorder": "|"}


def _type_code(dtype: Any) -> tuple[str, str] | None:
    """(byte order, type code) of a plain dtype: ("<", "f4"); None for others."""
    if not isinstance(dtype, Opaque) or dtype.name != "numpy.dtype" or len(dtype.args) != 1:
        return None
    code = dtype.args[0]
    if type(code) is not str:
        return None
    if dtype.state is None:
        return "<", code
    order = dtype.state.get("byteorder") if isinstance(dtype.state, dict) else None
    if type(order) is not str:
        return None
    return (">" if order == ">" else "<"), code


def is_shape(value: Any) -> TypeGuard[tuple[int, ...]]:
    """Whether `value` is a tuple of sizes."""
    if type(value) is not tuple or len(value) > MAX_RANK:
        return False
    return all(type(size) is int and 0 <= size < 2**63 for size in value)


def _contents(shape: Any, dtype: Any, fortran: Any, data: Any, budget: Budget) -> dict[str, Any] | None:
    """What an array shows of itself; None where it is not as NumPy writes it."""
    if not is_shape(shape):
        return None
    _settle(dtype)
    count = prod(shape)
    shown: dict[str, Any] = {"dtype": dtype, "shape": shape, "order": "F" if fortran else "C"}
    code = _type_code(dtype)
    if code is None or code[1] not in _NAMES:
        # an array of objects holds a list; texts, dates and records stay as they are
        if _is_exact(dtype) and (type(data) is not list or len(data) != count):
            raise CorruptError(f"a numpy array of {count} objects has no list of so many")
        if isinstance(data, list):
            budget.spend(len(data) // 8)
            return shown | {"values": list(data)}
        return shown | {"data": data}
    if isinstance(data, str):  # a Python 2 string that happened to be UTF-8
        budget.spend(1 + len(data) // BYTES_PER_UNIT)
        data = data.encode()
    shown["dtype"] = _NAMES[code[1]]
    if isinstance(data, Payload) and data.name == "builtins.bytes":
        num_bytes = data.storage.num_bytes
    elif isinstance(data, (bytes, bytearray)):
        num_bytes = len(data)
    else:
        return shown | {"data": data}
    if num_bytes != count * int(code[1][1:]):
        raise CorruptError(f"a numpy array of shape {shape} and {code[1]} has {num_bytes} bytes")
    if count <= MAX_SHOWN_ELEMENTS and not isinstance(data, Payload):
        return shown | {"values": _values(code, bytes(data), count)}
    return shown | {"data": _little_endian(code, data, budget)}


def _little_endian(code: tuple[str, str], data: Any, budget: Budget) -> Any:
    """The bytes of an array as little-endian ones."""
    word_bytes = struct.calcsize("=" + _STRUCT_CODES[code[1]][0])
    if code[0] != ">" or word_bytes == 1:
        return data
    if isinstance(data, Payload):
        return Payload(data.name, SwappedStorage(data.storage, word_bytes))
    budget.spend(1 + len(data) // BYTES_PER_UNIT)
    swapped = bytearray(len(data))
    SwappedStorage(MemoryStorage(memoryview(data)), word_bytes).read_into(0, memoryview(swapped))
    return bytes(swapped)


def _values(code: tuple[str, str], data: bytes, count: int) -> list[Any]:
    order, kind = code
    letters = _STRUCT_CODES[kind]
    layout = struct.Struct(order + letters * count)
    if layout.size != len(data):
        raise CorruptError(f"a numpy {kind} has {len(data)} bytes")
    numbers = layout.unpack(data)
    if len(letters) == 1:
        return list(numbers)
    return [complex(re, im) for re, im in zip(numbers[::2], numbers[1::2], strict=True)]

"""Any leaf of a checkpoint, and any result, as data that JSON can hold."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptsave.core.address import Address
from ptsave.core.dtypes import DType
from ptsave.core.nodes import Global, Opaque, TensorEntry
from ptsave.core.record import Record

MAX_INT_BITS = 4096
"""Larger integers are spelled in hexadecimal: Python refuses to print them in decimal."""
MAX_BYTES_SHOWN = 256
"""How many bytes of a bytes value are spelled out."""


def jsonable(value: Any) -> Any:
    """`value` as JSON can hold it: inert objects by name, bytes as hex, NaN and infinities as words."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > MAX_INT_BITS:
        return hex(value)
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, complex):
        return [jsonable(value.real), jsonable(value.imag)]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"bytes": bytes(value[:MAX_BYTES_SHOWN]).hex(), "num_bytes": len(value)}
    if isinstance(value, (list, tuple)):
        return value if _is_plain(value) else [jsonable(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((jsonable(item) for item in value), key=repr)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, Opaque):
        shown: dict[str, Any] = {"opaque": value.name}
        if value.is_call_of_scalars and value.args:
            shown["args"] = jsonable(value.args)
        return shown
    if isinstance(value, Global):
        return {"global": value.name}
    if isinstance(value, DType):
        return f"torch.{value.name}"
    if isinstance(value, TensorEntry):
        return {"tensor": value.name, "dtype": value.dtype.name, "shape": list(value.shape)}
    if isinstance(value, Record):
        return jsonable(json.loads(value.to_json()))
    if isinstance(value, (Path, Address)):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return repr(value)


def _is_plain(values: list[Any] | tuple[Any, ...]) -> bool:
    """Whether JSON holds all of `values`, of which a file may have millions, as they are."""
    kinds = {*map(type, values)}
    if not kinds <= _PLAIN:
        return False
    if int in kinds and any(abs(value) >> MAX_INT_BITS for value in values if type(value) is int):
        return False
    return float not in kinds or all(math.isfinite(value) for value in values if type(value) is float)


_PLAIN = frozenset((type(None), bool, int, float, str))

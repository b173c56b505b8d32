"""Any leaf of a checkpoint, and any result, as data that JSON can hold."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from ptsave.core.address import Address
from ptsave.core.nodes import MAX_INT_BITS, TensorEntry, leaf_as_json
from ptsave.core.record import Record

MAX_BYTES_SHOWN = 256
"""How many bytes of a bytes value are spelled out."""


def jsonable(value: Any) -> Any:
    """`value` as JSON can hold it: a leaf of a checkpoint, which `leaf_as_json` spells, or any result."""
    if isinstance(value, (list, tuple)) and _is_plain(value):
        return value
    return leaf_as_json(value, jsonable, _result, MAX_BYTES_SHOWN)


def _result(value: Any) -> Any:
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

"""What an ONNX model says of its inputs and outputs.

Source: onnx/onnx.proto, `ValueInfoProto`, `TypeProto` and `TensorShapeProto`.
"""

from __future__ import annotations

from typing import Any

from ptsave.core.nodes import Port
from ptsave.errors import LimitError
from ptsave.formats.onnx import schema
from ptsave.formats.onnx.tensors import DTYPES, MAX_RANK, PACKED, STRING
from ptsave.formats.onnx.wire import Span, WireReader, signed

MAX_NESTED_TYPES = 30
"""Cap on how deep types nest."""


def port(wire: WireReader, span: Span) -> Port:
    """The input or output in the ValueInfoProto at `span`.

    Raises: CorruptError; LimitError.
    """
    found: dict[str, Any] = dict(wire.read(schema.VALUE_INFO, span))
    kind, shape = _type(wire, found["type"], 0) if "type" in found else ("?", None)
    return Port(wire.text(found.get("name")), kind, shape)


def _type(wire: WireReader, span: Span, depth: int) -> tuple[str, tuple[int | str, ...] | None]:
    if depth > MAX_NESTED_TYPES:
        raise LimitError("nested_types", MAX_NESTED_TYPES, "more", str(wire.file.path))
    found: dict[str, Any] = dict(wire.read(schema.TYPE, span))
    if len(found) > 1:
        raise wire.corrupt("a value of two types")
    for kind, inner in found.items():
        if kind in ("tensor", "sparse_tensor"):
            about: dict[str, Any] = dict(wire.read(schema.TENSOR_TYPE, inner))
            name = _element(about.get("elem_type", 0))
            shape = _shape(wire, about["shape"]) if "shape" in about else None
            return f"sparse {name}" if kind == "sparse_tensor" else name, shape
        if kind in ("sequence", "optional", "map"):
            message, key = (
                (schema.MAP_TYPE, "value_type") if kind == "map" else (schema.ELEMENT_TYPE, "elem_type")
            )
            about = dict(wire.read(message, inner))
            element = _type(wire, about[key], depth + 1)[0] if key in about else "?"
            return f"{kind} of {element}", None
        return kind, None
    return "?", None


def _element(data_type: int) -> str:
    if data_type in DTYPES:
        return DTYPES[data_type].name
    return "string" if data_type == STRING else PACKED[data_type][0].lower() if data_type in PACKED else "?"


def _shape(wire: WireReader, span: Span) -> tuple[int | str, ...]:
    sizes: list[int | str] = []
    for _, inner in wire.read(schema.SHAPE, span):
        found: dict[str, Any] = dict(wire.read(schema.DIMENSION, inner))
        if "dim_param" in found:
            sizes.append(wire.text(found["dim_param"]) or "?")
        else:
            sizes.append(signed(found["dim_value"]) if "dim_value" in found else "?")
        if len(sizes) > MAX_RANK:
            raise LimitError("rank", MAX_RANK, "more", str(wire.file.path))
    return tuple(sizes)

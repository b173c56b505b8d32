"""Tensors of types that torch has no dtype for, as inert objects: GGUF's blocks, ONNX's 4-bit integers.

`Opaque("gguf.Q4_K")` with `shape` (sizes in elements) and, under the type's name, the bytes as a tensor.
"""

from __future__ import annotations

from typing import Any

from ptsave.core.dtypes import BY_NAME
from ptsave.core.nodes import Opaque, TensorEntry, contiguous_strides
from ptsave.core.storage import Storage

LIBRARIES = ("gguf", "onnx")
MAX_OBJECTS = 20_000
"""Cap on the tensors of a small file that are objects: each is listed with what it is made of."""


def packed(
    library: str,
    type_name: str,
    shape: tuple[int, ...],
    storage: Storage,
    byte_shape: tuple[int, ...] | None = None,
) -> Opaque:
    """A tensor of `shape` whose bytes fill `storage`; they are listed in `byte_shape`, else in a row."""
    sizes = (storage.num_bytes,) if byte_shape is None else byte_shape
    data = TensorEntry("", BY_NAME["uint8"], sizes, contiguous_strides(sizes), storage, 0)
    return Opaque(f"{library}.{type_name}", state={"shape": shape, type_name: data})


def is_packed(value: Any) -> bool:
    """Whether `value` is such a tensor."""
    if type(value) is not Opaque or not isinstance(value.state, dict):
        return False
    library, _, type_name = value.name.partition(".")
    return library in LIBRARIES and isinstance(value.state.get(type_name), TensorEntry)

"""Hostile files: how each is built, and what must happen when one is met.

`ATTACKS` holds them all; each module below adds its own.
"""

from . import (
    allocation,
    bounds,
    code_execution,
    collisions,
    containers,
    dcp_lies,
    folders,
    gguf_lies,
    large_headers,
    names,
    nesting,
    no_checkpoints,
    numpy_lies,
    old_formats,
    onnx_lies,
    safetensors_lies,
    sparse,
    wrapped_lies,
    zip_lies,
)
from .registry import ATTACKS, DESCRIBED, REFUSED, SHOWN, Attack

__all__ = [
    "ATTACKS",
    "DESCRIBED",
    "REFUSED",
    "SHOWN",
    "Attack",
    "allocation",
    "bounds",
    "code_execution",
    "collisions",
    "containers",
    "dcp_lies",
    "folders",
    "gguf_lies",
    "large_headers",
    "names",
    "nesting",
    "no_checkpoints",
    "numpy_lies",
    "old_formats",
    "onnx_lies",
    "safetensors_lies",
    "sparse",
    "wrapped_lies",
    "zip_lies",
]

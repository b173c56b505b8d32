"""Hostile files: how each is built, and what must happen when one is met.

`ATTACKS` holds them all; each module below adds its own.
"""

from . import bombs, bounds, code_execution, folders, names, other_formats, safetensors_lies, zip_lies
from .registry import ATTACKS, DESCRIBED, REFUSED, SHOWN, Attack

__all__ = [
    "ATTACKS",
    "DESCRIBED",
    "REFUSED",
    "SHOWN",
    "Attack",
    "bombs",
    "bounds",
    "code_execution",
    "folders",
    "names",
    "other_formats",
    "safetensors_lies",
    "zip_lies",
]

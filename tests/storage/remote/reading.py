"""What is read of a remote checkpoint, to compare with what was written."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptsave.core.nodes import TensorEntry
from ptsave.formats import open_checkpoint


def data(entry: TensorEntry) -> bytes:
    begin, end = entry.byte_range
    found = bytearray(end - begin)
    entry.storage.read_into(begin, memoryview(found))
    return bytes(found)


def values(where: str) -> dict[str, np.ndarray[Any, Any]]:
    with open_checkpoint(where) as checkpoint:
        return {
            name: np.frombuffer(data(entry), np.float32).reshape(entry.shape)
            for name, entry in checkpoint.tensors.items()
        }


def same(found: dict[str, np.ndarray[Any, Any]], wanted: dict[str, np.ndarray[Any, Any]]) -> bool:
    return found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)

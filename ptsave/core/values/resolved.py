"""Conjugate and negative views: their values, where the file holds the bytes before the operation."""

from __future__ import annotations

from dataclasses import replace

from ptsave.core.dtypes import DType
from ptsave.core.nodes import PARAMETER_, UNRESOLVED, TensorEntry
from ptsave.core.storage import Storage


def resolved(entry: TensorEntry) -> TensorEntry:
    """`entry` as a plain tensor of the values that it stands for, computed as it is read."""
    if entry.kind not in UNRESOLVED:
        return entry
    flips = entry.kind.split("_")
    storage = ResolvedStorage(entry.storage, entry.dtype, "conj" in flips, "neg" in flips)
    kind = "parameter" if entry.kind.startswith(PARAMETER_) else "tensor"
    return replace(entry, storage=storage, kind=kind)


class ResolvedStorage(Storage):
    """The elements of a storage, conjugated, negated, or both: exact, sign by sign.

    The container's CRC is of the bytes as they lie in the file.
    """

    def __init__(self, inner: Storage, dtype: DType, is_conjugated: bool, is_negated: bool) -> None:
        self.inner: Storage = inner
        self.num_bytes = inner.num_bytes
        self.dtype = dtype
        self.is_conjugated, self.is_negated = is_conjugated, is_negated

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        import numpy as np

        item = self.dtype.itemsize
        start = offset_bytes - offset_bytes % item
        end = min(-(-(offset_bytes + len(buffer)) // item) * item, self.num_bytes)
        source = bytearray(end - start)
        self.inner.read_into(start, memoryview(source))
        whole = len(source) - len(source) % item
        if self.dtype.is_float:
            words = np.frombuffer(source, "u1", whole).reshape(-1, item)
            word, sign = self.dtype.word_bytes, 0x88 if self.dtype.name == "float4_e2m1fn_x2" else 0x80
            for place in range(word - 1, item, word):
                is_imaginary = place >= word
                if self.is_negated ^ (self.is_conjugated and is_imaginary):
                    words[:, place] ^= sign
        elif self.is_negated:
            integers = np.frombuffer(source, f"<u{item}", whole // item)
            np.subtract(0, integers, out=integers)
        buffer[:] = memoryview(source)[offset_bytes - start : offset_bytes - start + len(buffer)]

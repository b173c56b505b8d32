"""Conjugate and negative views: their values, where the file holds the bytes before the operation."""

from __future__ import annotations

from dataclasses import replace

from ptsave.core.dtypes import DType
from ptsave.core.nodes import PARAMETER_, UNRESOLVED, TensorEntry
from ptsave.core.storage import ChangedStorage, Storage


def resolved(entry: TensorEntry) -> TensorEntry:
    """`entry` as a plain tensor of the values that it stands for, computed as it is read."""
    if entry.kind not in UNRESOLVED:
        return entry
    flips = entry.kind.split("_")
    storage = ResolvedStorage(entry.storage, entry.dtype, "conj" in flips, "neg" in flips)
    kind = "parameter" if entry.kind.startswith(PARAMETER_) else "tensor"
    return replace(entry, storage=storage, kind=kind)


class ResolvedStorage(ChangedStorage):
    """The elements of a storage, conjugated, negated, or both: exact, sign by sign."""

    def __init__(self, inner: Storage, dtype: DType, is_conjugated: bool, is_negated: bool) -> None:
        super().__init__(inner, dtype.itemsize)
        self.dtype = dtype
        self.is_conjugated, self.is_negated = is_conjugated, is_negated

    def changed(self, elements: bytearray) -> bytearray:
        import numpy as np

        item = self.element_bytes
        whole = len(elements) - len(elements) % item
        if self.dtype.is_float:
            words = np.frombuffer(elements, "u1", whole).reshape(-1, item)
            word, sign = self.dtype.word_bytes, 0x88 if self.dtype.name == "float4_e2m1fn_x2" else 0x80
            for place in range(word - 1, item, word):
                is_imaginary = place >= word
                if self.is_negated ^ (self.is_conjugated and is_imaginary):
                    words[:, place] ^= sign
        elif self.is_negated:
            integers = np.frombuffer(elements, f"<u{item}", whole // item)
            np.subtract(0, integers, out=integers)
        return elements

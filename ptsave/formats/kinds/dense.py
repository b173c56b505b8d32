"""Tensors of other kinds as plain strided ones of the same values: sparse, quantized, conjugate, negative."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ptsave.core.checkpoint import FREE_VIEWED_BYTES
from ptsave.core.nodes import PARAMETER_, UNRESOLVED, Opaque, TensorEntry
from ptsave.core.values.resolved import resolved
from ptsave.errors import LimitError
from ptsave.formats.kinds.dequantized import dequantized
from ptsave.formats.kinds.objects import parameter_data
from ptsave.formats.kinds.quantized import is_quantized
from ptsave.formats.kinds.scattered import scattered
from ptsave.formats.kinds.sparse import is_sparse

MAX_DENSE_PER_BYTE = 64
"""Cap on the bytes of strided tensors, past FREE_VIEWED_BYTES, per byte of what they are made from: a few
bytes can give a sparse tensor any size."""


def can_be_dense(leaf: Any) -> bool:
    """Whether a leaf of a checkpoint's tree is a tensor that `Densifier` makes another of."""
    if isinstance(leaf, TensorEntry):
        return leaf.kind in UNRESOLVED
    leaf = parameter_data(leaf)
    return is_sparse(leaf) or is_quantized(leaf)


def kind_of(leaf: Any) -> str:
    """What a leaf that `can_be_dense` is: `sparse_coo`, `quantized`, `conj`, …"""
    if isinstance(leaf, TensorEntry):
        return leaf.kind.removeprefix(PARAMETER_)
    inner: Opaque = parameter_data(leaf)
    return inner.name.removeprefix("torch.")


class Densifier:
    """Makes strided tensors of the leaves of one conversion, and checks their sizes against a cap."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[Any, TensorEntry]] = {}
        """By the view of a tensor, or the identity of an object, which is kept so that it stays its own."""
        self._part_bytes: dict[Any, int] = {}
        self._dense_bytes = 0

    def dense(self, leaf: Any) -> TensorEntry:
        """The strided tensor of a leaf that `can_be_dense`; tied leaves stay tied.

        Raises: LossyError where its parts do not go together; LimitError past MAX_DENSE_PER_BYTE.
        """
        key = (leaf.view, leaf.kind) if isinstance(leaf, TensorEntry) else id(leaf)
        if key not in self._made:
            made = resolved(leaf) if isinstance(leaf, TensorEntry) else self._dense_object(leaf)
            self._made[key] = (leaf, made)
        return self._made[key][1]

    def _dense_object(self, leaf: Opaque) -> TensorEntry:
        inner = parameter_data(leaf)
        made = dequantized(inner) if is_quantized(inner) else scattered(inner)
        self._part_bytes.update((part.view, part.unrepeated_bytes) for part in _tensors(inner))
        self._dense_bytes += made.num_bytes
        allowed = max(FREE_VIEWED_BYTES, MAX_DENSE_PER_BYTE * sum(self._part_bytes.values()))
        if self._dense_bytes > allowed:
            raise LimitError("dense_bytes", allowed, self._dense_bytes)
        if inner is not leaf:
            made.kind, made.requires_grad = "parameter", leaf.state["requires_grad"]
        return made


def _tensors(value: Opaque) -> Iterator[TensorEntry]:
    return (part for part in value.state.values() if isinstance(part, TensorEntry))

"""Where the runs of a sparse tensor lie in the strided one: what the indices of each layout say.

A run is a value with its dense dimensions (coo, csr, csc), or a row of a block (bsr, bsc).

Source: torch/sparse/__init__.py and the invariants in ATen/native/sparse/ValidateCompressedIndicesCommon.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from ptsave.core.nodes import TensorEntry
from ptsave.core.values.gather import contiguous
from ptsave.core.values.numbers import decode
from ptsave.errors import LossyError, Option

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

PIECE_POINTERS = 64 * 1024
"""How many compressed indices are looked at in one piece."""
_INDEX_DTYPES = ("int64", "int32")


def damaged(why: str) -> LossyError:
    """The error for a sparse tensor whose parts do not go together."""
    return LossyError(
        f"a sparse tensor is damaged: {why}",
        "",
        ("save it again, or leave it out", Option("drop", lead=" with ")),
    )


@dataclass(frozen=True, slots=True)
class Piece:
    """Some runs that follow each other."""

    first: int
    last: int
    pointers: tuple[int, int] = (0, 0)
    """Where the compressed indices lie that they need."""


class Runs(Protocol):
    """Where the runs of a sparse tensor lie in the strided one."""

    num_runs: int
    run_elements: int
    may_repeat: bool
    """Whether several may lie at one place: then they are summed."""
    entries: tuple[TensorEntry, ...]
    """The indices."""

    def pieces(self, most: int) -> Iterator[Piece]:
        """All runs in order, `most` at a time."""

    def places(self, piece: Piece) -> tuple[Array, Array]:
        """Where each run lies, in runs; and a number for each that grows where they are in order.

        Raises: LossyError.
        """


class _Indices:
    """The numbers of one row of index tensors."""

    def __init__(self, entry: TensorEntry) -> None:
        self._dtype = entry.dtype
        self._storage, self._offset = contiguous(entry)

    def read(self, first: int, last: int) -> Array:
        import numpy as np

        item = self._dtype.itemsize
        buffer = memoryview(bytearray((last - first) * item))
        self._storage.read_into(self._offset + first * item, buffer)
        return decode(buffer, self._dtype).astype(np.int64)


class Coordinates:
    """coo: one row of indices for each sparse dimension."""

    def __init__(
        self, indices: TensorEntry, values: TensorEntry, size: tuple[int, ...], is_coalesced: bool
    ) -> None:
        if indices.dtype.name not in _INDEX_DTYPES or len(indices.shape) != 2 or not values.shape:
            raise damaged(f"its indices are {indices.dtype}{list(indices.shape)}")
        num_dims, self.num_runs = indices.shape
        if values.shape != (self.num_runs, *size[num_dims:]) or num_dims > len(size):
            raise damaged(f"of size {list(size)}, it has {num_dims} indices and values {list(values.shape)}")
        self.run_elements = prod(size[num_dims:])
        self.may_repeat = not is_coalesced
        self.entries: tuple[TensorEntry, ...] = (indices,)
        self._sizes = size[:num_dims]
        stride, step = indices.strides
        self._rows = [
            _Indices(
                TensorEntry(
                    "", indices.dtype, (self.num_runs,), (step,), indices.storage, indices.offset + d * stride
                )
            )
            for d in range(num_dims)
        ]

    def pieces(self, most: int) -> Iterator[Piece]:
        for first in range(0, self.num_runs, most):
            yield Piece(first, min(first + most, self.num_runs))

    def places(self, piece: Piece) -> tuple[Array, Array]:
        import numpy as np

        found = np.zeros(piece.last - piece.first, np.int64)
        for row, size in zip(self._rows, self._sizes, strict=True):
            index = row.read(piece.first, piece.last)
            _check_range(index, size)
            found = found * size + index
        return found, found


class Compressed:
    """csr, csc, bsr and bsc: where each row (or column) of items begins, and the column (row) of each item.

    Batches lie one after the other, and each has as many items. An item of several rows is as many runs.
    """

    may_repeat = False

    def __init__(
        self,
        pointers: TensorEntry,
        plain: TensorEntry,
        values: TensorEntry,
        size: tuple[int, ...],
        by_row: bool,
        is_blocked: bool,
    ) -> None:
        num_batch_dims = len(pointers.shape) - 1
        batch = size[: max(num_batch_dims, 0)]
        rest = size[num_batch_dims:]
        if num_batch_dims < 0 or len(rest) < 2 or plain.dtype.name not in _INDEX_DTYPES:
            raise damaged(f"its size is {list(size)}, and its indices {plain.dtype}{list(pointers.shape)}")
        num_items = plain.shape[-1] if plain.shape else 0
        begin = num_batch_dims + 1
        block = values.shape[begin : begin + 2] if is_blocked else (1, 1)
        fits = (
            pointers.dtype is plain.dtype
            and len(block) == 2
            and 0 not in block
            and plain.shape == (*batch, num_items)
            and values.shape == (*batch, num_items, *(block if is_blocked else ()), *rest[2:])
            and rest[0] % block[0] == 0
            and rest[1] % block[1] == 0
        )
        if not fits:
            raise damaged(
                f"of size {list(size)}, it has indices {list(plain.shape)} and values {list(values.shape)}"
            )
        rows, columns = rest[0] // block[0], rest[1] // block[1]
        major, self._num_minor = (rows, columns) if by_row else (columns, rows)
        if pointers.shape != (*batch, major + 1):
            raise damaged(f"of size {list(size)}, it has compressed indices {list(pointers.shape)}")
        self.run_elements = block[1] * prod(rest[2:])
        self.num_runs = prod(batch) * num_items * block[0]
        self.entries: tuple[TensorEntry, ...] = (pointers, plain)
        self._by_row, self._height, self._rows, self._columns = by_row, block[0], rest[0], columns
        self._num_items, self._num_pointers = num_items, major + 1
        self._all_pointers = prod(batch) * (major + 1)
        self._pointers, self._plain = _Indices(pointers), _Indices(plain)

    def pieces(self, most: int) -> Iterator[Piece]:
        import numpy as np

        for start in range(0, self._all_pointers - 1, PIECE_POINTERS):
            pointers = self._read_pointers(start, min(start + PIECE_POINTERS + 1, self._all_pointers))
            end = int(pointers[-1]) * self._height
            for first in range(int(pointers[0]) * self._height, end, most):
                last = min(first + most, end)
                items = [first // self._height, (last - 1) // self._height]
                rows = np.searchsorted(pointers, items, "right")
                yield Piece(first, last, (start + int(rows[0]) - 1, start + int(rows[1]) + 1))

    def places(self, piece: Piece) -> tuple[Array, Array]:
        import numpy as np

        height = self._height
        first, last = piece.first // height, (piece.last - 1) // height + 1
        pointers = self._read_pointers(*piece.pointers)
        at = piece.pointers[0] + np.searchsorted(pointers, np.arange(first, last), "right") - 1
        batch, major = at // self._num_pointers, at % self._num_pointers
        minor = self._plain.read(first, last)
        _check_range(minor, self._num_minor)
        row, column = (major, minor) if self._by_row else (minor, major)
        found = (batch * self._rows + row * height) * self._columns + column
        order = at * self._num_minor + minor
        if height == 1:
            return found, order
        item, inner = np.divmod(np.arange(piece.first, piece.last), height)
        return found[item - first] + inner * self._columns, order[item - first] * height + inner

    def _read_pointers(self, first: int, last: int) -> Array:
        """Where items begin, counted over all batches."""
        import numpy as np

        at = np.arange(first, last)
        found = self._pointers.read(first, last)
        inner = at % self._num_pointers
        is_end = inner == self._num_pointers - 1
        whole = found + at // self._num_pointers * self._num_items
        steps = whole[1:] >= whole[:-1]
        is_sound = (found[inner == 0] == 0).all() and (found[is_end] == self._num_items).all() and steps.all()
        if not is_sound or (found < 0).any() or (found > self._num_items).any():
            raise damaged("its compressed indices do not rise from 0 to the number of its values")
        return whole


def _check_range(index: Array, size: int) -> None:
    if len(index) and not (int(index.min()) >= 0 and int(index.max()) < size):
        raise damaged(f"an index is {int(index.min())} or {int(index.max())}, of a dimension of {size}")

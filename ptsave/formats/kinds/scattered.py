"""Sparse tensors as strided ones: computed as they are read, in windows, whatever the size.

Every layout is runs: elements that lie side by side in `values`, and side by side in the strided tensor at
a multiple of their length. A run is a value with its dense dimensions (coo, csr, csc), or a row of a block
(bsr, bsc). The first read goes over the indices once, checks them, and notes which part of the tensor each
piece of them covers; a window then reads the pieces that it needs.

Source: torch/sparse/__init__.py and the invariants in ATen/native/sparse/ValidateCompressedIndicesCommon.h;
for sums, ATen/native/sparse/SparseTensorMath.cpp: in the order of the values, each rounded to their dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from ptsave.core.dtypes import BY_NAME, DType
from ptsave.core.nodes import Opaque, TensorEntry, contiguous_strides
from ptsave.core.storage import Storage
from ptsave.core.values.cast import converted
from ptsave.core.values.gather import MadeStorage, contiguous
from ptsave.core.values.numbers import decode
from ptsave.core.values.resolved import resolved
from ptsave.errors import LimitError, LossyError, Option

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

WINDOW_BYTES = 8 * 1024 * 1024
"""How much of the strided tensor is made at a time."""
PIECE_RUNS = 64 * 1024
PIECE_BYTES = 1024 * 1024
"""How many runs are looked at in one piece, and how many bytes of values they are."""
LONG_RUN_BYTES = 64 * 1024
"""Longer runs are copied one by one."""
MAX_ROUNDS = 100_000
"""Cap on how often bfloat16 sums are rounded one after the other: once for each value at one place."""

_INDEX_DTYPES = ("int64", "int32")
_COMPRESSED = {
    "torch.sparse_csr": ("crow_indices", "col_indices", True, False),
    "torch.sparse_csc": ("ccol_indices", "row_indices", False, False),
    "torch.sparse_bsr": ("crow_indices", "col_indices", True, True),
    "torch.sparse_bsc": ("ccol_indices", "row_indices", False, True),
}
"""Layout → its two index parts, whether rows are what is compressed, and whether values are blocks."""


def scattered(value: Opaque) -> TensorEntry:
    """The strided tensor of a sparse one (see `formats.kinds.sparse`), equal to torch's `to_dense()`.

    Raises: LossyError where its parts do not go together. What their numbers say is checked when the tensor
    is first read, with the same error.
    """
    state = value.state
    values, size = state["values"], state["size"]
    if any(length < 0 for length in size):
        raise _damaged(f"its size is {list(size)}")
    runs: _Runs
    if value.name == "torch.sparse_coo":
        runs = _Coordinates(state["indices"], values, size, state.get("is_coalesced") is True)
    else:
        pointers, plain, by_row, is_blocked = _COMPRESSED[value.name]
        runs = _Compressed(state[pointers], state[plain], values, size, by_row, is_blocked)
    storage = ScatteredStorage(runs, values, prod(size))
    return TensorEntry("", values.dtype, size, contiguous_strides(size), storage, 0)


def _damaged(why: str) -> LossyError:
    return LossyError(
        f"a sparse tensor is damaged: {why}",
        "",
        ("save it again, or leave it out", Option("drop", lead=" with ")),
    )


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some runs that follow each other."""

    first: int
    last: int
    pointers: tuple[int, int] = (0, 0)
    """Where the compressed indices lie that they need."""


class _Runs(Protocol):
    """Where the runs of a sparse tensor lie in the strided one."""

    num_runs: int
    run_elements: int
    may_repeat: bool
    """Whether several may lie at one place: then they are summed."""
    entries: tuple[TensorEntry, ...]
    """The indices."""

    def pieces(self, most: int) -> Iterator[_Piece]:
        """All runs in order, `most` at a time."""

    def places(self, piece: _Piece) -> tuple[Array, Array]:
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


class _Coordinates:
    """coo: one row of indices for each sparse dimension."""

    def __init__(
        self, indices: TensorEntry, values: TensorEntry, size: tuple[int, ...], is_coalesced: bool
    ) -> None:
        if indices.dtype.name not in _INDEX_DTYPES or len(indices.shape) != 2 or not values.shape:
            raise _damaged(f"its indices are {indices.dtype}{list(indices.shape)}")
        num_dims, self.num_runs = indices.shape
        if values.shape != (self.num_runs, *size[num_dims:]) or num_dims > len(size):
            raise _damaged(f"of size {list(size)}, it has {num_dims} indices and values {list(values.shape)}")
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

    def pieces(self, most: int) -> Iterator[_Piece]:
        for first in range(0, self.num_runs, most):
            yield _Piece(first, min(first + most, self.num_runs))

    def places(self, piece: _Piece) -> tuple[Array, Array]:
        import numpy as np

        found = np.zeros(piece.last - piece.first, np.int64)
        for row, size in zip(self._rows, self._sizes, strict=True):
            index = row.read(piece.first, piece.last)
            _check_range(index, size)
            found = found * size + index
        return found, found


class _Compressed:
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
            raise _damaged(f"its size is {list(size)}, and its indices {plain.dtype}{list(pointers.shape)}")
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
            raise _damaged(
                f"of size {list(size)}, it has indices {list(plain.shape)} and values {list(values.shape)}"
            )
        rows, columns = rest[0] // block[0], rest[1] // block[1]
        major, self._num_minor = (rows, columns) if by_row else (columns, rows)
        if pointers.shape != (*batch, major + 1):
            raise _damaged(f"of size {list(size)}, it has compressed indices {list(pointers.shape)}")
        self.run_elements = block[1] * prod(rest[2:])
        self.num_runs = prod(batch) * num_items * block[0]
        self.entries: tuple[TensorEntry, ...] = (pointers, plain)
        self._by_row, self._height, self._rows, self._columns = by_row, block[0], rest[0], columns
        self._num_items, self._num_pointers = num_items, major + 1
        self._all_pointers = prod(batch) * (major + 1)
        self._pointers, self._plain = _Indices(pointers), _Indices(plain)

    def pieces(self, most: int) -> Iterator[_Piece]:
        import numpy as np

        for start in range(0, self._all_pointers - 1, PIECE_RUNS):
            pointers = self._read_pointers(start, min(start + PIECE_RUNS + 1, self._all_pointers))
            end = int(pointers[-1]) * self._height
            for first in range(int(pointers[0]) * self._height, end, most):
                last = min(first + most, end)
                items = [first // self._height, (last - 1) // self._height]
                rows = np.searchsorted(pointers, items, "right")
                yield _Piece(first, last, (start + int(rows[0]) - 1, start + int(rows[1]) + 1))

    def places(self, piece: _Piece) -> tuple[Array, Array]:
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
            raise _damaged("its compressed indices do not rise from 0 to the number of its values")
        return whole


def _check_range(index: Array, size: int) -> None:
    if len(index) and not (int(index.min()) >= 0 and int(index.max()) < size):
        raise _damaged(f"an index is {int(index.min())} or {int(index.max())}, of a dimension of {size}")


# --- values -------------------------------------------------------------------------------------------

_HALVES = {"complex32": "<f2", "complex64": "<f4", "complex128": "<f8"}
_BFLOAT16 = BY_NAME["bfloat16"]


class _Words:
    """How the elements of a dtype are added: as numbers of NumPy's, or, where it has none, not at all."""

    def __init__(self, dtype: DType) -> None:
        self.is_bfloat16 = dtype is _BFLOAT16
        self.is_bool = dtype.name == "bool"
        known = _HALVES.get(dtype.name, dtype.numpy)
        self.is_number = self.is_bfloat16 or known is not None
        self.type = "<f4" if self.is_bfloat16 else (known or "|u1") if not self.is_bool else "|b1"
        self._dtype = dtype
        self._in_file = "|u1" if self.is_bool else "<u2" if self.is_bfloat16 else self.type

    def per_element(self) -> int:
        import numpy as np

        return self._dtype.itemsize // np.dtype(self._in_file).itemsize

    def load(self, buffer: memoryview) -> Array:
        import numpy as np

        words: Array = np.frombuffer(buffer, self._in_file)
        if self.is_bfloat16:
            return (words.astype("<u4") << np.uint32(16)).view("<f4")
        return words != 0 if self.is_bool else words

    def store(self, words: Array) -> memoryview:
        import numpy as np

        if self.is_bfloat16:
            words = (words.view("<u4") >> np.uint32(16)).astype("<u2")
        return words.reshape(-1).view(np.uint8).data

    def zero_plus(self, words: Array) -> Array:
        """`words` as they are when they were added to 0: a negative zero is a positive one."""
        return words if self.is_bool or not self.is_number else words + words.dtype.type(0)

    def sum(self, one: Array, other: Array) -> Array:
        if self.is_bool:
            return one | other
        if not self.is_bfloat16:
            return one + other
        return self.load(memoryview(converted(one + other, _BFLOAT16)[0].tobytes())).reshape(one.shape)

    def add_at(self, words: Array, at: Array, values: Array) -> int:
        """Add each row of `values` to the row of `words` that `at` names; returns how many rounds it took."""
        import numpy as np

        if not self.is_bfloat16:
            if words.shape[1] == 1:  # NumPy is fast with one dimension
                words, values = words.reshape(-1), values.reshape(-1)
            (np.logical_or if self.is_bool else np.add).at(words, at, values)
            return 0
        order = np.argsort(at, kind="stable")
        sorted_at = at[order]
        begins = np.flatnonzero(np.r_[True, sorted_at[1:] != sorted_at[:-1]])
        lengths = np.diff(np.r_[begins, len(at)])
        turn = np.arange(len(at)) - np.repeat(begins, lengths)
        by_turn = order[np.argsort(turn, kind="stable")]
        ends = np.cumsum(np.bincount(turn))
        start = 0
        for end in ends.tolist():
            now = by_turn[start:end]
            words[at[now]] = self.sum(words[at[now]], values[now])
            start = end
        return len(ends)


class ScatteredStorage(MadeStorage):
    """The elements of a sparse tensor, row-major, zeros included; a window of them is kept between reads."""

    def __init__(self, runs: _Runs, values: TensorEntry, num_elements: int) -> None:
        super().__init__()
        self.num_bytes = num_elements * values.dtype.itemsize
        self.sources = (*(entry.storage for entry in runs.entries), values.storage)
        """Where its container has checksums for it."""
        self._runs = runs
        self._values: tuple[Storage, int] = contiguous(resolved(values))
        self._words = _Words(values.dtype)
        self._run_bytes = runs.run_elements * values.dtype.itemsize
        self._item_bytes = values.dtype.itemsize
        self._table: list[tuple[_Piece, int, int]] | None = None
        """Pieces, with the first and the last place of their runs."""
        self._rounds = 0

    def _load_window(self, at_bytes: int) -> None:
        import numpy as np

        self._rounds = 0
        unit = self._item_bytes if self._is_long else self._run_bytes
        step = max(WINDOW_BYTES // unit, 1) * unit
        start = at_bytes - at_bytes % step
        end = min(start + step, self.num_bytes)
        make = self._long_runs if self._is_long else self._short_runs
        with np.errstate(all="ignore"):  # sums overflow, and signalling NaNs become quiet, as in torch
            self._window, self._window_start = self._words.store(make(start, end)), start

    @property
    def _is_long(self) -> bool:
        return self._run_bytes > LONG_RUN_BYTES

    def _pieces(self, first: int, last: int) -> Iterator[tuple[_Piece, Array]]:
        """The pieces with runs in the places from `first` to `last`, and the places of their runs."""
        if self._table is None:
            self._table = list(self._looked_at())
        for piece, low, high in self._table:
            if low < last and high >= first:
                yield piece, self._runs.places(piece)[0]

    def _looked_at(self) -> Iterator[tuple[_Piece, int, int]]:
        """All pieces, their numbers checked."""
        most = min(PIECE_RUNS, max(PIECE_BYTES // self._run_bytes, 1))
        before = -1
        for piece in self._runs.pieces(most):
            places, order = self._runs.places(piece)
            if not self._runs.may_repeat:
                if int(order[0]) <= before or (order[1:] <= order[:-1]).any():
                    raise _damaged("its indices are not in order, or one is there twice")
                before = int(order[-1])
            yield piece, int(places.min()), int(places.max())

    def _short_runs(self, start: int, end: int) -> Array:
        import numpy as np

        words, width = self._words, self._runs.run_elements * self._words.per_element()
        first, last = start // self._run_bytes, end // self._run_bytes
        made = np.zeros((last - first, width), words.type)
        filled = None if words.is_number or not self._runs.may_repeat else np.zeros(last - first, bool)
        for piece, places in self._pieces(first, last):
            inside = (places >= first) & (places < last)
            if not inside.any():
                continue
            values = self._read_values(piece.first * self._run_bytes, piece.last * self._run_bytes)
            values = values.reshape(-1, width)[inside]
            at = places[inside] - first
            if filled is not None:
                self._refuse_sums(bool(filled[at].any()) or len(np.unique(at)) < len(at))
                filled[at] = True
            if filled is None and self._runs.may_repeat:
                self._count_rounds(words.add_at(made, at, values))
            else:
                made[at] = words.zero_plus(values)
        return made

    def _long_runs(self, start: int, end: int) -> Array:
        import numpy as np

        words, word_bytes = self._words, self._item_bytes // self._words.per_element()
        made = np.zeros((end - start) // word_bytes, words.type)
        first, last = start // self._run_bytes, -(-end // self._run_bytes)
        met: set[int] = set()
        for piece, places in self._pieces(first, last):
            for i in np.flatnonzero((places >= first) & (places < last)).tolist():
                place = int(places[i])
                low, high = (
                    max(start, place * self._run_bytes),
                    min(end, (place + 1) * self._run_bytes),
                )
                skip = (piece.first + i - place) * self._run_bytes
                values = self._read_values(low + skip, high + skip)
                into = slice((low - start) // word_bytes, (high - start) // word_bytes)
                if place in met:
                    self._refuse_sums(not words.is_number)
                    made[into] = words.sum(made[into], values)
                else:
                    made[into] = words.zero_plus(values)
                met.add(place)
        return made

    def _read_values(self, start: int, end: int) -> Array:
        storage, offset = self._values
        buffer = memoryview(bytearray(end - start))
        storage.read_into(offset + start, buffer)
        return self._words.load(buffer)

    def _count_rounds(self, num_rounds: int) -> None:
        self._rounds += num_rounds
        if self._rounds > MAX_ROUNDS:
            raise LimitError("rounds", MAX_ROUNDS, "more")

    @staticmethod
    def _refuse_sums(is_needed: bool) -> None:
        if is_needed:
            raise LossyError(
                "a sparse tensor that is not coalesced has a dtype that cannot be added",
                "",
                ("coalesce it in torch, or leave it out", Option("drop", lead=" with ")),
            )

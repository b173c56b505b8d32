"""Sparse tensors as strided ones: computed as they are read, in windows, whatever the size.

Every layout is runs (`runs`): elements that lie side by side in `values`, and side by side in the strided
tensor at a multiple of their length. The first read goes over the indices once, checks them, and notes
which part of the tensor each piece of them covers; a window then reads the pieces that it needs.

Source: for sums, ATen/native/sparse/SparseTensorMath.cpp: in the order of the values, each rounded to their
dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any

from ptsave.core.dtypes import BY_NAME, DType
from ptsave.core.nodes import Opaque, TensorEntry, contiguous_strides
from ptsave.core.storage import Storage
from ptsave.core.values.cast import converted
from ptsave.core.values.gather import MadeStorage, contiguous
from ptsave.core.values.resolved import resolved
from ptsave.errors import LimitError, LossyError, Option
from ptsave.formats.kinds.runs import Compressed, Coordinates, Piece, Runs, damaged

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
        raise damaged(f"its size is {list(size)}")
    runs: Runs
    if value.name == "torch.sparse_coo":
        runs = Coordinates(state["indices"], values, size, state.get("is_coalesced") is True)
    else:
        pointers, plain, by_row, is_blocked = _COMPRESSED[value.name]
        runs = Compressed(state[pointers], state[plain], values, size, by_row, is_blocked)
    storage = ScatteredStorage(runs, values, prod(size))
    return TensorEntry("", values.dtype, size, contiguous_strides(size), storage, 0)


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

    def __init__(self, runs: Runs, values: TensorEntry, num_elements: int) -> None:
        super().__init__()
        self.num_bytes = num_elements * values.dtype.itemsize
        self.sources = (*(entry.storage for entry in runs.entries), values.storage)
        """Where its container has checksums for it."""
        self._runs = runs
        self._values: tuple[Storage, int] = contiguous(resolved(values))
        self._words = _Words(values.dtype)
        self._run_bytes = runs.run_elements * values.dtype.itemsize
        self._item_bytes = values.dtype.itemsize
        self._table: list[tuple[Piece, int, int]] | None = None
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

    def _pieces(self, first: int, last: int) -> Iterator[tuple[Piece, Array]]:
        """The pieces with runs in the places from `first` to `last`, and the places of their runs."""
        if self._table is None:
            self._table = list(self._looked_at())
        for piece, low, high in self._table:
            if low < last and high >= first:
                yield piece, self._runs.places(piece)[0]

    def _looked_at(self) -> Iterator[tuple[Piece, int, int]]:
        """All pieces, their numbers checked."""
        most = min(PIECE_RUNS, max(PIECE_BYTES // self._run_bytes, 1))
        before = -1
        for piece in self._runs.pieces(most):
            places, order = self._runs.places(piece)
            if not self._runs.may_repeat:
                if int(order[0]) <= before or (order[1:] <= order[:-1]).any():
                    raise damaged("its indices are not in order, or one is there twice")
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

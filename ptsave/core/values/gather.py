"""Strided views as contiguous bytes, in bounded memory."""

from __future__ import annotations

import threading
from abc import abstractmethod
from math import prod
from typing import TYPE_CHECKING, Any

from ptsave.core.nodes import TensorEntry, contiguous_strides
from ptsave.core.storage import Storage

if TYPE_CHECKING:
    import numpy as np

WINDOW_BYTES = 4 * 1024 * 1024
"""Most bytes of gathered elements that are kept at a time."""
RUN_BYTES = 1024 * 1024
"""Most bytes of the storage that one read takes, elements in between included."""
GAP_BYTES = 24 * 1024
"""How many unwanted bytes cost as much as one more read."""


def contiguous(entry: TensorEntry) -> tuple[Storage, int]:
    """A storage that holds the entry's elements row-major without gaps, and where they begin (bytes)."""
    if entry.is_contiguous:
        return entry.storage, entry.offset * entry.dtype.itemsize
    return GatheredStorage(entry), 0


def laid_out(entry: TensorEntry) -> TensorEntry:
    """`entry` with row-major strides, gathered as it is read."""
    storage, offset_bytes = contiguous(entry)
    return TensorEntry(
        entry.name,
        entry.dtype,
        entry.shape,
        contiguous_strides(entry.shape),
        storage,
        offset_bytes // entry.dtype.itemsize,
        entry.kind,
        entry.requires_grad,
    )


class MadeStorage(Storage):
    """Bytes that are made when they are read, a window at a time, which is kept between reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._window, self._window_start = memoryview(b""), -1
        self._scratch: memoryview | None = None

    @abstractmethod
    def _load_window(self, at_bytes: int) -> None:
        """Make the window around `at_bytes`."""

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        done = 0
        with self._lock:
            while done < len(buffer):
                at = offset_bytes + done
                if not self._window_start <= at < self._window_start + len(self._window):
                    self._load_window(at)
                part = self._window[at - self._window_start :][: len(buffer) - done]
                buffer[done : done + len(part)] = part
                done += len(part)
            if offset_bytes + done == self.num_bytes:
                self._forget()


class GatheredStorage(MadeStorage):
    """The elements of a strided view, row-major without gaps; reading forward gathers each once."""

    def __init__(self, entry: TensorEntry) -> None:
        super().__init__()
        self.inner: Storage = entry.storage
        self.num_bytes = entry.num_bytes
        self._item_bytes = entry.dtype.itemsize
        self._shape = entry.shape
        self._strides = entry.strides
        self._offset = entry.offset
        self._axis, self._step = _window_shape(entry.shape, self._item_bytes)

    def expect(self, offset_bytes: int, num_bytes: int) -> None:
        first = self._offset * self._item_bytes
        span = (1 + _reach(self._shape, list(self._strides))) * self._item_bytes
        self.inner.expect(first, span if 0 not in self._shape else 0)

    def _load_window(self, at_bytes: int) -> None:
        """Gather the window around `at_bytes`: leading indices fixed, part of one axis, the rest whole."""
        import numpy as np

        axis, step = self._axis, self._step
        inner = prod(self._shape[axis + 1 :])
        index = at_bytes // self._item_bytes
        lead, place = divmod(index // inner, self._shape[axis])
        first = place - place % step
        count = min(step, self._shape[axis] - first)
        offset = self._offset + first * self._strides[axis]
        rest = lead
        for size, stride in zip(reversed(self._shape[:axis]), reversed(self._strides[:axis]), strict=True):
            rest, i = divmod(rest, size)
            offset += i * stride
        shape = (count, *self._shape[axis + 1 :])
        strides = self._strides[axis:]
        window = np.empty(shape, np.dtype(_WORDS[self._item_bytes]))
        order = sorted(range(len(shape)), key=lambda i: -strides[i])
        self._fill(window.transpose(order), [strides[i] for i in order], offset, 0)
        self._window = window.reshape(-1).view(np.uint8).data
        self._window_start = (lead * self._shape[axis] + first) * inner * self._item_bytes

    def _fill(self, target: np.ndarray[Any, Any], strides: list[int], offset: int, axis: int) -> None:
        """Fill `target`, whose axes run from the longest stride to the shortest, in reads of RUN_BYTES."""
        item = self._item_bytes
        span = 1 + _reach(target.shape, strides)
        if self.inner.buffer is not None:
            run = self.inner.buffer[offset * item : (offset + span) * item]
            _scatter(run, target, strides)
            return
        if span * item <= RUN_BYTES or axis == target.ndim:
            _scatter(self._read([offset * item], span * item), target, strides)
            return
        below = 1 + _reach(target.shape[axis + 1 :], strides[axis + 1 :])
        stride = strides[axis]
        is_sparse = (stride - below) * item > GAP_BYTES and below * item <= RUN_BYTES
        step = max(1, RUN_BYTES // item // below if is_sparse else (RUN_BYTES // item - below) // stride)
        for first in range(0, target.shape[axis], step):
            part = target[(slice(None),) * axis + (slice(first, first + step),)]
            start = offset + first * stride
            if is_sparse:  # only what is wanted is read, and put together without the gaps
                count = part.shape[axis]
                runs = self._read([(start + i * stride) * item for i in range(count)], below * item)
                _scatter(runs, part, [*strides[:axis], below, *strides[axis + 1 :]])
            else:
                self._fill(part, strides, start, axis + 1)

    def _read(self, offsets_bytes: list[int], num_bytes: int) -> memoryview:
        """`num_bytes` from each offset, end to end."""
        if self._scratch is None:
            self._scratch = memoryview(bytearray(RUN_BYTES))
        for i, offset_bytes in enumerate(offsets_bytes):
            self.inner.read_into(offset_bytes, self._scratch[i * num_bytes : (i + 1) * num_bytes])
        return self._scratch[: len(offsets_bytes) * num_bytes]


def _reach(shape: tuple[int, ...], strides: list[int]) -> int:
    """How many elements the last element lies after the first."""
    return sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _scatter(run: memoryview, target: np.ndarray[Any, Any], strides: list[int]) -> None:
    """Copy the elements of `run` that lie at `strides` (in elements) to `target`."""
    import numpy as np

    flat = np.frombuffer(run, target.dtype)
    steps = [stride * target.itemsize for stride in strides]
    target[...] = np.lib.stride_tricks.as_strided(flat, target.shape, steps, writeable=False)


_WORDS = {1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "V16"}
"""Bytes of an element → a NumPy type that is copied bit by bit."""


def _window_shape(shape: tuple[int, ...], item_bytes: int) -> tuple[int, int]:
    """Along which axis a window is cut, and how many indices of it fit in WINDOW_BYTES."""
    inner_bytes = item_bytes
    for axis in range(len(shape) - 1, 0, -1):
        if inner_bytes * shape[axis] > WINDOW_BYTES:
            return axis, max(1, WINDOW_BYTES // inner_bytes)
        inner_bytes *= shape[axis]
    return 0, max(1, WINDOW_BYTES // inner_bytes)

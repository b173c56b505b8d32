"""Strided views as contiguous bytes, in bounded memory."""

from __future__ import annotations

import threading
from math import prod
from typing import TYPE_CHECKING, Any

from ptsave.core.nodes import TensorEntry, contiguous_strides
from ptsave.core.storage import MemoryStorage, Storage

if TYPE_CHECKING:
    import numpy as np

WINDOW_BYTES = 8 * 1024 * 1024
"""Most bytes of gathered elements that are kept at a time."""
RUN_BYTES = 1024 * 1024
"""Most bytes of the storage that one read takes, elements in between included."""


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


class GatheredStorage:
    """The elements of a strided view, row-major without gaps.

    Reading forward gathers each element once; a window of them is kept between reads.
    """

    def __init__(self, entry: TensorEntry) -> None:
        self.inner = entry.storage
        self.num_bytes = entry.num_bytes
        self.crc32: int | None = None
        self._item_bytes = entry.dtype.itemsize
        self._shape = entry.shape
        self._strides = entry.strides
        self._offset = entry.offset
        self._axis, self._step = _window_shape(entry.shape, self._item_bytes)
        self._lock = threading.Lock()
        self._window = memoryview(b"")
        self._window_start = -1
        self._scratch: memoryview | None = None

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
                self._window, self._window_start, self._scratch = memoryview(b""), -1, None

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
        import numpy as np

        item = self._item_bytes
        span = 1 + sum((n - 1) * s for n, s in zip(target.shape, strides, strict=True))
        if span * item <= RUN_BYTES or axis == target.ndim or isinstance(self.inner, MemoryStorage):
            flat = np.frombuffer(self._run(offset * item, span * item), target.dtype)
            target[...] = np.lib.stride_tricks.as_strided(
                flat, target.shape, [s * item for s in strides], writeable=False
            )
            return
        below = sum((n - 1) * s for n, s in zip(target.shape[axis + 1 :], strides[axis + 1 :], strict=True))
        step = max(1, (RUN_BYTES // item - below - 1) // strides[axis])
        for i in range(0, target.shape[axis], step):
            part = target[(slice(None),) * axis + (slice(i, i + step),)]
            self._fill(part, strides, offset + i * strides[axis], axis + 1)

    def _run(self, offset_bytes: int, num_bytes: int) -> memoryview:
        if isinstance(self.inner, MemoryStorage):
            return self.inner.buffer[offset_bytes : offset_bytes + num_bytes]
        if self._scratch is None:
            self._scratch = memoryview(bytearray(RUN_BYTES))
        run = self._scratch[:num_bytes]
        self.inner.read_into(offset_bytes, run)
        return run


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

"""A copy of a training's state in host memory, from which it can be written while the training goes on.

The memory is allocated once and used again by every snapshot. Each storage is copied once, whole, so that
tied tensors and views stay what they are.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.storage import MemoryStorage
from ptsave.errors import RefusedError
from ptsave.torch_layer.live import Storages, is_plain, present

ALIGN_BYTES = 64
"""Where a storage's copy may begin."""
WIPE_ON_FORK = 18
"""Linux's MADV_WIPEONFORK, which Python does not name: a fork (a DataLoader's worker) gets zeros in place of
the memory, so that neither side pays for a copy of it. Source: madvise(2)."""


class HostMemory:
    """Memory of the CPU that snapshots are copied to; as large as the largest one so far."""

    def __init__(self) -> None:
        self._flat = torch.empty(0, dtype=torch.uint8)

    def snapshot(self, tree: Mapping[str, Any], path: Path) -> Checkpoint:
        """Copy every tensor of `tree` to this memory; when it returns, the originals may change.

        The result, which is for a writer, is good until the next call. `path` is for messages.

        Raises: LossyError naming what is no tensor and no plain data; RefusedError when there is not enough
        memory.
        """
        originals = _storages(tree)
        places: dict[tuple[str, int], int] = {}
        num_bytes = 0
        for key, storage in originals.items():
            places[key] = num_bytes
            num_bytes += -(-storage.nbytes() // ALIGN_BYTES) * ALIGN_BYTES
        pinned = any(storage.device.type == "cuda" for storage in originals.values())
        if self._flat.numel() < num_bytes or (pinned and not self._flat.is_pinned()):
            self._flat = _allocate(num_bytes, pinned)
        view = self._flat.numpy().data
        copies: Storages = {}
        for key, storage in originals.items():
            begin, end = places[key], places[key] + storage.nbytes()
            original = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            self._flat[begin:end].copy_(original, non_blocking=pinned)
            copies[key] = MemoryStorage(view[begin:end])
        root = present(tree, copies, "")
        for device in {storage.device for storage in originals.values() if storage.device.type == "cuda"}:
            torch.cuda.current_stream(device).synchronize()
        return Checkpoint("live", path, root)

    def release(self) -> None:
        """Give the memory back."""
        self._flat = torch.empty(0, dtype=torch.uint8)


def _storages(tree: Any) -> dict[tuple[str, int], torch.UntypedStorage]:
    """The storages of the plain tensors in `tree`, by the keys that `live.present` knows them under."""
    found: dict[tuple[str, int], torch.UntypedStorage] = {}
    for tensor in _tensors(tree):
        if is_plain(tensor):
            storage = tensor.untyped_storage()
            key = (str(storage.device), storage.data_ptr())
            if storage.nbytes() > (found[key].nbytes() if key in found else 0):
                found[key] = storage
    return found


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _allocate(num_bytes: int, pinned: bool) -> torch.Tensor:
    """`num_bytes` of memory, pinned for copies from a CUDA device.

    Raises: RefusedError.
    """
    try:
        if pinned:
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        return torch.frombuffer(_mapped(num_bytes), dtype=torch.uint8)
    except (RuntimeError, OSError, MemoryError, ValueError) as error:
        raise RefusedError(
            f"no memory for a copy of the training state: needs {num_bytes} bytes of host memory",
            "",
            "an asynchronous save keeps one copy of the state; free some memory, or save less",
        ) from error


def _mapped(num_bytes: int) -> mmap.mmap:
    """Fresh memory that a fork does not share."""
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(-1, num_bytes)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        with suppress(OSError):  # only advice
            memory.madvise(WIPE_ON_FORK)
    return memory

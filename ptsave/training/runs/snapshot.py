"""A copy of a training's state in host memory, from which it can be written while the training goes on.

The memory is allocated once and used again by every snapshot. Each storage is copied once, whole, so that
tied tensors and views stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ptsave.core.address import Location
from ptsave.core.checkpoint import LIVE, Checkpoint
from ptsave.core.storage import MemoryStorage
from ptsave.errors import RefusedError
from ptsave.models.weights.live import Storages, is_plain, present
from ptsave.models.weights.sharded import tensors_in
from ptsave.storage.system.processes import private_memory

ALIGN_BYTES = 64
"""Where a storage's copy may begin."""


Key = tuple[str, int]


class HostMemory:
    """Memory of the CPU that snapshots are copied to; as large as the largest one so far."""

    def __init__(self) -> None:
        self._flat = torch.empty(0, dtype=torch.uint8)

    def snapshot(self, tree: Mapping[str, Any], path: Location) -> Checkpoint:
        """Copy every tensor of `tree` to this memory; when it returns, the originals may change.

        The result, which is for a writer, is good until the next call. `path` is for messages.

        Raises: LossyError naming a value that is neither a tensor nor plain data; RefusedError when there
        is not enough memory.
        """
        places = self._copy(_storages(tree))
        view = self._flat.numpy().data
        copies: Storages = {key: MemoryStorage(view[begin:end]) for key, (begin, end) in places.items()}
        return Checkpoint(LIVE, path, present(tree, copies))

    def copies(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each plain tensor as one of the same shape, strides and values in this memory.

        They are good until the next call. Each has a storage of its size: torch clones a window of a larger
        one before it writes it.

        Raises: RefusedError when there is not enough memory.
        """
        places = self._copy(_storages(tensors))
        view = self._flat.numpy().data
        storages = {
            key: torch.frombuffer(view, dtype=torch.uint8, count=end - begin, offset=begin).untyped_storage()
            for key, (begin, end) in places.items()
        }
        made = {}
        for name, tensor in tensors.items():
            made[name] = torch.empty(tensor.shape if not tensor.numel() else 0, dtype=tensor.dtype)
            if tensor.numel():
                offset = int(tensor.storage_offset())
                made[name].set_(storages[_key(tensor)], offset, tensor.shape, tensor.stride())
        return made

    def _copy(self, originals: Mapping[Key, torch.UntypedStorage]) -> dict[Key, tuple[int, int]]:
        """Copy storages to this memory; returns where each begins and ends there, in bytes."""
        places: dict[Key, tuple[int, int]] = {}
        num_bytes = 0
        for key, storage in originals.items():
            places[key] = num_bytes, num_bytes + storage.nbytes()
            num_bytes += -(-storage.nbytes() // ALIGN_BYTES) * ALIGN_BYTES
        devices = {storage.device for storage in originals.values() if storage.device.type == "cuda"}
        if self._flat.numel() < num_bytes or (devices and not self._flat.is_pinned()):
            self._flat = _allocate(num_bytes, bool(devices))
        for key, storage in originals.items():
            begin, end = places[key]
            original = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            self._flat[begin:end].copy_(original, non_blocking=bool(devices))
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return places

    def release(self) -> None:
        """Give the memory back."""
        self._flat = torch.empty(0, dtype=torch.uint8)


def _key(tensor: torch.Tensor) -> Key:
    """What `live.present` knows the tensor's storage by."""
    storage = tensor.untyped_storage()
    return str(storage.device), storage.data_ptr()


def _storages(tree: Any) -> dict[Key, torch.UntypedStorage]:
    """The storages of the plain tensors in `tree`."""
    found: dict[Key, torch.UntypedStorage] = {}
    for tensor in tensors_in(tree):
        if is_plain(tensor):
            storage, key = tensor.untyped_storage(), _key(tensor)
            if storage.nbytes() > (found[key].nbytes() if key in found else 0):
                found[key] = storage
    return found


def _allocate(num_bytes: int, pinned: bool) -> torch.Tensor:
    """`num_bytes` of memory, pinned for copies from a CUDA device.

    Raises: RefusedError.
    """
    try:
        if pinned:
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        return torch.frombuffer(private_memory(num_bytes), dtype=torch.uint8)
    except (RuntimeError, OSError, MemoryError, ValueError) as error:
        raise RefusedError(
            f"no memory for a copy of the training state: needs {num_bytes} bytes of host memory",
            "",
            "an asynchronous save keeps one copy of the state; free some memory, or save less",
        ) from error

"""Checkpoint entries → torch tensors: each storage read once, ties kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from ptsave.core.nodes import TensorEntry
from ptsave.core.storage import Storage
from ptsave.errors import LossyError


def torch_dtype(entry: TensorEntry) -> torch.dtype:
    """The torch dtype of `entry`.

    Raises: LossyError when this torch has none of that name.
    """
    dtype = getattr(torch, entry.dtype.name, None)
    if not isinstance(dtype, torch.dtype):
        raise LossyError(
            f"{entry.name!r} has the dtype {entry.dtype.name}, which torch {torch.__version__} lacks",
            "",
            "use a newer torch, or convert with --dtype",
        )
    return dtype


def read_tensors(entries: Mapping[str, TensorEntry], device: str = "cpu") -> dict[str, torch.Tensor]:
    """Every entry as a tensor on `device`, in fresh memory.

    Only the part of a storage that the entries use is read; entries that share bytes share memory.
    """
    ranges = _used_ranges(entries.values())
    storages: dict[int, torch.UntypedStorage] = {}
    tensors = {}
    for name, entry in entries.items():
        if entry.kind not in ("tensor", "parameter"):
            raise LossyError(f"{name!r} is {entry.kind}, which is not a plain tensor", "", "")
        key = id(entry.storage)
        first, end = ranges[key]
        if key not in storages:
            storages[key] = _read(entry.storage, first, end - first).to(device).untyped_storage()
        dtype = torch_dtype(entry)
        tensor = torch.empty(0, dtype=dtype, device=device)
        offset = entry.offset - first // entry.dtype.itemsize if entry.num_elements else 0
        tensors[name] = tensor.set_(storages[key], offset, entry.shape, entry.strides)  # type: ignore[call-overload]
    return tensors


def _used_ranges(entries: Iterable[TensorEntry]) -> dict[int, tuple[int, int]]:
    """For each storage, the bytes from the first that any entry uses to the last, aligned to 16."""
    ranges: dict[int, tuple[int, int]] = {}
    for entry in entries:
        first, end = entry.byte_range
        if first == end:
            ranges.setdefault(id(entry.storage), (0, 0))
            continue
        first -= first % 16
        known = ranges.get(id(entry.storage), (0, 0))
        if known[0] != known[1]:
            first, end = min(first, known[0]), max(end, known[1])
        ranges[id(entry.storage)] = (first, end)
    return ranges


def _read(storage: Storage, offset_bytes: int, num_bytes: int) -> torch.Tensor:
    memory = torch.empty(num_bytes, dtype=torch.uint8)
    if num_bytes:
        storage.read_into(offset_bytes, memoryview(memory.numpy()))
    return memory

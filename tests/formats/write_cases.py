"""Checkpoints built by hand from torch tensors, for the writers' tests."""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import BY_NAME
from ptsave.core.nodes import TensorEntry
from ptsave.core.storage import MemoryStorage


def checkpoint_of(tree: Any, **fields: Any) -> Checkpoint:
    """`tree` with its tensors as entries over their own memory."""
    return Checkpoint("test", Path("test"), _present(tree, {}, {}), **fields)


def _present(value: Any, storages: dict[int, MemoryStorage], entries: dict[int, TensorEntry]) -> Any:
    if isinstance(value, torch.Tensor):
        if id(value) not in entries:
            entries[id(value)] = _entry(value, storages)
        return entries[id(value)]
    if isinstance(value, dict):
        copy: Any = OrderedDict() if isinstance(value, OrderedDict) else {}
        copy.update({key: _present(item, storages, entries) for key, item in value.items()})
        if hasattr(value, "_metadata"):
            copy._metadata = value._metadata
        return copy
    if type(value) in (list, tuple):
        return type(value)(_present(item, storages, entries) for item in value)
    return value


def _entry(tensor: torch.Tensor, storages: dict[int, MemoryStorage]) -> TensorEntry:
    storage = tensor.untyped_storage()
    key = storage.data_ptr() or id(tensor)
    if key not in storages:
        size = storage.nbytes()
        array = (ctypes.c_ubyte * size).from_address(storage.data_ptr()) if size else b""
        storages[key] = MemoryStorage(memoryview(array).cast("B"), owner=storage)
    return TensorEntry(
        "",
        BY_NAME[str(tensor.dtype).removeprefix("torch.")],
        tuple(tensor.shape),
        tuple(tensor.stride()),
        storages[key],
        tensor.storage_offset(),
        "parameter" if isinstance(tensor, torch.nn.Parameter) else "tensor",
        tensor.requires_grad,
    )


def bits(tensor: torch.Tensor) -> bytes:
    """The tensor's elements, row-major, bit for bit."""
    return bytes(tensor.detach().contiguous().flatten().view(torch.uint8).numpy()) if tensor.numel() else b""


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Same dtype, shape and bits."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert bits(found) == bits(expected)

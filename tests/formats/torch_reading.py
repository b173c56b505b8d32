"""Check what the readers see against what torch itself loads, bit by bit."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.nodes import TensorEntry
from ptsave.core.values.gather import contiguous


def bytes_of(entry: TensorEntry) -> bytes:
    """The elements of `entry`, row-major."""
    storage, offset_bytes = contiguous(entry)
    buffer = bytearray(entry.num_bytes)
    storage.read_into(offset_bytes, memoryview(buffer))
    return bytes(buffer)


def bytes_of_torch(tensor: torch.Tensor) -> bytes:
    """The elements of `tensor`, row-major, as they lie in memory."""
    laid_out = tensor.detach().contiguous()
    num_bytes = laid_out.numel() * laid_out.element_size()
    return ctypes.string_at(laid_out.data_ptr(), num_bytes) if num_bytes else b""


def assert_same(entry: TensorEntry, tensor: torch.Tensor) -> None:
    """Dtype, shape, strides and every bit are equal."""
    assert f"torch.{entry.dtype.name}" == str(tensor.dtype), entry
    assert entry.shape == tuple(tensor.shape), entry
    assert entry.strides == tensor.stride(), entry
    assert bytes_of(entry) == bytes_of_torch(tensor), entry


def flat(tree: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of what torch loaded, under the names that a checkpoint gives them."""
    if isinstance(tree, torch.Tensor):
        return {prefix or "value": tree}
    children: Mapping[Any, Any] = {}
    if isinstance(tree, Mapping):
        children = tree
    elif isinstance(tree, (list, tuple)):
        children = dict(enumerate(tree))
    found: dict[str, torch.Tensor] = {}
    for key, child in children.items():
        found |= flat(child, f"{prefix}.{key}" if prefix else str(key))
    return found


def assert_holds(checkpoint: Checkpoint, tree: Any) -> None:
    """The checkpoint's tensors are those of `tree`, in the same order, with the same ties."""
    expected = flat(tree)
    assert list(checkpoint.tensors) == list(expected)
    for name, tensor in expected.items():
        assert_same(checkpoint.tensors[name], tensor)
    by_memory: dict[int, set[str]] = {}
    by_storage: dict[int, set[str]] = {}
    for name, tensor in expected.items():
        if tensor.untyped_storage().nbytes():
            by_memory.setdefault(tensor.untyped_storage().data_ptr(), set()).add(name)
            by_storage.setdefault(id(checkpoint.tensors[name].storage), set()).add(name)
    assert sorted(map(sorted, by_memory.values())) == sorted(map(sorted, by_storage.values()))


def packaged(project: str, suffix: str) -> list[Path]:
    """The files of an installed project that end with `suffix`."""
    files = distribution(project).files or []
    found = [Path(str(file.locate())) for file in files if str(file).endswith(suffix)]
    assert found, (project, suffix)
    return found

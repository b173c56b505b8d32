"""Checkpoints built by hand from torch tensors, for the writers' tests."""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import BY_NAME, TABLE
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
    if not tensor.numel():
        return b""
    rows = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
    return bytes(rows.flatten().view(torch.uint8).numpy())


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Same dtype, shape and bits."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert bits(found) == bits(expected)


DTYPES = [
    getattr(torch, dtype.name)
    for dtype in TABLE
    if dtype.kind in ("float", "complex", "int", "uint", "bool")
    and dtype.name not in ("complex32", "float4_e2m1fn_x2")  # torch warns of one and cannot print the other
    and hasattr(torch, dtype.name)
]
SAFETENSORS_DTYPES = [dtype for dtype in DTYPES if BY_NAME[str(dtype)[6:]].safetensors is not None]
NUMPY_DTYPES = [dtype for dtype in DTYPES if BY_NAME[str(dtype)[6:]].numpy is not None]


@st.composite
def state_dicts(draw: st.DrawFn, dtypes: Sequence[torch.dtype] = DTYPES) -> OrderedDict[str, torch.Tensor]:
    """State dicts of tensors, views, ties, strides, empty and zero-dimensional ones."""
    found: OrderedDict[str, torch.Tensor] = OrderedDict()
    for i in range(draw(st.integers(0, 3))):
        dtype = draw(st.sampled_from(dtypes))
        base = random_tensor(draw(st.integers(0, 40)), dtype, seed=draw(st.integers(0, 9)))
        for j in range(draw(st.integers(1, 4))):
            name = f"{'layer.' * draw(st.integers(0, 1))}{i}.{j}"
            found[name] = draw(views(base))
            if draw(st.booleans()):
                found[f"tied.{name}"] = found[name]
    return found


@st.composite
def views(draw: st.DrawFn, base: torch.Tensor) -> torch.Tensor:
    """A view of a one-dimensional tensor: any shape and strides that fit."""
    rank = draw(st.integers(0, 3))
    room = len(base) - 1
    sizes, strides = [], []
    for _ in range(rank):
        stride = draw(st.integers(0, 7))
        most = 5 if stride == 0 else min(5, max(room, 0) // stride + 1)
        size = draw(st.integers(0, most))
        room -= max(size - 1, 0) * stride
        sizes.append(size)
        strides.append(stride)
    if len(base) == 0 and 0 not in sizes:
        return base[:0]
    offset = draw(st.integers(0, max(room, 0)))
    return torch.as_strided(base, sizes, strides, offset)


def random_tensor(count: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Elements with random bits (0 and 1 for bool)."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, (count,), generator=generator).bool()
    raw = torch.randint(0, 256, (count * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    return raw.view(dtype)

"""A live model presents itself as a Checkpoint: its storages' own memory, never copied."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from ptsave.core.address import Location
from ptsave.core.checkpoint import LIVE, Checkpoint
from ptsave.core.dtypes import BY_NAME
from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.core.storage import MemoryStorage
from ptsave.core.tree import dotted, rewrite
from ptsave.errors import LossyError
from ptsave.formats.kinds import quantized

Storages = dict[tuple[str, int], MemoryStorage]


def checkpoint_of(tree: Any, path: Location) -> Checkpoint:
    """`tree` (a state dict, or nested data that holds some) as a Checkpoint, for a writer.

    CPU tensors are windowed where they lie; others are copied to the CPU one at a time and kept.
    Tensors on one storage stay on one storage.

    Raises: LossyError naming a tensor or a value that no format of ptsave holds.
    """
    return Checkpoint(LIVE, path, present(tree, {}))


def present(tree: Any, storages: Storages) -> Any:
    """`tree` with each torch tensor as a TensorEntry and each torch value as plain data.

    Raises: LossyError naming what no format holds, or what holds itself; LimitError past MAX_DEPTH.
    """

    def leaf(path: Sequence[Any], value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            read = _quantized if value.is_quantized else entry_of
            return read(value, storages, dotted(path))
        if isinstance(value, torch.dtype):
            return BY_NAME[str(value).removeprefix("torch.")]
        if isinstance(value, bytearray):  # which may change while a snapshot is written
            return bytearray(value)
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            return value
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise LossyError(
            f"{dotted(path)!r} is a {kind}: not a tensor, not plain data",
            "",
            "keep plain data and tensors in the state dict (get_extra_state may return a dict of them)",
        )

    return rewrite(tree, leaf, keeps_cycles=False)


def _quantized(tensor: torch.Tensor, storages: Storages, name: str) -> Opaque:
    """`tensor` as `formats.kinds.quantized` has it.

    Raises: LossyError for what has no integers of its own (`quint4x2`).
    """
    scheme = str(tensor.qscheme()).removeprefix("torch.")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in quantized.DTYPES:
        raise LossyError(f"{name!r} is a quantized tensor of dtype {dtype}", "", "convert it first")
    state: dict[str, Any] = {
        "int_repr": entry_of(tensor.int_repr(), storages, f"{name}.int_repr"),
        "dtype": BY_NAME[dtype],
        "qscheme": scheme,
    }
    if scheme == quantized.PER_TENSOR:
        state |= {"scale": tensor.q_scale(), "zero_point": tensor.q_zero_point()}
    else:
        state |= {
            "scales": entry_of(tensor.q_per_channel_scales(), storages, f"{name}.scales"),
            "zero_points": entry_of(tensor.q_per_channel_zero_points(), storages, f"{name}.zero_points"),
            "axis": tensor.q_per_channel_axis(),
        }
    return Opaque(quantized.NAME, (), state)


def entry_of(tensor: torch.Tensor, storages: Storages, name: str) -> TensorEntry:
    """`tensor` as a view of its storage's memory.

    Raises: LossyError when it is not a plain strided tensor (sparse, quantized, nested, meta, a subclass).
    """
    kind = refused_kind(tensor)
    if kind is not None:
        raise LossyError(
            f"{name!r} is {kind}, which cannot be kept as plain bytes",
            "",
            "convert it to a dense tensor first",
        )
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    requires_grad = tensor.requires_grad
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return TensorEntry(
        name,
        BY_NAME[str(tensor.dtype).removeprefix("torch.")],
        tuple(tensor.shape),
        tuple(tensor.stride()),
        _storage_of(tensor, storages),
        int(tensor.storage_offset()),
        "parameter" if is_parameter else "tensor",
        requires_grad,
    )


def refused_kind(tensor: torch.Tensor) -> str | None:
    """What `tensor` is where it is not a plain strided tensor with values of its own; else None."""
    if tensor.layout is not torch.strided:
        return f"a {str(tensor.layout).removeprefix('torch.')} tensor"
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.is_quantized:
        return "a quantized tensor"
    if tensor.is_meta:
        return "on the meta device (it has no values)"
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return f"a {type(tensor).__module__}.{type(tensor).__qualname__}"
    return None


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether `entry_of` takes it."""
    return refused_kind(tensor) is None


def _storage_of(tensor: torch.Tensor, storages: Storages) -> MemoryStorage:
    storage = tensor.untyped_storage()
    key = (str(storage.device), storage.data_ptr())
    num_bytes = storage.nbytes()
    if num_bytes == 0:
        return MemoryStorage(memoryview(b""))
    if key not in storages or storages[key].num_bytes < num_bytes:  # NumPy's views of one array, as storages
        host = storage.cpu()  # type: ignore[no-untyped-call]
        array = (ctypes.c_ubyte * num_bytes).from_address(host.data_ptr())
        # Both are kept as owners: the addresses stay valid, and are not given out again.
        storages[key] = MemoryStorage(memoryview(array).cast("B"), owner=(storage, host))
    return storages[key]

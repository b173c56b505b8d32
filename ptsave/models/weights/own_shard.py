"""Filling a sharded model: each rank reads only its own box of every tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor

from ptsave.core.nodes import TensorEntry
from ptsave.core.tree import own_kind, rewrite
from ptsave.core.values.gather import laid_out
from ptsave.formats.dcp.chunks import Box, window
from ptsave.models.weights.sharded import Parts


def box_of(tensor: DTensor) -> Box:
    """The box of the whole tensor that this rank holds, from the method that torch itself uses to save."""
    chunks = tensor.__create_chunk_list__()  # type: ignore[no-untyped-call]
    for chunk in chunks:
        return Box(tuple(chunk.offsets), tuple(chunk.sizes))
    return Box((0,) * tensor.dim(), tuple(tensor.to_local().shape))


def _cut(entry: TensorEntry, want: torch.Tensor) -> TensorEntry:
    # a file may hold a tensor in other strides than the shards that FSDP2 flattens
    return laid_out(window(entry, box_of(want))) if isinstance(want, DTensor) else entry


def _join(tensor: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    if not isinstance(want, DTensor):
        return tensor
    return DTensor.from_local(
        tensor.view(want.to_local().shape),  # of a shard without elements, torch keeps other sizes
        want.device_mesh,
        want.placements,
        run_check=False,
        shape=want.shape,
        stride=want.stride(),
    )


def part_of(tensor: torch.Tensor, want: DTensor) -> torch.Tensor:
    """The shard of this rank, copied from a whole tensor that is to be sharded like `want`.

    Raises: ValueError when the shapes differ.
    """
    if tensor.shape != want.shape:
        raise ValueError(f"the tensor has shape {list(tensor.shape)}, not {list(want.shape)}")
    box = box_of(want)
    own = tensor[tuple(slice(o, o + size) for o, size in zip(box.offsets, box.sizes, strict=True))]
    device = tensor.device if want.is_meta else want.device
    return _join(own.to(device, copy=True, memory_format=torch.contiguous_format), want)


OWN_PARTS = Parts(_cut, _join)
"""For `fill`: the shard of each tensor that this rank holds."""


def num_local_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers that this rank holds."""
    local = (_local(tensor) for tensor in (*model.parameters(), *model.buffers()))
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(value: Any) -> Any:
    """The output of a forward pass, with each DTensor in it gathered on every rank."""

    def leaf(path: Sequence[Any], value: Any) -> Any:
        if isinstance(value, DTensor):
            return value.full_tensor()
        return value.wait() if isinstance(value, AsyncCollectiveTensor) else value

    return rewrite(value, leaf, leave=own_kind, containers=(dict, list, tuple))

"""Tensors that are sharded over ranks (DTensor), recognised without importing torch.distributed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ptsave.core.nodes import TensorEntry
from ptsave.core.tree import walk


@dataclass(frozen=True)
class Parts:
    """What of each tensor a model takes: all of it, unless the model is sharded over ranks."""

    cut: Callable[[TensorEntry, torch.Tensor], TensorEntry] = lambda entry, want: entry
    """The part of an entry that the model's tensor of its name holds here."""
    join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda tensor, want: tensor
    """That part, once it is read, as the tensor that the model expects."""


def is_sharded(value: Any) -> bool:
    """Whether `value` is a DTensor, of which this process holds a shard."""
    return isinstance(value, torch.Tensor) and hasattr(type(value), "full_tensor")


def has_replicas(value: Any) -> bool:
    """Whether `value` is a DTensor of which other ranks hold the shard of this process, too."""
    if not is_sharded(value):
        return False
    mesh = value.device_mesh
    return any(one.is_replicate() and mesh.size(dim) > 1 for dim, one in enumerate(value.placements))


def is_fsdp_module(module: nn.Module) -> bool:
    """Whether FSDP2 shards the parameters of `module`; FSDP2 then has replaced the class of the module."""
    return callable(getattr(module, "_get_fsdp_state", None)) and hasattr(module, "unshard")


def has_sharded(tree: Any) -> bool:
    """Whether nested data holds a sharded tensor."""
    return any(map(is_sharded, tensors_in(tree)))


def tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested data, in order; the tensors of a container that occurs twice come once."""
    return (node for _, node in walk(tree) if isinstance(node, torch.Tensor))


def reshard_parameters(module: nn.Module) -> None:
    """Free what FSDP2 gathered for a forward pass, so that the parameters are the sharded ones again.

    After a forward pass without a backward pass, the outermost FSDP unit still holds gathered parameters.
    An optimizer knows only the sharded ones.
    """
    for inner in module.modules():
        if callable(reshard := getattr(inner, "reshard", None)) and hasattr(inner, "unshard"):
            reshard()


def placed(value: Any, want: torch.Tensor) -> Any:
    """`value` as it goes into the tensor `want`: the shard of this rank where only `want` is sharded."""
    if not is_sharded(want) or is_sharded(value) or not isinstance(value, torch.Tensor):
        return value
    from ptsave.models.weights.own_shard import part_of  # which imports torch.distributed

    return part_of(value, want)  # type: ignore[arg-type]

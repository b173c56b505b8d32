"""Tensors that are spread over ranks (DTensor), told without importing torch.distributed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ptsave.core.nodes import TensorEntry


@dataclass(frozen=True)
class Parts:
    """What of each tensor a model takes: all of it, unless the model is spread over ranks."""

    cut: Callable[[TensorEntry, torch.Tensor], TensorEntry] = lambda entry, want: entry
    """The part of an entry that the model's tensor of its name holds here."""
    join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda tensor, want: tensor
    """That part, once it is read, as the tensor that the model expects."""


def is_spread(value: Any) -> bool:
    """Whether it is a DTensor, of which this process holds a part."""
    return isinstance(value, torch.Tensor) and hasattr(type(value), "full_tensor")


def has_replicas(value: Any) -> bool:
    """Whether it is a DTensor of which other ranks hold this process's part, too."""
    if not is_spread(value):
        return False
    mesh = value.device_mesh
    return any(one.is_replicate() and mesh.size(dim) > 1 for dim, one in enumerate(value.placements))


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2 shards the parameters of a module, whose class it has made another one."""
    return callable(getattr(module, "_get_fsdp_state", None)) and hasattr(module, "unshard")


def has_spread(tree: Any) -> bool:
    """Whether there is one anywhere in nested data."""
    return any(map(is_spread, tensors_in(tree)))


def tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested data, in order; what lies in a container that is met again comes once."""
    stack, seen = [iter((tree,))], set()
    while stack:
        for value in stack[-1]:
            if isinstance(value, torch.Tensor):
                yield value
            elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
                seen.add(id(value))
                stack.append(iter(value.values() if isinstance(value, Mapping) else value))
                break
        else:
            stack.pop()


def gather_no_more(module: nn.Module) -> None:
    """Free what FSDP2 has gathered for a forward pass: the parameters are the spread ones again.

    After a pass without a backward one, the outermost unit's are whole; an optimizer knows only the others.
    """
    for inner in module.modules():
        if callable(reshard := getattr(inner, "reshard", None)) and hasattr(inner, "unshard"):
            reshard()

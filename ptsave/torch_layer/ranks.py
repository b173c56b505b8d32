"""What a training on several processes agrees on. On one process, the process itself."""

from __future__ import annotations

import torch
import torch.distributed as dist


def is_first() -> bool:
    """Whether this process is the one that writes: rank 0, or the only one."""
    return not _is_distributed() or dist.get_rank() == 0


def of_first(number: int) -> int:
    """The `number` of rank 0. Every rank calls it."""
    if not _is_distributed():
        return number
    told = torch.tensor([number], device=_device())
    dist.broadcast(told, src=0)
    return int(told.item())


def largest(number: int) -> int:
    """The largest `number` of any rank. Every rank calls it."""
    if not _is_distributed():
        return number
    told = torch.tensor([number], device=_device())
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return int(told.item())


def meet() -> None:
    """Wait until every rank is here."""
    largest(0)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _device() -> torch.device:
    """One that the group's backend moves numbers on: NCCL knows none but CUDA's."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if dist.get_backend() == "nccl"
        else torch.device("cpu")
    )

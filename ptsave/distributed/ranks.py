"""What a training on several processes agrees on. On one process, the process itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ptsave.distributed.environment import timeout
from ptsave.errors import PtsaveError, RankError, UsageError

T = TypeVar("T")
TIMEOUT_SECONDS = 1800.0
"""How long a rank of a training waits for the slowest disk: as torch does. PTSAVE_TIMEOUT says otherwise."""


def is_first() -> bool:
    """Whether this process speaks for all: rank 0, or the only one."""
    return number() == 0


def number() -> int:
    """The rank of this process; 0 where it is the only one."""
    return dist.get_rank() if _is_distributed() else 0


def size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if _is_distributed() else 1


def gather(value: T, group: Any = None) -> list[T]:
    """Every rank's value, by rank. Every rank calls it; `group`: in place of the default one, with all.

    Raises: RankError when another rank does not come.
    """
    if not _is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    with _meeting():
        dist.all_gather_object(values, value, group=group)
    return values


def together(work: Callable[[], T], group: Any = None, *, says: Callable[[T], str] | None = None) -> T:
    """What `work` returns here, when it has succeeded on every rank. Every rank calls it, and none is left
    behind in what comes next.

    `says`: in words, of the result, what this rank is about to do; all must say the same.

    Raises: what `work` raises here; RankError where it fails on another rank; UsageError, on every rank,
    where two are about to do different things.
    """
    try:
        result = work()
    except Exception as error:
        gather((_why(error), ""), group)
        raise
    told = gather(("", says(result) if says is not None else ""), group)
    for rank, (why, _) in enumerate(told):
        if why:
            raise RankError(f"rank {rank} failed: {why}", "", "its own message says more")
    for rank, (_, said) in enumerate(told):
        if said != told[0][1]:
            what = (
                f"rank 0 {told[0][1] or 'does something else'}, rank {rank} {said or 'does something else'}"
            )
            raise UsageError(what, "Checkpoints", "call the same on every rank, with the same step")
    return result


def from_first(make: Callable[[], T], group: Any = None) -> T:
    """What `make` returns on rank 0, on every rank; only rank 0 calls it.

    Raises: what it raises on rank 0; RankError on the others.
    """
    made = together(lambda: make() if is_first() else None, group)
    if not _is_distributed():
        return made  # type: ignore[return-value]
    values = [made]
    with _meeting():
        dist.broadcast_object_list(values, src=0, group=group)
    return values[0]  # type: ignore[return-value]


@contextmanager
def _meeting() -> Iterator[None]:
    """Raises: RankError for what torch says when a rank does not come, or is gone."""
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        hint = "every rank calls it; see how the others ended (PTSAVE_TIMEOUT=SECONDS waits as long)"
        raise RankError(f"another rank did not come: {error}", "", hint) from error


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, PtsaveError) else f"{type(error).__name__}: {error}"


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


def own_group() -> Any:
    """A group of all ranks on the CPU, for what goes on beside the training's own collectives.

    None where there are no ranks. Every rank calls it.
    """
    if not _is_distributed():
        return None
    return dist.new_group(backend="gloo", timeout=timeout(TIMEOUT_SECONDS))


def leave(group: Any) -> None:
    """Give a group back, unless the training has ended them all."""
    if group is not None and dist.is_initialized():
        dist.destroy_process_group(group)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _device() -> torch.device:
    """One that the group's backend moves numbers on: NCCL knows none but CUDA's."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if dist.get_backend() == "nccl"
        else torch.device("cpu")
    )

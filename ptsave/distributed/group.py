"""The ranks that work together: who they are, what they tell each other, and which of them did not come.

Imports no torch before ranks meet, for commands that do not need it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from ptsave.errors import PtsaveError, RankError, UsageError

T = TypeVar("T")

TRAINING_SECONDS = 1800.0
"""How long a rank of a training waits for the slowest disk: as torch does. PTSAVE_TIMEOUT says otherwise."""
FIRST_SECONDS = 30.0
"""How long ranks that are started together may be apart in reading their command line."""
ROLL_CALL_SECONDS = 3.0
"""How long a rank waits to see which of the others are still there."""
MAX_LISTED = 8
"""How many ranks a sentence lists."""
_NAMES = ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Source: torch/distributed/elastic/agent/server/local_elastic_agent.py of torch 2.13 (`worker_env`)."""


# --- before the ranks meet: what torchrun tells a command of itself ---------------------------------------


def is_under_torchrun() -> bool:
    """Whether torchrun started this process as one of its ranks."""
    return all(os.environ.get(name) for name in _NAMES)


def is_first_rank() -> bool:
    """Whether this process speaks for all: rank 0, or a process without other ranks."""
    return not is_under_torchrun() or os.environ["RANK"] == "0"


def let_first_speak() -> None:
    """On another rank, wait for rank 0 to say what all have found: torchrun ends all when one has ended.

    Returns after FIRST_SECONDS, when it seems that rank 0 has nothing to say.
    """
    if not is_first_rank():
        time.sleep(FIRST_SECONDS)


def timeout(default_seconds: float) -> timedelta:
    """How long a rank waits for the others in one collective: what PTSAVE_TIMEOUT says, or the default.

    Raises: UsageError.
    """
    text = os.environ.get("PTSAVE_TIMEOUT", "")
    try:
        seconds = float(text) if text else default_seconds
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise UsageError(f"{text!r} is not a number of seconds", "PTSAVE_TIMEOUT", "for example: 600")
    return timedelta(seconds=seconds)


# --- together ---------------------------------------------------------------------------------------------


class LostError(RankError):
    """Another rank is not there any more, or does not come."""

    is_named = False

    def name(self, ranks: list[int]) -> None:
        """Say which."""
        if ranks:
            names = ", ".join(map(str, ranks[:MAX_LISTED])) + (", …" if len(ranks) > MAX_LISTED else "")
            self.what = f"{'rank' if len(ranks) == 1 else 'ranks'} {names} died, or hangs"
            self.is_named = True


class CarriedError(RankError):
    """Another rank failed, and says more about it itself."""


@dataclass
class Group:
    """The ranks, as one of them sees them; by default a process that is alone.

    Every rank calls each of the collectives, in the same order. One that waits longer for another rank than
    the group's timeout raises LostError, which names the ranks that did not come.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    """This rank's own: `cpu`, or `cuda:LOCAL_RANK`."""
    handle: Any = None
    """torch's process group; None: the default one, or none at all."""
    _num_calls: int = field(default=0, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for all."""
        return self.rank == 0

    def speak(self, say: Callable[..., None]) -> Callable[..., None]:
        """`say` on rank 0, and silence on the others."""
        return say if self.is_first else lambda *_: None

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank, on every rank."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            with self._meeting() as dist:
                dist.all_gather_object(values, value, group=self.handle)
        return values

    def gather_to_first(self, value: T) -> list[T]:
        """Every rank's value, by rank, on rank 0, whose own is not sent; nothing on the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_first else None
        with self._meeting() as dist:
            dist.gather_object(None if self.is_first else value, values, dst=0, group=self.handle)
        return [] if values is None else [value, *values[1:]]

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, on every rank; only rank 0 calls it.

        Raises: what it raises on rank 0; CarriedError on the others.
        """
        made = [self.together(lambda: make() if self.is_first else None)]
        if self.size > 1:
            with self._meeting() as dist:
                dist.broadcast_object_list(made, src=0, group=self.handle)
        return made[0]  # type: ignore[return-value]

    def together(self, work: Callable[[], T], *, says: Callable[[T], str] | None = None) -> T:
        """What `work` returns here, when it has succeeded on every rank: none is left behind.

        `says`: in words, of the result, what this rank is about to do; all must say the same.

        Raises: what `work` raises here; CarriedError where it fails on another rank; UsageError, on every
        rank, where two are about to do different things.
        """
        try:
            result = work()
        except Exception as error:
            self.gather((_why(error), ""))
            raise
        told = self.gather(("", says(result) if says is not None else ""))
        for rank, (why, _) in enumerate(told):
            if why:
                raise CarriedError(f"rank {rank} failed: {why}", "", "its own message says more")
        for rank, (_, said) in enumerate(told):
            if said != told[0][1]:
                acts = [words or "does something else" for words in (told[0][1], said)]
                what = f"rank 0 {acts[0]}, rank {rank} {acts[1]}"
                raise UsageError(what, "Checkpoints", "call the same on every rank, with the same step")
        return result

    def agree(self, what: str, value: str, hint: str) -> None:
        """Insist that all ranks have the same value.

        Raises: RankError naming two ranks that do not.
        """
        values = self.gather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise RankError(f"ranks 0 and {rank} have different {what}", "", hint)

    def largest(self, number: int) -> int:
        """The largest `number` of any rank: a collective that is cheap enough for each step of a training."""
        if self.size == 1:
            return number
        import torch

        told = torch.tensor([number])
        with self._meeting() as dist:
            dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self.handle)
        return int(told.item())

    def meet(self) -> None:
        """Wait until every rank is here."""
        self.largest(0)

    def leave(self) -> None:
        """Give torch's group back, unless the training has ended them all."""
        if self.handle is not None and _is_initialized():
            import torch.distributed as dist

            dist.destroy_process_group(self.handle)

    @contextmanager
    def _meeting(self) -> Iterator[Any]:
        """torch.distributed, for one collective.

        Raises: LostError when another rank does not come, or is gone.
        """
        import torch.distributed as dist

        self._num_calls += 1
        try:
            yield dist
        except (RuntimeError, dist.DistError) as error:
            raise self.lost(error) from error

    def lost(self, error: Exception) -> LostError:
        """What torch says when a rank does not come, or is gone, with the ranks that did not come as far."""
        found = broken(error)
        # A store that hangs with its rank must not keep this one.
        lost: list[int] = []
        call = threading.Thread(target=self._call_roll, args=(lost,), name="ptsave-roll-call", daemon=True)
        call.start()
        call.join(ROLL_CALL_SECONDS + 1)
        if not lost:
            found.what += f": {error}"
        found.name(list(lost))
        return found

    def _call_roll(self, lost: list[int]) -> None:
        """Tell the others, in the group's store, that this rank came; add those that did not.

        Those that did notice a lost rank at about the same time: gloo closes the connections.
        """
        import torch.distributed as dist

        group: Any = self.handle or dist.group.WORLD
        if hasattr(group, "get_group_store"):  # torch 2.6 has none
            store, call = group.get_group_store(), f"ptsave/came/{self._num_calls}"
            with suppress(RuntimeError):  # its host is gone
                store.set(f"{call}/{self.rank}", "")
                lost += absent(store, call, range(self.size), ROLL_CALL_SECONDS)


ALONE = Group()
"""A process without other ranks."""


def training_group(known: Group | None = None) -> Group:
    """The ranks of a training, for what goes on beside its own collectives; ALONE where it has one process.

    Every rank calls it, after the training's own `init_process_group`, whatever its backend. `known`: what an
    earlier call has made.
    """
    if not _is_initialized():
        return ALONE
    import torch.distributed as dist

    if known is not None and known.handle is not None:
        return known
    handle = dist.new_group(backend="gloo", timeout=timeout(TRAINING_SECONDS))
    return Group(dist.get_rank(), dist.get_world_size(), handle=handle)


def training_rank() -> int:
    """The rank of this process in its training; 0 where it is the only one."""
    import torch.distributed as dist

    return dist.get_rank() if _is_initialized() else 0


def broken(error: BaseException) -> LostError:
    """What an error of torch's collectives means."""
    from ptsave.models.torch_texts import has_timed_out

    if has_timed_out(error):
        hint = "PTSAVE_TIMEOUT=SECONDS waits longer, where a rank is only slow"
        return LostError("a rank did not come in time", "", hint)
    return LostError("the connection to another rank broke", "", "see how the others ended")


def absent(store: Any, key: str, ranks: Iterable[int], seconds: float) -> list[int]:
    """Those of the ranks that do not set KEY/RANK in `store` in time: a wait that a signal can end, as
    torch's own cannot."""
    waiting, end = list[int](), time.monotonic() + seconds
    with suppress(RuntimeError):  # its host is gone: what it said before counts
        while waiting := [rank for rank in waiting or ranks if not store.check([f"{key}/{rank}"])]:
            if time.monotonic() > end:
                break
            time.sleep(0.02)
    return waiting


def _is_initialized() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, PtsaveError) else f"{type(error).__name__}: {error}"

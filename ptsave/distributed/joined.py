"""The ranks that torchrun started, and how they fail: one says why, the others leave, nobody waits for ever.

A rank that fails writes so into torchrun's own store, which outlives every rank; the first one to do it is
the one that speaks. Each rank has a thread that looks there, since a rank inside a collective looks at
nothing. A rank that was killed writes nothing: then the others notice a closed connection or torchrun's
signal, and the one that speaks says which rank did not leave with them.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from ptsave import stopping, streams
from ptsave.distributed.group import (
    ROLL_CALL_SECONDS,
    CarriedError,
    Group,
    LostError,
    absent,
    broken,
    timeout,
)
from ptsave.errors import (
    CorruptError,
    MissingFileError,
    Option,
    PtsaveError,
    RankError,
    UsageError,
    WriteError,
)
from ptsave.models.torch_texts import is_of_gloo

TIMEOUT_SECONDS = 600.0
"""How long a rank waits for the others in one collective; PTSAVE_TIMEOUT says otherwise."""
LOOK_SECONDS = 0.2
"""How often a rank looks whether another one has failed."""
LEAVE_SECONDS = 10.0
"""How long a rank has to unwind before it is ended: it may be inside a call that nothing interrupts."""
_FAILED = "failed"


@contextmanager
def joined(device: str) -> Iterator[Group]:
    """The group of all ranks, from the environment that torchrun makes, with each rank on its own device.

    On a failure the block's error comes out on one rank; the others leave with exit code 5 and no word.

    Raises: UsageError for a device that is not there, RankError when a rank is lost.
    """
    deadline = timeout(TIMEOUT_SECONDS)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    failures = _Failures(_store(deadline), rank, size)
    failures.watch()
    try:
        own = _own_device(device)
        failures.meet(deadline.total_seconds())
        store, _, _ = next(rendezvous("env://", timeout=deadline))
        backend = "gloo" if own == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=deadline)
        group = Group(rank, size, own)
        yield group
        streams.flush()  # torchrun ends the others as soon as it sees that one has failed
        group.meet()
    except BaseException as error:
        # torchrun sends it to all as soon as it sees that one has ended: it is not to interrupt this
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        error = _explained(error)
        if isinstance(error, KeyboardInterrupt):
            raise  # a person, not torchrun
        if isinstance(error, CarriedError) or not failures.is_first_to_fail(error):
            failures.leave()
            raise SystemExit(RankError.exit_code) from None
        if isinstance(error, LostError) and not error.is_named:
            error.name(failures.missing())
        raise _placed(error, rank) from error
    finally:
        failures.stop()
    dist.destroy_process_group()


def _store(timeout: timedelta) -> Store:
    """A connection of our own to torchrun's store: its operations must not wait behind a collective's."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    run = f"{os.environ['TORCHELASTIC_RUN_ID']}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        return PrefixStore(f"ptsave/{run}", TCPStore(host, port, is_master=False, timeout=timeout))
    except dist.DistError:
        if os.environ["RANK"] != "0":
            raise SystemExit(RankError.exit_code) from None
        hint = "start it again; see why it ended, or what is in the way of this port"
        raise RankError("torchrun's own process cannot be reached", f"{host}:{port}", hint) from None


def _own_device(device: str) -> str:
    if device == "cpu":
        return device
    if device != "cuda":
        raise UsageError(
            "ranks work on cpu, or on cuda, each on a GPU of its own",
            Option("device", device),
            Option("device", "cuda"),
        )
    number = int(os.environ["LOCAL_RANK"])
    if number >= torch.cuda.device_count():
        what = f"local rank {number} has no GPU of its own: there are {torch.cuda.device_count()}"
        raise UsageError(what, Option("device", device), ("start fewer ranks, or ", Option("device", "cpu")))
    torch.cuda.set_device(number)
    return f"cuda:{number}"


def _explained(error: BaseException) -> BaseException:
    """`error`, or what it means where it comes from a collective that broke, or from torchrun's signal."""
    if stopping.received == signal.SIGTERM:
        stopping.received = 0
        return LostError("torchrun stopped the ranks", "", "see what it says of the rank that ended first")
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, LostError):
            return link
        if isinstance(link, dist.DistError) or is_of_gloo(link):
            return broken(link)
        link = link.__cause__ or link.__context__
    return error


def _placed(error: BaseException, rank: int) -> BaseException:
    """The error with the rank that it happened on, where that may matter."""
    if isinstance(error, (WriteError, CorruptError, MissingFileError)) and "rank" not in error.details:
        error.where = f"rank {rank}, {error.where}" if error.where else f"rank {rank}"
    if isinstance(error, PtsaveError):
        error.details.setdefault("rank", rank)
    return error


class _Failures:
    """Who has failed, in a store that all ranks reach."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="ptsave-ranks", daemon=True)

    def watch(self) -> None:
        """From here on, leave when another rank fails."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer. A thread that is inside the store when Python exits would abort the process."""
        self._is_over.set()
        self._thread.join()

    def meet(self, timeout_seconds: float) -> None:
        """Wait for all ranks in a way that a signal can end, as torch's own wait cannot.

        Raises: RankError.
        """
        self._store.set(f"here/{self._rank}", "")
        if waiting := absent(self._store, "here", range(self._size), timeout_seconds):
            error = LostError("", "", "see why it did not start")
            error.name(waiting)
            raise error

    def is_first_to_fail(self, error: BaseException) -> bool:
        """Tell all others; whether none of them was quicker."""
        mine = json.dumps({"rank": self._rank, "why": str(error)})
        try:
            return bool(self._store.compare_set(_FAILED, "", mine).decode() == mine)
        except RuntimeError:  # torchrun itself is gone
            return self._rank == 0

    def leave(self) -> None:
        """Tell that this rank is well and leaves."""
        with suppress(RuntimeError):
            self._store.set(f"left/{self._rank}", "")

    def missing(self) -> list[int]:
        """The other ranks that do not leave."""
        others = [rank for rank in range(self._size) if rank != self._rank]
        return absent(self._store, "left", others, ROLL_CALL_SECONDS)

    def _look(self) -> None:
        while not self._is_over.wait(LOOK_SECONDS):
            try:
                if not self._store.check([_FAILED]):
                    continue
                who = json.loads(self._store.get(_FAILED))["rank"]
            except (RuntimeError, ValueError, KeyError):
                continue
            if who == self._rank:
                return
            self.leave()
            os.kill(os.getpid(), signal.SIGTERM)  # unwinds the main thread, if anything can
            if not self._is_over.wait(LEAVE_SECONDS):
                os._exit(RankError.exit_code)
            return

"""Pins under torchrun: the ranks share the reading of what a `ptsave.lock` pins."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.nodes import TensorEntry
from ptsave.distributed.group import Group
from ptsave.distributed.shares import share_of
from ptsave.formats import open_checkpoint
from ptsave.verbs import signing
from ptsave.verbs.audit import Found, digests_of


def read_together(group: Group, tensors: Mapping[str, TensorEntry], algorithms: Collection[str]) -> Found:
    """The digests of all tensors, of which each rank reads its share; without those that cannot be read."""
    mine = share_of(tensors, group.rank, group.size)
    return gathered(group, mine, digests_of(mine, algorithms), tensors)


def gathered(
    group: Group, mine: Mapping[str, TensorEntry], found: Found, tensors: Mapping[str, TensorEntry]
) -> Found:
    """The digests of all `tensors`, of which each rank has those of its own, `mine`, in `found`."""
    parts = group.gather({name: found[entry.view] for name, entry in mine.items()})
    named = {name: digests for part in parts for name, digests in part.items()}
    return {entry.view: named[name] for name, entry in tensors.items() if name in named}


def open_pinned(group: Group, where: Location, named: Location | None) -> Checkpoint:
    """Open the checkpoint at `where`, which must be what the lock pins: the `named` one, or the folder's.

    Raises: RefusedError with what departs; RankError where ranks have other locks; what opening raises.
    """
    lock = signing.lock_for(named)
    known = {} if lock is None else {name: pin.digest for name, pin in lock.pins.items()}
    group.agree("locks", repr(sorted(known.items())), "run every rank in the same folder")
    return signing.pinned(open_checkpoint(where, in_part=True), lock, partial(read_together, group))

"""What each rank had of its own, given back to it: or to another rank, what can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ptsave.core.tree import dotted
from ptsave.distributed.group import ALONE, Group
from ptsave.errors import CorruptError, LossyError
from ptsave.training.apart.table import (
    ABSENT,
    DATA,
    GENERATOR,
    GRADIENT,
    GRADIENTS,
    NAMES,
    POSITION,
    RNG,
    SHARD,
    VALUE,
    WEIGHTS,
    Table,
    few,
    read_plan,
)
from ptsave.training.fingerprint import item_of
from ptsave.training.items import MISSING, Path, flatten, named, put, remove, value_at
from ptsave.training.keys import RANK_VALUES, RANKS, WORLD_SIZE
from ptsave.training.optimizers.names import GROUPS, PARAMS, STATE, is_optimizer
from ptsave.training.runs.contents import OWN_KEYS


class Live(NamedTuple):
    """The names of what the modules of now hold."""

    mine: frozenset[Path] = frozenset()
    """On this rank."""
    others: Sequence[Path] = ()
    """On other ranks alone: the other stages of a pipeline."""


def live_paths(live: Mapping[str, Any], kinds: Mapping[Path, str], group: Group) -> Live:
    """What the modules in `live`, the state of now, hold here and on other ranks. Every rank calls it.

    Raises: LossyError for what is neither a tensor nor plain data; RankError on the other ranks then.
    """
    modules = {path for path, kind in kinds.items() if kind == WEIGHTS}
    paths = group.together(
        lambda: frozenset(
            path
            for path, _ in flatten(live)
            if any(path[:length] in modules for length in range(1, len(path)))
        )
    )
    digests = group.gather(item_of(sorted(map(dotted, paths)), VALUE).digest)
    if len(set(digests)) == 1:
        return Live(paths)
    return Live(paths, sorted(paths.union(*group.gather(paths)) - paths, key=str))


_NOTHING = Live()


def state_of(root: Any, live: Live = _NOTHING, group: Group = ALONE) -> tuple[dict[str, Any], list[str]]:
    """The state in `root`, a checkpoint's tree, as this rank had it; and in words what it cannot have.

    What is not the state's is left out, and so is what only other ranks take. Where this rank's modules are
    those that another rank saved, it is given them by name. The leaves are the same ones, and may be what
    stands for tensors.

    Raises: LossyError where it is for other ranks than there are; CorruptError.
    """
    if not isinstance(root, dict):
        return {}, []
    then, now = root.get(WORLD_SIZE, 1), group.size
    found, plan = root.get(RANKS), root.get(RANK_VALUES)
    overlays = found if isinstance(found, Mapping) else {}
    state = {key: value for key, value in root.items() if key not in OWN_KEYS}
    notes: list[str] = []
    if then != now:
        what = f"saved by {then} ranks and resumed by {now}: other ranks draw other random numbers"
        notes.append(f"{RNG}: {what}")
    if isinstance(plan, Mapping):
        state = named(state)
        table = read_plan(plan, then)
        if then == now and not _has_moved(table, live, group):
            _give_own(state, overlays, table, group)
        else:
            notes += _give_to_others(state, overlays, table, then, group)
    elif then != now and group.rank:
        state.pop(RNG, None)  # rank 0's, as all had it
    if live.others:
        state = named(state)
        for path in live.others:
            remove(state, path)
        _forget(state, {path[-1] for path in live.others} - {path[-1] for path in live.mine})
    return state, notes


def _forget(state: dict[str, Any], names: set[Any]) -> None:
    """Take parameters that only other ranks have out of the states of optimizers."""
    for part in filter(is_optimizer, state.values()):
        for group in part[GROUPS]:
            group[PARAMS] = [name for name in group[PARAMS] if name not in names]
        for name in names:
            part.get(STATE, {}).pop(name, None)


def _has_moved(table: Table, live: Live, group: Group) -> bool:
    """Whether this rank's modules hold what it did not have when they were saved, and another rank had."""
    return any(
        entry.owners and entry.sources[group.rank] == ABSENT and path in live.mine
        for path, entry in table.items()
    )


def _give_own(state: dict[str, Any], overlays: Mapping[str, Any], table: Table, group: Group) -> None:
    """Let this rank have what it had."""
    rank = group.rank
    for path, entry in table.items():
        if entry.sources[rank] == ABSENT and entry.kind != SHARD and entry.owners:
            remove(state, path)
    for path, entry in table.items():
        if entry.sources[rank] != ABSENT:
            _take(state, overlays, path, entry.sources[rank])


def _take(state: dict[str, Any], overlays: Mapping[str, Any], path: Path, source: int) -> None:
    value = value_at(overlays, (str(source), *map(str, path)))
    if value is not MISSING:
        put(state, path, value)
    elif value_at(state, path) is MISSING:
        raise CorruptError(f"has no {dotted(path)!r} of rank {source}", "", "take another checkpoint")


def _give_to_others(
    state: dict[str, Any], overlays: Mapping[str, Any], table: Table, then: int, group: Group
) -> list[str]:
    """Let this rank, one of another number of ranks or with other modules, have what it can; in words what
    it cannot.

    Raises: LossyError.
    """
    rank, now = group.rank, group.size
    stuck = [
        path
        for path, entry in table.items()
        if (entry.kind == WEIGHTS and len(entry.owners) > 1) or (entry.kind == GRADIENT and entry.owners)
    ]
    is_moved = then == now
    if stuck:
        where = "the ranks that they had" if is_moved else f"{then} ranks"
        because = (
            f"rank {rank} has modules that were saved by another rank"
            if is_moved
            else f"now there are {now} ranks"
        )
        raise LossyError(
            f"each of the {then} ranks that saved it has its own {few(stuck)}, and {because}",
            "",
            f"resume on {where}, or from a checkpoint after a step that synchronised the gradients"
            if all(path[0] in GRADIENTS for path in stuck)
            else f"resume on {where}, or leave out what you can do without",
        )
    notes = []
    lone: list[Path] = []
    for path, entry in table.items():
        owners = entry.owners
        if entry.kind == GENERATOR and rank >= then:
            remove(state, path[:1] if path[0] == RNG else path)
        elif (entry.kind == GENERATOR or (entry.kind == POSITION and is_moved)) and entry.sources[
            rank
        ] != ABSENT:
            _take(state, overlays, path, entry.sources[rank])
        elif entry.kind == POSITION and is_moved:
            remove(state, path)
        elif entry.kind == POSITION:
            if state.pop(DATA, None) is not None:
                notes.append(
                    f"{DATA}: each of the {then} ranks had its own, and now they are {now}: it begins anew"
                )
        elif owners and entry.kind != NAMES:
            _take(state, overlays, path, owners[0])
            if len(owners) > 1:
                lone.append(path)
    if lone:
        notes.append(f"{few(lone)}: each of the {then} ranks had its own, rank 0's is taken")
    return notes

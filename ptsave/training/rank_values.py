"""What is not sharded and yet differs by rank: found at a save, written for each rank, given back to each.

At a save the ranks tell each other digests of what they hold whole. What all have alike is written once. What
only some have (the stages of a pipeline, the shards of ZeRO) is written once too, under its own name. Where
ranks hold different values under one name, each value is written once, under `ranks` and the number of the
first rank that has it. `rank_values` says which rank has which:

    {"names": (path, …), "kinds": (kind, …), "sources": ((0, 0, …), (1, -1, …), …)}

`sources` has a row for each rank, and in it for each name the rank whose value it is; -1: it has none. A
value that is not under `ranks` and that number is under its plain name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ptsave.core.parts.training import STEPS_DONE
from ptsave.core.tree import dotted
from ptsave.distributed.group import ALONE, Group
from ptsave.errors import CorruptError, LossyError
from ptsave.formats.run_folder import EPOCH, METRICS, STEP
from ptsave.models.weights.live import is_plain
from ptsave.models.weights.sharded import has_replicas, is_sharded, tensors_in
from ptsave.models.weights.tensors import memory_of
from ptsave.training.fingerprint import Item, item_of, part_of
from ptsave.training.items import MISSING, Path, flatten, named, put, remove, value_at
from ptsave.training.keys import RANK_VALUES, RANKS, UNSYNCHRONISED, WORLD_SIZE
from ptsave.training.optimizers.names import GROUPS, PARAMS, STATE, is_optimizer
from ptsave.training.runs.contents import OWN_KEYS

RNG, DATA = "rng_state", "data_state_dict"
GRADIENTS = ("gradients", UNSYNCHRONISED)
OF_THE_CALLER = (STEP, STEPS_DONE, EPOCH, METRICS)
"""What the caller says. Rank 0's is kept."""

WEIGHTS = "weights"
"""Each rank needs its own: other ranks than those that saved it cannot be given any."""
GRADIENT = "gradient"
"""As weights are, and a rank that has none must have none."""
BUFFER, VALUE = "buffer", "value"
"""Rank 0's will do where the ranks are others."""
GENERATOR = "generator"
"""The state of a random number generator: ranks that were not there go on with the one that they have."""
POSITION = "position"
"""Where each rank is in its data: nowhere, where the ranks are others."""
SHARD = "shard"
"""Of what one rank holds for all, and any rank may be given (ZeRO's)."""
NAMES = "names"
"""A list of the parameters that the ranks' optimizers have: together, where the ranks are others."""
KINDS = (WEIGHTS, GRADIENT, BUFFER, VALUE, GENERATOR, POSITION, SHARD, NAMES)

ABSENT = -1
MAX_GATHERED_BYTES = 16 * 1024 * 1024
"""Of tensors of the ranks' own: so much goes through rank 0 into its file. More makes it a folder of all."""
MAX_LISTED = 4
"""How many names a sentence lists."""
EMPTY = item_of({}, VALUE).digest

Found = dict[Path, Item]


class Entry(NamedTuple):
    """A name that not all ranks have alike."""

    kind: str
    sources: tuple[int, ...]
    """For each rank, the first one that has the same value; ABSENT where it has none."""
    is_apart: bool = False
    """Whether no value of it may have the plain name: none is the one that all need."""
    is_conflict: bool = False
    """Whether it is a value on one rank and a container on another."""

    @property
    def owners(self) -> list[int]:
        """The ranks whose values are written."""
        return sorted(set(self.sources) - {ABSENT})

    def target(self, path: Path, source: int) -> Path:
        """Where the value of `source` is written."""
        if source == self.owners[0] and not self.is_apart:
            return path
        return (RANKS, str(source), *map(str, path))


Table = dict[Path, Entry]


@dataclass
class Division:
    """What of a state is written where."""

    tree: dict[str, Any]
    """What rank 0 writes, where it is one file."""
    is_folder: bool = False
    """Whether all ranks write a folder together."""
    mine: dict[Path, Any] = field(default_factory=dict)
    """What this rank puts into the folder."""
    paths: list[Path] = field(default_factory=list)
    """Of all that is in the folder."""
    num_bytes: int = 0
    """Of all that is in the folder, about."""
    different: list[Path] = field(default_factory=list)
    """The weights of which ranks have different ones."""


def divide(tree: dict[str, Any], kinds: Mapping[Path, str], group: Group) -> Division:
    """Find out what differs by rank, and who writes what. Every rank calls it.

    `kinds`: of what is below a path. Other tensors are weights, other values are values.

    Raises: LossyError for what is neither a tensor nor plain data; RankError on the other ranks then.
    """
    items = group.together(lambda: dict(flatten(tree)))
    if group.size == 1:
        return _alone(tree, items)
    found = group.together(
        lambda: {path: item_of(value, _kind(path, value, kinds)) for path, value in items.items()}
    )
    _check_replicas(items, group)
    told = group.gather(_Told.of(items, found))
    everyone = [one.own for one in told]
    if any(one.digest != told[0].digest for one in told):
        everyone = group.gather(found)
        _compare_sharded(items, everyone, group)
    table = _table(everyone)
    tree = {**tree, WORLD_SIZE: group.size}
    division = Division(tree)
    division.different = [
        path for path, entry in table.items() if entry.kind == WEIGHTS and len(entry.owners) > 1
    ]
    division.is_folder = any(one.is_sharded for one in told) or _is_too_much(table, everyone)
    if division.is_folder:
        _fill_folder(division, items, table, everyone, group)
    elif table:
        is_gathered = all(path in told[0].own for path in table)
        values = [one.values for one in told] if is_gathered else _gather_values(items, table, group)
        overlays: dict[str, Any] = {}
        apart = [path for path, entry in table.items() if entry.is_apart]
        tree = named(tree) if apart else tree
        for path, entry in table.items():
            for source in entry.owners:
                if source or entry.is_apart:
                    put(overlays, (str(source), *map(str, path)), values[source][path])
            if entry.is_apart:
                remove(tree, path)
        division.tree = tree | {RANKS: overlays, RANK_VALUES: _plan(table)}
    return division


class _Told(NamedTuple):
    """What a rank says of its state at first: enough, where nothing but random numbers differ."""

    digest: bytes
    """Of all the digests, but of those in `own`."""
    is_sharded: bool
    own: Found
    """What mostly differs."""
    values: dict[Path, Any]
    """Of `own`, where they may go into a file."""

    @staticmethod
    def of(items: Mapping[Path, Any], found: Found) -> _Told:
        own = {path: item for path, item in found.items() if path[0] in (RNG, DATA)}
        rest = sorted((dotted(path), item.digest) for path, item in found.items() if path not in own)
        has_any = any(item.is_sharded for item in found.values())
        values = {} if has_any else {path: _portable(items[path]) for path in own}
        return _Told(item_of(rest, VALUE).digest, has_any, own, values)


def _alone(tree: dict[str, Any], items: dict[Path, Any]) -> Division:
    """Of the only rank."""
    sizes = [value.numel() * value.element_size() for value in items.values() if torch.is_tensor(value)]
    return Division(tree, any(map(is_sharded, items.values())), items, list(items), sum(sizes))


def _kind(path: Path, value: Any, kinds: Mapping[Path, str]) -> str:
    if path[0] in OF_THE_CALLER:
        return VALUE
    if path[0] == RNG:
        return GENERATOR
    if path[0] == DATA:
        return POSITION
    if path[0] in GRADIENTS:
        return GRADIENT
    for length in range(len(path), 0, -1):
        if path[:length] in kinds:
            return kinds[path[:length]]
    if path[-1] == PARAMS and GROUPS in path and _is_names(value):
        return NAMES
    return VALUE if next(tensors_in(value), None) is None else WEIGHTS


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _table(everyone: Sequence[Found]) -> Table:
    """The names that not all ranks have alike; an empty dictionary in which others have something is none."""
    paths = dict.fromkeys(path for found in everyone for path in found if path[0] not in OF_THE_CALLER)
    children = {path[:length]: path[length] for path in paths for length in range(1, len(path))}
    parents = children.keys() & paths.keys()
    apart: set[Path] = set()
    """What is a value on one rank and a container on another."""
    for parent in parents:
        is_list = isinstance(children[parent], int)
        if is_list or any(found[parent].digest != EMPTY for found in everyone if parent in found):
            apart.add(parent)
    table: Table = {}
    for path in paths:
        is_conflict = bool(apart) and any(path[:length] in apart for length in range(1, len(path) + 1))
        if path in parents and path not in apart:
            table[path] = Entry(VALUE, (ABSENT,) * len(everyone))
            continue
        first: dict[bytes, int] = {}
        sources = tuple(
            first.setdefault(found[path].digest, rank) if path in found else ABSENT
            for rank, found in enumerate(everyone)
        )
        if len(set(sources)) > 1:
            kind = next(found[path].kind for found in everyone if path in found)
            needs_own = kind in (WEIGHTS, GRADIENT, NAMES) and len(first) > 1
            table[path] = Entry(kind, sources, is_conflict or needs_own, is_conflict)
    return table


def _is_too_much(table: Table, everyone: Sequence[Found]) -> bool:
    """Whether what the ranks have of their own is none of rank 0's file: much of it, or layers and shards."""
    num_bytes = 0
    for path, entry in table.items():
        is_partial = ABSENT in entry.sources and bool(entry.owners)
        if (
            entry.is_conflict
            or entry.kind == NAMES
            or (is_partial and entry.kind in (WEIGHTS, GRADIENT, SHARD))
        ):
            return True
        num_bytes += sum(everyone[source][path].num_bytes for source in entry.owners if source)
    return num_bytes > MAX_GATHERED_BYTES


def _fill_folder(
    division: Division, items: dict[Path, Any], table: Table, everyone: Sequence[Found], group: Group
) -> None:
    """Note what this rank writes into the folder, and what all write."""
    rank = group.rank
    written: dict[Path, int] = {}
    for path, value in items.items():
        entry = table.get(path)
        if entry is None:
            written[path] = _num_bytes(value)
            if rank == 0 or is_sharded(value):
                division.mine[path] = value
        elif entry.sources[rank] != ABSENT and (entry.sources[rank] == rank or is_sharded(value)):
            division.mine[entry.target(path, entry.sources[rank])] = value
    for path, entry in table.items():
        for source in entry.owners:
            written[entry.target(path, source)] = everyone[source][path].num_bytes
    lists = [path for path, entry in table.items() if entry.kind == NAMES]
    if lists:
        values = group.gather({path: items[path] for path in lists if path in items})
        for path in lists:
            written[path] = 0
            if rank == 0:
                division.mine[path] = list(dict.fromkeys(n for one in values for n in one.get(path, ())))
    more: dict[Path, Any] = {(WORLD_SIZE,): group.size} | {
        (RANK_VALUES, key): part for key, part in _plan(table).items()
    }
    written |= dict.fromkeys(more, 0)
    if rank == 0:
        division.mine |= more
    division.paths = list(written)
    division.num_bytes = sum(written.values())


def _num_bytes(value: Any) -> int:
    return value.numel() * value.element_size() if torch.is_tensor(value) else 0


def _plan(table: Table) -> dict[str, Any]:
    """What is written of the table: three values, whatever the number of ranks."""
    entries = list(table.values())
    num_ranks = len(entries[0].sources) if entries else 0
    return {
        "names": tuple(table),
        "kinds": tuple(entry.kind for entry in entries),
        "sources": tuple(tuple(entry.sources[rank] for entry in entries) for rank in range(num_ranks)),
    }


def _gather_values(items: Mapping[Path, Any], table: Table, group: Group) -> list[dict[Path, Any]]:
    rank = group.rank
    mine = {path for path, entry in table.items() if entry.sources[rank] == rank and (rank or entry.is_apart)}
    return group.gather({path: _portable(items[path]) for path in mine})


def _portable(value: Any) -> Any:
    """A value that can be sent: of a tensor, what is seen of it, on the CPU."""
    if not torch.is_tensor(value):
        return value
    value = value.detach().cpu()
    return _Sent(value) if is_plain(value) else value.clone()


class _Sent:
    """A tensor that arrives on the other ranks from its bytes: torch pickles each as a file of its own, which
    takes a hundred times as long."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __reduce__(self) -> tuple[Any, ...]:
        values = self._tensor.resolve_conj().resolve_neg().contiguous()
        return _received, (values.dtype, tuple(values.shape), bytes(memory_of(values.reshape(-1))))


def _received(dtype: torch.dtype, shape: tuple[int, ...], data: bytes) -> torch.Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def _check_replicas(items: Mapping[Path, Any], group: Group) -> None:
    """See that ranks which hold one part of a sharded tensor hold the same values: one of them is written.

    Raises: LossyError, alike on all ranks.
    """
    mine = {path: part_of(item) for path, item in items.items() if has_replicas(item)}
    first: dict[Any, tuple[int, bytes]] = {}
    for rank, parts in enumerate(group.gather(mine)):
        for path, (box, digest) in parts.items():
            other, expected = first.setdefault((path, box), (rank, digest))
            if digest != expected:
                raise LossyError(
                    f"ranks {other} and {rank} hold one part of {dotted(path)!r}, with different values",
                    "",
                    "see why the replicas ran apart; give all of them one rank's before they are saved",
                )


def _compare_sharded(items: Mapping[Path, Any], everyone: Sequence[Found], group: Group) -> None:
    """Let tensors that are sharded over other ranks have one digest where they have the same parts.

    Ranks that replicate by hand what others shard (FSDP in each of several groups) have one model.
    """
    disputed = sorted(
        {
            path
            for path, item in ((path, item) for found in everyone for path, item in found.items())
            if item.is_sharded and any(o.get(path, item).digest != item.digest for o in everyone)
        },
        key=str,
    )
    if not disputed:
        return
    parts = group.gather({path: part_of(items[path]) for path in disputed if is_sharded(items.get(path))})
    for path in disputed:
        wholes: dict[bytes, set[Any]] = {}
        for found, own in zip(everyone, parts, strict=True):
            if path in own:
                wholes.setdefault(found[path].digest, set()).add(own[path])
        if len({frozenset(whole) for whole in wholes.values()}) == 1:
            for found, own in zip(everyone, parts, strict=True):
                if path in own:
                    found[path] = found[path]._replace(digest=min(wholes))


# --- giving back ------------------------------------------------------------------------------------------


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
        table = _read_plan(plan, then)
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


def _read_plan(plan: Mapping[str, Any], num_ranks: Any) -> Table:
    """Raises: CorruptError for what no `_plan` is."""
    parts: list[Any] = [plan.get(key) for key in ("names", "kinds", "sources")]
    if type(num_ranks) is int and all(isinstance(part, tuple) for part in parts):
        names, kinds, sources = parts
        is_good = len(names) == len(kinds) and len(sources) == (num_ranks if names else 0)
        is_good = is_good and all(isinstance(n, tuple) and n and _are(n, (str, int)) for n in names)
        is_good = is_good and all(kind in KINDS for kind in kinds)
        for row in sources:
            is_good = is_good and isinstance(row, tuple) and len(row) == len(names) and _are(row, (int,))
            is_good = is_good and all(ABSENT <= source < num_ranks for source in row)
        if is_good:
            columns = zip(names, kinds, zip(*sources, strict=True), strict=True) if names else ()
            return {path: Entry(kind, tuple(column)) for path, kind, column in columns}
    raise CorruptError(
        f"{RANK_VALUES!r} does not say which rank had which value", "", "take another checkpoint"
    )


def _are(values: Iterable[Any], kinds: tuple[type, ...]) -> bool:
    return all(type(value) in kinds for value in values)


def few(paths: Sequence[Path]) -> str:
    """The names of some, in words."""
    listed = ", ".join(dotted(path) for path in paths[:MAX_LISTED])
    return f"{listed}, … ({len(paths)})" if len(paths) > MAX_LISTED else listed

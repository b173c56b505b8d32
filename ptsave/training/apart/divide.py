"""At a save: found what differs by rank, and who writes what.

The ranks tell each other digests of what they hold whole. Where those differ, rank 0 alone is told of every
value, decides, and asks for the values that it writes: what the others are sent does not grow with what each
of them holds. `table` says how it is written.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, NamedTuple

import torch

from ptsave.core.tree import dotted
from ptsave.distributed.group import Group
from ptsave.errors import LossyError
from ptsave.models.weights.live import is_plain
from ptsave.models.weights.sharded import has_replicas, is_sharded, tensors_in
from ptsave.models.weights.tensors import memory_of
from ptsave.training.apart.table import (
    ABSENT,
    DATA,
    GENERATOR,
    GRADIENT,
    GRADIENTS,
    NAMES,
    OF_THE_CALLER,
    POSITION,
    RNG,
    VALUE,
    WEIGHTS,
    Found,
    Table,
    as_plan,
    is_too_much,
    table_of,
)
from ptsave.training.fingerprint import item_of, part_of
from ptsave.training.items import Path, flatten, named, put, remove
from ptsave.training.keys import RANK_VALUES, RANKS, WORLD_SIZE
from ptsave.training.optimizers.names import GROUPS, PARAMS


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
    """The weights of which ranks have different ones, as rank 0 knows."""


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
    if all(one.digest == told[0].digest for one in told):
        decision = _decide(everyone, told)
    else:
        everyone = group.gather_to_first(found)
        _compare_sharded(items, everyone, group)
        decision = _decide_on_first(everyone, told, group)
    table = decision.table
    division = Division({**tree, WORLD_SIZE: group.size}, decision.is_folder)
    division.different = [
        path for path, entry in table.items() if entry.kind == WEIGHTS and len(entry.owners) > 1
    ]
    if division.is_folder:
        _fill_folder(division, items, decision, group)
    else:
        values = [one.values for one in told]
        if decision.asked is not None:
            values = _gather_values(items, decision.asked, everyone, group)
        if table:
            _add_values(division, table, values)
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


class _Decision(NamedTuple):
    """Who writes what."""

    table: Table
    """Empty on other ranks than 0, where they write no folder."""
    is_folder: bool
    num_bytes: int
    """Of what is in the table."""
    asked: list[bytes] | None = None
    """By rank, a byte for each of its items, compressed: whether rank 0 asks for it. None: it has all."""


def _decide(everyone: Sequence[Found], told: Sequence[_Told]) -> _Decision:
    table = table_of(everyone)
    is_folder = any(one.is_sharded for one in told) or is_too_much(table, everyone)
    owned = ((path, source) for path, entry in table.items() for source in entry.owners)
    return _Decision(table, is_folder, sum(everyone[source][path].num_bytes for path, source in owned))


def _decide_on_first(everyone: Sequence[Found], told: Sequence[_Told], group: Group) -> _Decision:
    """What rank 0 decides, which alone knows `everyone`."""
    table: Table = {}

    def decide() -> _Decision:
        decision = _decide(everyone, told)
        if decision.is_folder:
            return decision
        table.update(decision.table)
        asked = [
            zlib.compress(bytes(_is_asked(table, path, rank) for path in found), 1)
            for rank, found in enumerate(everyone)
        ]
        return decision._replace(table={}, asked=asked)

    decision = group.from_first(decide)
    return decision._replace(table=table) if table else decision


def _is_asked(table: Table, path: Path, rank: int) -> bool:
    """Whether rank 0 writes this rank's value apart."""
    entry = table.get(path)
    return entry is not None and entry.sources[rank] == rank and (rank > 0 or entry.is_apart)


def _add_values(division: Division, table: Table, values: Sequence[Mapping[Path, Any]]) -> None:
    """Let the tree have what ranks hold apart."""
    overlays: dict[str, Any] = {}
    apart = [path for path, entry in table.items() if entry.is_apart]
    tree = named(division.tree) if apart else division.tree
    for path, entry in table.items():
        for source in entry.owners:
            if source or entry.is_apart:
                put(overlays, (str(source), *map(str, path)), values[source][path])
        if entry.is_apart:
            remove(tree, path)
    division.tree = tree | {RANKS: overlays, RANK_VALUES: as_plan(table)}


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


def _fill_folder(division: Division, items: dict[Path, Any], decision: _Decision, group: Group) -> None:
    """Note what this rank writes into the folder, and what all write."""
    rank, table = group.rank, decision.table
    written: dict[Path, int] = {}
    for path, value in items.items():
        entry = table.get(path)
        if entry is None:
            written[path] = _num_bytes(value)
            if rank == 0 or is_sharded(value):
                division.mine[path] = value
        elif entry.sources[rank] != ABSENT and (entry.sources[rank] == rank or is_sharded(value)):
            division.mine[entry.target(path, entry.sources[rank])] = value
    division.num_bytes = sum(written.values()) + decision.num_bytes
    paths = [*written, *(e.target(path, source) for path, e in table.items() for source in e.owners)]
    lists = [path for path, entry in table.items() if entry.kind == NAMES]
    if lists:
        values = group.gather_to_first({path: items[path] for path in lists if path in items})
        paths += lists
        if rank == 0:
            for path in lists:
                division.mine[path] = list(dict.fromkeys(n for one in values for n in one.get(path, ())))
    more: dict[Path, Any] = {(WORLD_SIZE,): group.size} | {
        (RANK_VALUES, key): part for key, part in as_plan(table).items()
    }
    if rank == 0:
        division.mine |= more
    division.paths = list(dict.fromkeys([*paths, *more]))


def _num_bytes(value: Any) -> int:
    return value.numel() * value.element_size() if torch.is_tensor(value) else 0


def _gather_values(
    items: Mapping[Path, Any], asked: Sequence[bytes], everyone: Sequence[Found], group: Group
) -> list[dict[Path, Any]]:
    """The values that rank 0 asked each rank for, on rank 0, whose own stay where they are."""
    mine = list(compress(items, zlib.decompress(asked[group.rank])))
    sent = group.gather_to_first([] if group.is_first else [_portable(items[path]) for path in mine])
    if not group.is_first:
        return []
    sent[0] = [items[path] for path in mine]
    paths = (compress(found, zlib.decompress(bits)) for found, bits in zip(everyone, asked, strict=True))
    return [dict(zip(*each, strict=True)) for each in zip(paths, sent, strict=True)]


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

    Ranks that replicate by hand what others shard (FSDP in each of several groups) have one model. Rank 0
    alone knows `everyone`.
    """

    def dispute() -> list[Path]:
        found_in = ((path, item) for found in everyone for path, item in found.items())
        disputed = {
            path
            for path, item in found_in
            if item.is_sharded and any(o.get(path, item).digest != item.digest for o in everyone)
        }
        return sorted(disputed, key=str)

    disputed = group.from_first(dispute)
    if not disputed:
        return
    parts = group.gather_to_first(
        {path: part_of(items[path]) for path in disputed if is_sharded(items.get(path))}
    )
    for path in disputed:
        wholes: dict[bytes, set[Any]] = {}
        for found, own in zip(everyone, parts, strict=True):
            if path in own:
                wholes.setdefault(found[path].digest, set()).add(own[path])
        if len({frozenset(whole) for whole in wholes.values()}) == 1:
            for found, own in zip(everyone, parts, strict=True):
                if path in own:
                    found[path] = found[path]._replace(digest=min(wholes))

"""Which of the values that are not sharded differ by rank, and how that is written down.

What all ranks have alike is written once. What only some have (the stages of a pipeline, the shards of ZeRO)
is written once too, under its own name. Where ranks hold different values under one name, each value is
written once, under `ranks` and the number of the first rank that has it. `rank_values` says which rank has
which:

    {"names": (path, …), "kinds": (kind, …), "sources": ((0, 0, …), (1, -1, …), …)}

`sources` has a row for each rank, and in it for each name the rank whose value it is; -1: it has none. A
value that is not under `ranks` and that number is under its plain name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ptsave.core.parts.training import STEPS_DONE
from ptsave.core.tree import dotted
from ptsave.errors import CorruptError
from ptsave.formats.run_folder import EPOCH, METRICS, STEP
from ptsave.training.fingerprint import Item, item_of
from ptsave.training.items import Path
from ptsave.training.keys import RANK_VALUES, RANKS, UNSYNCHRONISED

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


class Unlike(NamedTuple):
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


Table = dict[Path, Unlike]


def table_of(everyone: Sequence[Found]) -> Table:
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
            table[path] = Unlike(VALUE, (ABSENT,) * len(everyone))
            continue
        first: dict[bytes, int] = {}
        sources = tuple(
            first.setdefault(found[path].digest, rank) if path in found else ABSENT
            for rank, found in enumerate(everyone)
        )
        if len(set(sources)) > 1:
            kind = next(found[path].kind for found in everyone if path in found)
            needs_own = kind in (WEIGHTS, GRADIENT, NAMES) and len(first) > 1
            table[path] = Unlike(kind, sources, is_conflict or needs_own, is_conflict)
    return table


def is_too_much(table: Table, everyone: Sequence[Found]) -> bool:
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


def as_plan(table: Table) -> dict[str, Any]:
    """What is written of the table: three values, whatever the number of ranks."""
    entries = list(table.values())
    num_ranks = len(entries[0].sources) if entries else 0
    return {
        "names": tuple(table),
        "kinds": tuple(entry.kind for entry in entries),
        "sources": tuple(tuple(entry.sources[rank] for entry in entries) for rank in range(num_ranks)),
    }


def read_plan(plan: Mapping[str, Any], num_ranks: Any) -> Table:
    """Raises: CorruptError for what no `as_plan` makes."""
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
            return {path: Unlike(kind, tuple(column)) for path, kind, column in columns}
    raise CorruptError(
        f"{RANK_VALUES!r} does not say which rank had which value", "", "take another checkpoint"
    )


def _are(values: Iterable[Any], kinds: tuple[type, ...]) -> bool:
    return all(type(value) in kinds for value in values)


def few(paths: Sequence[Path]) -> str:
    """The names of some, in words."""
    listed = ", ".join(dotted(path) for path in paths[:MAX_LISTED])
    return f"{listed}, … ({len(paths)})" if len(paths) > MAX_LISTED else listed

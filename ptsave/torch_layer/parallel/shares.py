"""Work on a checkpoint's bytes that the ranks divide among themselves."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.digest import prefix
from ptsave.core.gather import contiguous
from ptsave.core.nodes import TensorEntry
from ptsave.core.reading import Reading, read_all
from ptsave.core.verdict import Finding
from ptsave.torch_layer.parallel.group import Group


def share_of(checkpoint: Checkpoint, rank: int, size: int) -> dict[str, TensorEntry]:
    """The tensors that one rank looks after: every storage whole, and about as many bytes for each rank."""
    groups: dict[int, dict[str, TensorEntry]] = {}
    for name, entry in checkpoint.tensors.items():
        groups.setdefault(id(entry.storage), {})[name] = entry
    loads = [(0, number) for number in range(size)]
    mine: dict[str, TensorEntry] = {}
    for entries in sorted(groups.values(), key=_num_bytes, reverse=True):
        load, number = heapq.heappop(loads)
        heapq.heappush(loads, (load + _num_bytes(entries) + 1, number))
        if number == rank:
            mine |= entries
    return {name: mine[name] for name in checkpoint.tensors if name in mine}


def _num_bytes(entries: dict[str, TensorEntry]) -> int:
    return max(entry.storage.num_bytes for entry in entries.values())


def findings_of_share(group: Group, checkpoint: Checkpoint) -> Iterator[Finding]:
    """What this rank's part of the container's own checks finds."""
    checks = checkpoint.parts_of_checks[group.rank :: group.size]
    if not checkpoint.parts_of_checks and group.is_first:
        checks = checkpoint.checks
    for check in checks:
        yield from check()


def digests_of_share(group: Group, checkpoint: Checkpoint, algorithm: str) -> dict[str, str]:
    """The digest of every tensor, each taken by one rank; on every rank.

    Raises: UnreadableError.
    """
    readings: dict[object, tuple[list[str], Reading]] = {}
    for name, entry in share_of(checkpoint, group.rank, group.size).items():
        if entry.view not in readings:
            start = prefix(entry.dtype, entry.shape)
            one = Reading(*contiguous(entry), entry.num_bytes, algorithm, start)
            readings[entry.view] = ([], one)
        readings[entry.view][0].append(name)
    read_all([one for _, one in readings.values()])
    mine = {}
    for names, one in readings.values():
        if one.error is not None:
            raise one.error
        mine.update(dict.fromkeys(names, one.digest))
    everyone = {name: digest for part in group.gather(mine) for name, digest in part.items()}
    return {name: everyone[name] for name in checkpoint.tensors}

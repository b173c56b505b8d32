"""Work on a checkpoint's bytes that the ranks divide among themselves."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Iterator, Mapping
from functools import partial
from typing import TypeVar

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.nodes import TensorEntry
from ptsave.core.storage import Run, Storage
from ptsave.core.values.digest import DEFAULT, HEX_DIGITS, hasher, prefix
from ptsave.core.values.gather import contiguous
from ptsave.distributed.group import Group
from ptsave.storage.scan import Sums, damaged, scan
from ptsave.storage.workers import Stopped, run_tasks

K = TypeVar("K", bound=Hashable)


def divided(num_bytes: Mapping[K, int], rank: int, size: int) -> set[K]:
    """What one rank looks after: about as many bytes for each rank."""
    loads = [(0, number) for number in range(size)]
    mine = set()
    for key in sorted(num_bytes, key=num_bytes.__getitem__, reverse=True):
        load, number = heapq.heappop(loads)
        heapq.heappush(loads, (load + num_bytes[key] + 1, number))
        if number == rank:
            mine.add(key)
    return mine


def share_of(tensors: Mapping[str, TensorEntry], rank: int, size: int) -> dict[str, TensorEntry]:
    """The tensors that one rank looks after, every storage whole."""
    mine = divided({id(entry.storage): entry.storage.num_bytes for entry in tensors.values()}, rank, size)
    return {name: entry for name, entry in tensors.items() if id(entry.storage) in mine}


def check_bytes(group: Group, checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Check tensors against whatever the container and the record say of their bytes, the ranks sharing them.

    A rank that loads its own parts of tensors cannot: checksums are of whole ones.

    Raises: CorruptError naming a tensor that is damaged.
    """
    tensors = {name: checkpoint.tensors[name] for name in names}
    record = checkpoint.record
    digests = record.digests if record is not None else None
    known: Mapping[str, str] = {}
    algorithm = DEFAULT
    if record is not None and digests is not None and digests.algorithm in HEX_DIGITS:
        algorithm = digests.algorithm
        known = {
            n: d for n, d in digests.tensors.items() if n in tensors and not record.was_cast(tensors[n].dtype)
        }
    if not known:
        _check_crc32(group, str(checkpoint.path), tensors.values())
        return
    found = read_back(group, str(checkpoint.path), share_of(tensors, group.rank, group.size), algorithm)
    for name, digest in known.items():
        if found[name] != digest:
            raise damaged(str(checkpoint.path), name, f"recorded {algorithm} digest")


def _check_crc32(group: Group, where: str, entries: Iterable[TensorEntry]) -> None:
    """Check the parts of tensors that have CRC-32s; those in one file on another machine by one rank.

    Raises: CorruptError naming a tensor that is damaged.
    """
    names = {
        part: entry.name
        for entry in entries
        for part in entry.storage.sources or (entry.storage,)
        if part.crc32 is not None or part.checks_itself
    }
    places: dict[Storage, Hashable] = {part: (part.remote_place() or (id(part),))[0] for part in names}
    sizes: dict[Hashable, int] = {}
    for part, place in places.items():
        sizes[place] = sizes.get(place, 0) + part.num_bytes
    mine = divided(sizes, group.rank, group.size)

    def read(part: Storage, buffer: memoryview, stopped: Stopped) -> None:
        sums = Sums()
        for _ in scan(part, 0, part.num_bytes, sums, buffer, stopped=stopped):
            pass
        if part.crc32 not in (None, sums.crc32):
            raise damaged(where, names[part], "CRC-32")

    parts = [part for part in names if places[part] in mine]
    for part in parts:
        part.expect(0, part.num_bytes)
    tasks = [(part.num_bytes, partial(read, part)) for part in parts]
    group.together(lambda: run_tasks(tasks, [part.remote_place() for part in parts]))


def read_back(group: Group, where: str, share: Mapping[str, TensorEntry], algorithm: str) -> dict[str, str]:
    """The digest of every tensor in the shares of all ranks; equal on every rank.

    Each tensor is read once, and its parts are checked against their CRC-32.

    Raises: CorruptError for a part that is not what it was when it was written.
    """
    mine: dict[str, str] = {}
    names: dict[object, list[str]] = {}
    entries: dict[object, TensorEntry] = {}
    for name, entry in share.items():
        names.setdefault(entry.view, []).append(name)
        entries[entry.view] = entry

    def read(entry: TensorEntry, buffer: memoryview, stopped: Stopped) -> None:
        digest = hasher(algorithm, prefix(entry.dtype, entry.shape))
        passes = [(run, [digest]) for run in _runs(entry)]
        if not entry.storage.parts:
            passes += [((tile, 0, tile.num_bytes), []) for tile in entry.storage.sources]
        for (storage, begin, num_bytes), hashers in passes:
            sums = Sums(hashers)
            for _ in scan(storage, begin, num_bytes, sums, buffer, stopped=stopped):
                pass
            if begin == 0 and num_bytes == storage.num_bytes and storage.crc32 not in (None, sums.crc32):
                raise damaged(where, entry.name, "CRC-32")
        mine.update(dict.fromkeys(names[entry.view], digest.hexdigest()))

    tasks = [(entry.num_bytes, partial(read, entry)) for entry in entries.values()]
    group.together(lambda: run_tasks(tasks))  # whoever fails removes the folder, which others still read
    return dict(sorted(pair for part in group.gather(mine) for pair in part.items()))


def _runs(entry: TensorEntry) -> Iterator[Run]:
    """The runs of bytes that an entry's elements are, each as a storage, where it begins, and its length."""
    storage, begin = contiguous(entry)
    if storage.parts and begin == 0 and entry.num_bytes == storage.num_bytes:
        yield from storage.parts
    else:
        yield storage, begin, entry.num_bytes

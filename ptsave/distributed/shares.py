"""Work on a checkpoint's bytes that the ranks divide among themselves."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Iterator, Mapping
from functools import partial
from typing import TypeVar

from isal.isal_zlib import crc32

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.nodes import TensorEntry
from ptsave.core.storage import BLOCK_BYTES, Storage
from ptsave.core.values.digest import DEFAULT, HEX_DIGITS, hasher, prefix
from ptsave.core.values.gather import contiguous
from ptsave.distributed.group import Group
from ptsave.formats.dcp.chunks import ConcatenatedStorage, TiledStorage, sources_of
from ptsave.storage.move import damaged
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
    """Hold tensors against whatever the container and the record say of their bytes, the ranks sharing them.

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
    if not known and not any(_has_crc32(entry.storage) for entry in tensors.values()):
        return
    found = read_back(group, str(checkpoint.path), share_of(tensors, group.rank, group.size), algorithm)
    for name, digest in known.items():
        if found[name] != digest:
            raise damaged(str(checkpoint.path), name, f"recorded {algorithm} digest")


def _has_crc32(storage: Storage) -> bool:
    return any(source.crc32 is not None for source in sources_of(storage))


def read_back(group: Group, where: str, share: Mapping[str, TensorEntry], algorithm: str) -> dict[str, str]:
    """The digest of every tensor of all ranks' shares, each read once, its parts held against their CRC-32.

    The same on every rank.

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
        for storage, begin, num_bytes in _runs(entry):
            crc = 0
            for block in _blocks(storage, begin, num_bytes, buffer):
                if stopped():
                    return
                digest.update(block)
                crc = crc32(block, crc)
            if begin == 0 and num_bytes == storage.num_bytes:
                _check(storage, crc, entry, where)
        if isinstance(entry.storage, TiledStorage):
            for source in entry.storage.sources:
                crc = 0
                for block in _blocks(source, 0, source.num_bytes, buffer):
                    crc = crc32(block, crc)
                _check(source, crc, entry, where)
        mine.update(dict.fromkeys(names[entry.view], digest.hexdigest()))

    run_tasks([(entry.num_bytes, partial(read, entry)) for entry in entries.values()])
    return dict(sorted(pair for part in group.gather(mine) for pair in part.items()))


def _runs(entry: TensorEntry) -> Iterator[tuple[Storage, int, int]]:
    """The runs of bytes that an entry's elements are, each as a storage, where it begins, and its length."""
    storage, begin = contiguous(entry)
    if isinstance(storage, ConcatenatedStorage) and begin == 0 and entry.num_bytes == storage.num_bytes:
        yield from storage.parts
    else:
        yield storage, begin, entry.num_bytes


def _blocks(storage: Storage, begin: int, num_bytes: int, buffer: memoryview) -> Iterator[memoryview]:
    for start in range(0, num_bytes, BLOCK_BYTES):
        block = buffer[: min(BLOCK_BYTES, num_bytes - start)]
        storage.read_into(begin + start, block)
        yield block


def _check(storage: Storage, crc: int, entry: TensorEntry, where: str) -> None:
    if storage.crc32 not in (None, crc):
        raise damaged(where, entry.name, "CRC-32")

"""The `bytes` check: every byte of every tensor read once, checked against CRCs and recorded digests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice

from ptsave.config.recorded import told_by
from ptsave.core.checkpoint import Checkpoint, check_viewed
from ptsave.core.finding import Facts, Finding, Kind
from ptsave.core.nodes import UNRESOLVED, TensorEntry
from ptsave.core.record import Digests
from ptsave.core.values.digest import HEX_DIGITS, prefix
from ptsave.core.values.gather import contiguous
from ptsave.core.values.resolved import resolved
from ptsave.errors import CorruptError
from ptsave.storage.scan import Reading, read_all
from ptsave.verbs.stats import Counts, NonFinite

CHECK = "bytes"


@dataclass(slots=True, eq=False)
class _Job:
    """One pass over some bytes, and whose they are."""

    reading: Reading
    expected_crc32: int | None
    crc_names: Sequence[str]
    """The tensors that a wrong CRC-32 damages."""
    digest_names: Sequence[str]
    """The tensors that a digest of these bytes speaks for."""
    entry: TensorEntry | None = None
    """The tensor whose values, row by row, they are."""
    counter: NonFinite | None = None
    """What counts the NaNs and infinities among them, where that is wanted."""


Found = dict[object, Mapping[str, str]]
"""View of a tensor → algorithm → digest."""
AT_ONCE = 4096
"""How many passes are made before the next ones are laid out: of a hundred thousand tensors, it is what is
found out that stays in memory, and not how."""


def audit(
    checkpoint: Checkpoint,
    progress: Callable[[int], None] | None = None,
    counts: Counts | None = None,
    signed: Collection[str] = (),
    found: Found | None = None,
) -> Iterator[Finding]:
    """Check a checkpoint's bytes against whatever its container and its record say that they are.

    The bounds were checked when it was opened. `counts` takes the NaNs and infinities of the floating-point
    tensors that are read on the way, where they are wanted; `found` takes the digests of all tensors, those
    of the algorithms in `signed` among them.
    """
    for part, fault in told_by(checkpoint).faults.items():
        if isinstance(fault, CorruptError):
            yield Finding(CHECK, "fail", "record", Kind.FORGED, facts={"part": part, "why": fault.what})
    tensors = checkpoint.tensors
    yield Finding(CHECK, "ok", "", Kind.IN_BOUNDS, len(tensors))
    digests = _known_digests(checkpoint)
    if digests is not None or signed:
        check_viewed(tensors.values())
    seen = _Seen()
    jobs = _jobs(tensors, digests, signed)
    while some := list(islice(jobs, AT_ONCE)):
        for job in some if counts is not None else ():
            if job.entry is not None and job.entry.dtype.is_float:
                job.counter = NonFinite(job.entry.dtype)
                job.reading.look = job.counter.look
        read_all([job.reading for job in some], progress)
        for job in some:
            if found is not None and job.entry is not None:
                found[job.entry.view] = job.reading.digests
            if counts is not None and job.counter is not None and job.reading.error is None:
                assert job.entry is not None
                counts[job.entry.view] = job.counter.found
            _judge(job, checkpoint, digests, seen)
    for name, why in seen.damaged.items():
        yield Finding(CHECK, "fail", name, Kind.DAMAGED, facts=why)
    if seen.cast:
        to = {"dtype": str(tensors[seen.cast[0]].dtype)}
        yield Finding(CHECK, "warn", "", Kind.CAST_SINCE, len(seen.cast), tuple(seen.cast[:1]), to)
    yield from _summary(checkpoint, seen, digests)
    for check in checkpoint.checks:
        yield from check()


@dataclass(slots=True)
class _Seen:
    """What has come of the passes so far."""

    known: set[str] = field(default_factory=set)
    """The tensors that a checksum speaks for."""
    has_crc32: bool = False
    """Whether any of these checksums is a container's CRC-32."""
    damaged: dict[str, Facts] = field(default_factory=dict)
    cast: list[str] = field(default_factory=list)


def _judge(job: _Job, checkpoint: Checkpoint, digests: Digests | None, seen: _Seen) -> None:
    """Hold what was read against what it must be."""
    reading = job.reading
    seen.known.update(job.crc_names, job.digest_names)
    seen.has_crc32 |= bool(job.crc_names)
    if reading.error is not None:
        unread: Facts = {"why": reading.error.what}
        seen.damaged |= dict.fromkeys((*job.crc_names, *job.digest_names), unread)
        return
    if job.expected_crc32 not in (None, reading.crc32):
        seen.damaged |= dict.fromkeys(job.crc_names, _NOT_ITS_CRC32)
    if digests is None or not job.digest_names:
        return
    own = reading.digests[digests.algorithm]
    for name in job.digest_names:
        if digests.tensors[name] == own or name in seen.damaged:
            continue
        if checkpoint.record is not None and checkpoint.record.was_cast(checkpoint.tensors[name].dtype):
            seen.cast.append(name)
        else:
            seen.damaged[name] = _not_its_digest(digests.algorithm)


_NOT_ITS_CRC32: Facts = {"why": "its bytes do not match their CRC-32"}


@cache
def _not_its_digest(algorithm: str) -> Facts:
    return {"why": f"its bytes do not match the recorded {algorithm} digest"}


def _known_digests(checkpoint: Checkpoint) -> Digests | None:
    """The record's digests, where this ptsave knows their algorithm."""
    digests = checkpoint.record.digests if checkpoint.record is not None else None
    return digests if digests is not None and digests.algorithm in HEX_DIGITS else None


def digests_of(
    tensors: Mapping[str, TensorEntry],
    algorithms: Collection[str],
    progress: Callable[[int], None] | None = None,
) -> Found:
    """The digests of all tensors, each read once; those that cannot be read are left out."""
    check_viewed(tensors.values())
    found: Found = {}
    jobs = ((job.entry, job.reading) for job in _jobs(tensors, None, algorithms) if job.entry is not None)
    while some := list(islice(jobs, AT_ONCE)):
        read_all([reading for _, reading in some], progress)
        found |= {entry.view: reading.digests for entry, reading in some}
    return found


def named_digests(checkpoint: Checkpoint, found: Found, algorithm: str) -> dict[str, str]:
    """Those digests in `found` that are of `algorithm`, by name; none of a tensor that could not be read."""
    known = {name: found.get(entry.view, {}) for name, entry in checkpoint.tensors.items()}
    return {name: digests[algorithm] for name, digests in known.items() if algorithm in digests}


def _jobs(
    tensors: Mapping[str, TensorEntry], digests: Digests | None, signed: Collection[str] = ()
) -> Iterator[_Job]:
    """The fewest passes: a storage's CRC and the digests of the tensor that fills it share one."""
    storages: dict[int, list[TensorEntry]] = {}
    has_digests = digests is not None or bool(signed)
    for entry in tensors.values():
        if has_digests or entry.storage.crc32 is not None:
            storages.setdefault(id(entry.storage), []).append(entry)
    for entries in storages.values():
        yield from _jobs_of(entries, digests, signed)


def _jobs_of(
    entries: Sequence[TensorEntry], digests: Digests | None, signed: Collection[str]
) -> Iterator[_Job]:
    """The passes over the storage that `entries` have in common."""
    storage = entries[0].storage
    crc_names = [entry.name for entry in entries] if storage.crc32 is not None else []
    views: dict[object, list[TensorEntry]] = {}
    for entry in entries:
        views.setdefault(entry.view if len(entries) > 1 else None, []).append(entry)
    for same in views.values():
        entry = same[0]
        known = [e.name for e in same if digests is not None and e.name in digests.tensors]
        fills = (
            bool(crc_names)
            and entry.is_contiguous
            and entry.kind not in UNRESOLVED
            and entry.byte_range == (0, storage.num_bytes)
        )
        if not known and not fills and not signed:
            continue
        reading = Reading(*contiguous(resolved(entry)), entry.num_bytes)
        reading.prefix = prefix(entry.dtype, entry.shape)
        own = (digests.algorithm,) if known and digests is not None else ()
        reading.algorithms = tuple(dict.fromkeys((*own, *signed)))
        yield _Job(reading, storage.crc32 if fills else None, crc_names if fills else (), known, entry)
        if fills:
            crc_names = []
    if crc_names:
        yield _Job(Reading(storage, 0, storage.num_bytes), storage.crc32, crc_names, ())


def _is_summed_in_parts(entry: TensorEntry) -> bool:
    """Whether all its bytes lie in parts with checksums of their own, which the container's checks hold."""
    sources = entry.storage.sources or (entry.storage,)
    return all(source.crc32 is not None or source.checks_itself for source in sources)


def _summary(checkpoint: Checkpoint, seen: _Seen, digests: Digests | None) -> Iterator[Finding]:
    num_checked = len(seen.known) - len(seen.cast)
    unchecked = [
        name
        for name, entry in checkpoint.tensors.items()
        if name not in seen.known and entry.num_bytes and not _is_summed_in_parts(entry)
    ]
    if num_checked and not seen.damaged:
        how = ["CRC-32"] if seen.has_crc32 else []
        how += [f"recorded {digests.algorithm} digest"] if digests is not None else []
        yield Finding(CHECK, "ok", "", Kind.MATCHES, num_checked, facts={"checksums": " and ".join(how)})
    if unchecked:
        yield Finding(CHECK, "skipped", "", Kind.NO_CHECKSUM, len(unchecked), tuple(unchecked[:1]))
    record = checkpoint.record
    if record is not None and record.digests is not None:
        if digests is None:
            unknown = {"algorithm": record.digests.algorithm}
            yield Finding(CHECK, "warn", "record", Kind.UNKNOWN_DIGEST, facts=unknown)
        bare = [
            n
            for n, entry in checkpoint.tensors.items()
            if entry.num_bytes and n not in record.digests.tensors
        ]
        if digests is not None and bare:
            yield Finding(CHECK, "warn", "record", Kind.NO_DIGEST, len(bare), tuple(bare[:1]))
        for name in record.digests.tensors:
            if name not in checkpoint.tensors:
                yield Finding(CHECK, "fail", name, Kind.NOT_IN_FILE)

"""The `bytes` check: every byte of every tensor read once, checked against CRCs and recorded digests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ptsave.config.recorded import told_by
from ptsave.core.checkpoint import Checkpoint, check_viewed
from ptsave.core.finding import Finding, Kind
from ptsave.core.nodes import UNRESOLVED, TensorEntry
from ptsave.core.record import Digests
from ptsave.core.values.digest import HEX_DIGITS, prefix
from ptsave.core.values.gather import contiguous
from ptsave.core.values.resolved import resolved
from ptsave.errors import CorruptError
from ptsave.storage.scan import Reading, read_all
from ptsave.verbs.stats import Counts, NonFinite

CHECK = "bytes"


@dataclass(frozen=True)
class _Job:
    """One pass over some bytes, and whose they are."""

    reading: Reading
    expected_crc32: int | None
    crc_names: tuple[str, ...]
    """The tensors that a wrong CRC-32 damages."""
    digest_names: tuple[str, ...]
    """The tensors that a digest of these bytes speaks for."""
    entry: TensorEntry | None = None
    """The tensor whose values, row by row, they are."""


Found = dict[object, Mapping[str, str]]
"""View of a tensor → algorithm → digest."""


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
    jobs = _jobs(tensors, digests, signed)
    counters: dict[object, tuple[_Job, NonFinite]] = {}
    for job in jobs if counts is not None else ():
        if job.entry is not None and job.entry.dtype.is_float:
            counter = NonFinite(job.entry.dtype)
            job.reading.look = counter.look
            counters[job.entry.view] = job, counter
    read_all([job.reading for job in jobs], progress)
    if found is not None:
        found.update((job.entry.view, job.reading.digests) for job in jobs if job.entry is not None)
    for view, (job, counter) in counters.items():
        if counts is not None and job.reading.error is None:
            counts[view] = counter.nans, counter.infinities
    damaged: dict[str, str] = {}
    cast: list[str] = []
    for job in jobs:
        if job.reading.error is not None:
            what = job.reading.error.what
            damaged.update((name, what) for name in (*job.crc_names, *job.digest_names))
            continue
        if job.expected_crc32 not in (None, job.reading.crc32):
            damaged.update((name, "its bytes do not match their CRC-32") for name in job.crc_names)
        if digests is not None and job.digest_names:
            own = job.reading.digests[digests.algorithm]
            for name in job.digest_names:
                if digests.tensors[name] == own or name in damaged:
                    continue
                if checkpoint.record is not None and checkpoint.record.was_cast(tensors[name].dtype):
                    cast.append(name)
                else:
                    damaged[name] = f"its bytes do not match the recorded {digests.algorithm} digest"
    for name, why in damaged.items():
        yield Finding(CHECK, "fail", name, Kind.DAMAGED, facts={"why": why})
    if cast:
        to = {"dtype": str(tensors[cast[0]].dtype)}
        yield Finding(CHECK, "warn", "", Kind.CAST_SINCE, len(cast), tuple(cast[:1]), to)
    yield from _summary(checkpoint, jobs, digests, len(damaged), cast)
    for check in checkpoint.checks:
        yield from check()


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
    jobs = [job for job in _jobs(tensors, None, algorithms) if job.entry is not None]
    read_all([job.reading for job in jobs], progress)
    return {job.entry.view: job.reading.digests for job in jobs if job.entry is not None}


def named_digests(checkpoint: Checkpoint, found: Found, algorithm: str) -> dict[str, str]:
    """Those digests in `found` that are of `algorithm`, by name; none of a tensor that could not be read."""
    known = {name: found.get(entry.view, {}) for name, entry in checkpoint.tensors.items()}
    return {name: digests[algorithm] for name, digests in known.items() if algorithm in digests}


def _jobs(
    tensors: Mapping[str, TensorEntry], digests: Digests | None, signed: Collection[str] = ()
) -> list[_Job]:
    """The fewest passes: a storage's CRC and the digests of the tensor that fills it share one."""
    views: dict[object, list[TensorEntry]] = {}
    storages: dict[int, list[TensorEntry]] = {}
    for entry in tensors.values():
        views.setdefault(entry.view, []).append(entry)
        storages.setdefault(id(entry.storage), []).append(entry)
    filled: set[int] = set()
    jobs = []
    for entries in views.values():
        entry = entries[0]
        known = tuple(e.name for e in entries if digests is not None and e.name in digests.tensors)
        storage = entry.storage
        fills = (
            entry.is_contiguous
            and entry.kind not in UNRESOLVED
            and entry.byte_range == (0, storage.num_bytes)
            and storage.crc32 is not None
            and id(storage) not in filled
        )
        if not known and not fills and not signed:
            continue
        reading = Reading(*contiguous(resolved(entry)), entry.num_bytes)
        reading.prefix = prefix(entry.dtype, entry.shape)
        own = (digests.algorithm,) if known and digests is not None else ()
        reading.algorithms = tuple(dict.fromkeys((*own, *signed)))
        on_storage: tuple[str, ...] = ()
        if fills:
            filled.add(id(storage))
            on_storage = tuple(e.name for e in storages[id(storage)])
        jobs.append(_Job(reading, storage.crc32 if fills else None, on_storage, known, entry))
    for key, entries in storages.items():
        storage = entries[0].storage
        if storage.crc32 is not None and key not in filled:
            names = tuple(e.name for e in entries)
            jobs.append(_Job(Reading(storage, 0, storage.num_bytes), storage.crc32, names, ()))
    return jobs


def _is_summed_in_parts(entry: TensorEntry) -> bool:
    """Whether all its bytes lie in parts with checksums of their own, which the container's checks hold."""
    sources = entry.storage.sources or (entry.storage,)
    return all(source.crc32 is not None or source.checks_itself for source in sources)


def _summary(
    checkpoint: Checkpoint,
    jobs: list[_Job],
    digests: Digests | None,
    num_damaged: int,
    cast: Sequence[str],
) -> Iterator[Finding]:
    known = {name for job in jobs for name in (*job.crc_names, *job.digest_names)}
    checked = known.difference(cast)
    unchecked = [
        name
        for name, entry in checkpoint.tensors.items()
        if name not in known and entry.num_bytes and not _is_summed_in_parts(entry)
    ]
    if checked and not num_damaged:
        how = " and ".join(
            word
            for word, there in (
                ("CRC-32", any(job.crc_names for job in jobs)),
                (f"recorded {digests.algorithm} digest" if digests else "", digests is not None),
            )
            if there and word
        )
        yield Finding(CHECK, "ok", "", Kind.MATCHES, len(checked), facts={"checksums": how})
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

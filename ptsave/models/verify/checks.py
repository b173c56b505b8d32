"""The checks of `verify` that need a live model; `verbs.checks` has those that need the file alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ptsave.core.finding import Finding, Kind, Level
from ptsave.core.parts.renaming import propose
from ptsave.models.verify.against import against
from ptsave.models.verify.behaviour import behaviour
from ptsave.models.verify.roundtrip import roundtrip
from ptsave.models.verify.subject import ModelSubject
from ptsave.storage.scan import tensor_digest


def keys(subject: ModelSubject) -> Iterator[Finding]:
    """Names, shapes, dtypes, ties and buffers fit the architecture; else proposes the renaming that would."""
    report = subject.fit
    if unused := subject.unused:
        yield Finding("keys", "warn", "", Kind.NOT_IN_PROGRAM, len(unused), unused)
    for name in report.missing:
        if name in unused:
            continue
        if name in report.nearest:
            near = {"near": report.nearest[name]}
            yield Finding("keys", "fail", name, Kind.MISSING_NEAR, facts=near)
        else:
            yield Finding("keys", "fail", name, Kind.MISSING)
    for name in report.unexpected:
        yield Finding("keys", "fail", name, Kind.UNEXPECTED)
    for m in report.mismatched:
        shapes = {"found": str(list(m.found)), "expected": str(list(m.expected))}
        yield Finding("keys", "fail", m.name, Kind.OTHER_SHAPE, facts=shapes)
    yield from _casts(report.recast)
    for name in report.recomputed:
        yield Finding("keys", "ok", name, Kind.RECOMPUTED)
    yield from _ties(subject)
    if report.fits:
        sentence = subject.selection.sentence()
        count = len(subject.selection.tensors)
        kind = Kind.FITS_CHOSEN if sentence else Kind.FITS
        yield Finding("keys", "ok", "", kind, count, facts={"how": sentence})
    elif proposal := propose(subject.expected, subject.selection.tensors):
        yield Finding("keys", "warn", "", Kind.WOULD_FIT, facts={"how": str(proposal)})


def _casts(recast: Sequence[tuple[str, str, str]]) -> Iterator[Finding]:
    """A line for each pair of dtypes."""
    by_pair: dict[tuple[str, str], list[str]] = {}
    for name, expected, found in recast:
        by_pair.setdefault((expected, found), []).append(name)
    for (expected, found), names in by_pair.items():
        dtypes = {"found": found, "expected": expected}
        if len(names) == 1:
            yield Finding("keys", "warn", names[0], Kind.OTHER_DTYPE, facts=dtypes)
        else:
            yield Finding("keys", "warn", "", Kind.OTHER_DTYPES, len(names), tuple(names), dtypes)


def _ties(subject: ModelSubject) -> Iterator[Finding]:
    """Names that are one parameter in the model and hold different values in the file, or the reverse."""
    tensors, expected = subject.selection.tensors, subject.expected
    for name, want in expected.items():
        if want.tied_to is None or name not in tensors or want.tied_to not in tensors:
            continue
        one, other = tensors[name], tensors[want.tied_to]
        if one.view != other.view and tensor_digest(one) != tensor_digest(other):
            yield Finding("keys", "fail", name, Kind.LOST_TIE, facts={"other": want.tied_to})
    # What `save` wrote was tied by the class itself; elsewhere, a script may have tied it by hand.
    record = subject.checkpoint.record
    level: Level = "fail" if record is not None and record.model is not None else "warn"
    first: dict[object, str] = {}
    for name, entry in tensors.items():
        same = first.setdefault(entry.view, name)
        wants = [expected[n].tied_to or n for n in (name, same) if n in expected]
        if len(wants) == 2 and wants[0] != wants[1] and entry.num_elements:
            yield Finding("keys", level, name, Kind.NEW_TIE, facts={"other": same})


MODEL_CHECKS: dict[str, Callable[[ModelSubject], Iterator[Finding]]] = {
    "keys": keys,
    "against": against,
    "behaviour": behaviour,
    "roundtrip": roundtrip,
}

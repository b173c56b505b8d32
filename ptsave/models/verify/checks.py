"""The checks of `verify` that need a live model; `verbs.checks` has those that need the file alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ptsave.core.parts.renaming import propose
from ptsave.core.values.digest import tensor_digest
from ptsave.core.verdict import Counted, Finding, Level
from ptsave.models.verify.against import against
from ptsave.models.verify.behaviour import behaviour
from ptsave.models.verify.roundtrip import roundtrip
from ptsave.models.verify.subject import ModelSubject


def keys(subject: ModelSubject) -> Iterator[Finding]:
    """Names, shapes, dtypes, ties and buffers fit the architecture; else proposes the renaming that would."""
    report = subject.fit
    for name in report.missing:
        near = f"; the file has {report.nearest[name]!r}" if name in report.nearest else ""
        yield Finding("keys", "fail", name, f"missing{near}")
    for name in report.unexpected:
        yield Finding("keys", "fail", name, "unexpected: the architecture has no such name")
    for m in report.mismatched:
        shapes = f"has the shape {list(m.found)}, the architecture {list(m.expected)}"
        yield Finding("keys", "fail", m.name, shapes)
    yield from _casts(report.recast)
    for name in report.recomputed:
        yield Finding("keys", "ok", name, "a buffer that the model computes by itself; not loaded")
    yield from _ties(subject)
    if report.fits:
        sentence = subject.selection.sentence()
        count = len(subject.selection.tensors)
        message = Counted(count, "tensor fits the architecture", "tensors fit the architecture")
        yield Finding("keys", "ok", "", f"{message} ({sentence})" if sentence else message)
    elif proposal := propose(subject.expected, subject.selection.tensors):
        yield Finding("keys", "warn", "", f"would fit renamed: {proposal}")


def _casts(recast: Sequence[tuple[str, str, str]]) -> Iterator[Finding]:
    """A line for each pair of dtypes."""
    by_pair: dict[tuple[str, str], list[str]] = {}
    for name, expected, found in recast:
        by_pair.setdefault((expected, found), []).append(name)
    for (expected, found), names in by_pair.items():
        if len(names) == 1:
            message = f"has the dtype {found}, the architecture {expected}"
            yield Finding("keys", "warn", names[0], message)
        else:
            such = f"{len(names)} tensors (such as {names[0]!r})"
            yield Finding("keys", "warn", "", f"{such} have the dtype {found}, the architecture {expected}")


def _ties(subject: ModelSubject) -> Iterator[Finding]:
    """Names that are one parameter in the model and hold different values in the file, or the reverse."""
    tensors, expected = subject.selection.tensors, subject.expected
    for name, want in expected.items():
        if want.tied_to is None or name not in tensors or want.tied_to not in tensors:
            continue
        one, other = tensors[name], tensors[want.tied_to]
        if one.view != other.view and tensor_digest(one) != tensor_digest(other):
            message = f"lost tie: one parameter with {want.tied_to!r} in the model, other values in the file"
            yield Finding("keys", "fail", name, message, "lost_tie")
    # What `save` wrote was tied by the class itself; elsewhere, a script may have tied it by hand.
    record = subject.checkpoint.record
    level: Level = "fail" if record is not None and record.model is not None else "warn"
    first: dict[object, str] = {}
    for name, entry in tensors.items():
        same = first.setdefault(entry.view, name)
        wants = [expected[n].tied_to or n for n in (name, same) if n in expected]
        if len(wants) == 2 and wants[0] != wants[1] and entry.num_elements:
            message = f"lost tie: one tensor with {same!r} in the file, two parameters in the model"
            yield Finding("keys", level, name, message, "lost_tie")


MODEL_CHECKS: dict[str, Callable[[ModelSubject], Iterator[Finding]]] = {
    "keys": keys,
    "against": against,
    "behaviour": behaviour,
    "roundtrip": roundtrip,
}

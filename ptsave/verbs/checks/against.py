"""The check `against`: a second checkpoint has the same tensors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ptsave.config.toml import Tolerance
from ptsave.core.finding import Facts, Finding, Kind
from ptsave.core.values.tolerances import tolerance
from ptsave.verbs.checks.subject import Subject
from ptsave.verbs.diff import Diff, belonging_to_tensors, describe, diff_contents


def against(subject: Subject) -> Iterator[Finding]:
    """The tensors and the behaviour equal those of OTHER, whatever the two formats."""
    if subject.other is None:
        yield Finding("against", "skipped", "", Kind.NEEDS_OTHER)
        return
    one, other = subject.compared
    own = subject.tolerance or Tolerance()
    allowed = partial(tolerance, rtol=own.rtol, atol=own.atol) if subject.asked.is_close else None
    found = diff_contents(one, other, progress=subject.progress, tolerance=allowed)
    there = {"other": str(subject.other.path)}
    for name in found.only_in_a:
        yield Finding("against", "fail", name, Kind.ONLY_HERE, facts=there)
    for name in found.only_in_b:
        yield Finding("against", "fail", name, Kind.ONLY_THERE, facts=there)
    close = []
    for tensor in found.different:
        if allowed is not None and tensor.is_close:
            close.append(tensor)
        else:
            yield Finding("against", "fail", tensor.name, Kind.UNEQUAL, facts={"how": describe(tensor)})
    for names in found.ties_broken:
        yield Finding("against", "warn", names[0], Kind.TIED_HERE, facts={"others": ", ".join(names[1:])})
    for names in found.ties_new:
        yield Finding("against", "warn", names[0], Kind.TIED_THERE, facts={"others": ", ".join(names[1:])})
    if close:
        facts: Facts = {"total": len(found.tensors), "how": describe(close[0])}
        yield Finding("against", "ok", "", Kind.CLOSE, len(close), (close[0].name,), facts)
    yield from _against_data(found, belonging_to_tensors(one) | belonging_to_tensors(other), there)
    if subject.is_partly_compared:
        left_out = {"here": one.num_left_out, "there": other.num_left_out}
        yield Finding("against", "skipped", "", Kind.ONLY_MODELS, facts=left_out)
    if not found.tensors and not found.only_in_a and not found.only_in_b:
        yield Finding("against", "ok", "", Kind.NO_TENSORS)
    if found.tensors and not found.different and not found.only_in_a and not found.only_in_b:
        yield Finding("against", "ok", "", Kind.ALL_EQUAL, len(found.tensors))


def _against_data(found: Diff, of_tensors: set[str], there: Facts) -> Iterator[Finding]:
    """What differs beside the tensors: a part of one (a scale) is a failure, a training's number is not."""
    differing = {
        **{change.path: Kind.DATA_UNEQUAL for change in found.data_changed},
        **dict.fromkeys(found.data_only_in_a, Kind.ONLY_HERE),
        **dict.fromkeys(found.data_only_in_b, Kind.ONLY_THERE),
    }
    for path, kind in differing.items():
        if path in of_tensors:
            yield Finding("against", "fail", path, kind, facts=there)
    others = [path for path in differing if path not in of_tensors]
    if others:
        yield Finding("against", "warn", "", Kind.SOME_DATA_UNEQUAL, len(others), tuple(others))

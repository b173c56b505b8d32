"""The check `against`: a second checkpoint has the same tensors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ptsave.config.toml import Tolerance
from ptsave.core.cause import first_names
from ptsave.core.values.tolerances import tolerance
from ptsave.core.verdict import Counted, Finding
from ptsave.verbs.checks.subject import Subject
from ptsave.verbs.diff import Diff, belonging_to_tensors, describe, diff_contents


def against(subject: Subject) -> Iterator[Finding]:
    """The same tensors and the same behaviour as OTHER, whatever the two formats."""
    if subject.other is None:
        yield Finding("against", "skipped", "", "needs a second checkpoint: --against OTHER")
        return
    one, other = subject.compared
    own = subject.tolerance or Tolerance()
    allowed = partial(tolerance, rtol=own.rtol, atol=own.atol) if subject.asked.is_close else None
    found = diff_contents(one, other, progress=subject.progress, tolerance=allowed)
    for name in found.only_in_a:
        yield Finding("against", "fail", name, f"is not in {subject.other.path}")
    for name in found.only_in_b:
        yield Finding("against", "fail", name, f"is only in {subject.other.path}")
    close = [tensor for tensor in found.different if allowed is not None and tensor.is_close]
    for tensor in found.different:
        if tensor not in close:
            yield Finding("against", "fail", tensor.name, describe(tensor))
    for names in found.ties_broken:
        yield Finding("against", "warn", names[0], f"shares memory with {', '.join(names[1:])} here only")
    for names in found.ties_new:
        yield Finding("against", "warn", names[0], f"shares memory with {', '.join(names[1:])} there only")
    if close:
        such = f"(such as {close[0].name!r}: {describe(close[0])})"
        of, verb = f"of {len(found.tensors)} tensors", "is" if len(close) == 1 else "are"
        yield Finding("against", "ok", "", f"{len(close)} {of} {such} {verb} within the tolerance")
    yield from _against_data(
        found, belonging_to_tensors(one) | belonging_to_tensors(other), subject.other.path
    )
    if subject.is_partly_compared:
        left_out = one.num_left_out, other.num_left_out
        message = f"only the models: {left_out[0]} tensors here and {left_out[1]} there were not compared"
        yield Finding("against", "skipped", "", message)
    if not found.tensors and not found.only_in_a and not found.only_in_b:
        yield Finding("against", "ok", "", "neither holds a tensor")
    if found.tensors and not found.different and not found.only_in_a and not found.only_in_b:
        message = Counted(len(found.tensors), "tensor is bitwise equal", "tensors are bitwise equal")
        yield Finding("against", "ok", "", message)


def _against_data(found: Diff, of_tensors: set[str], there: Path) -> Iterator[Finding]:
    """What differs beside the tensors: a part of one (a scale) is a failure, a training's number is not."""
    differing = {
        **{change.path: "is another there" for change in found.data_changed},
        **dict.fromkeys(found.data_only_in_a, f"is not in {there}"),
        **dict.fromkeys(found.data_only_in_b, f"is only in {there}"),
    }
    for path, words in differing.items():
        if path in of_tensors:
            yield Finding("against", "fail", path, words)
    others = [path for path in differing if path not in of_tensors]
    if others:
        verb = "values that are no tensors differ or are in one alone"
        count = Counted(len(others), "value that is no tensor differs or is in one alone", verb)
        yield Finding("against", "warn", "", f"{count}: {first_names(others)}")

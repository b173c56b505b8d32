"""The check `against`: a second checkpoint has the same tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from ptsave.config.toml import Tolerance
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Facts, Finding, Kind
from ptsave.core.nodes import TensorEntry
from ptsave.core.parts.select import Content
from ptsave.core.values.cast import CASTABLE, can_cast, cast
from ptsave.core.values.tolerances import tolerance
from ptsave.storage.scan import tensor_digest
from ptsave.verbs.checks.program import FORMATS as PROGRAMS
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
    failed = False
    for side, beside, content, names, kind in (
        (subject.checkpoint, subject.other, one, found.only_in_a, Kind.ONLY_HERE),
        (subject.other, subject.checkpoint, other, found.only_in_b, Kind.ONLY_THERE),
    ):
        made, unused = _of_program(side, beside, content, names, is_run=subject.asked.has_model)
        for name in names:
            if name not in made and name not in unused:
                failed = True
                yield Finding("against", "fail", name, kind, facts=there)
        for of_program, those in ((Kind.CONSTANTS, made), (Kind.NOT_IN_PROGRAM, unused)):
            if those:
                yield Finding("against", "ok", "", of_program, len(those), tuple(those))
    close, casts = [], []
    for tensor in found.different:
        if subject.checkpoint.format in PROGRAMS and _is_cast(one.tensors, other.tensors, tensor.name):
            casts.append(tensor)
        elif allowed is not None and tensor.is_close:
            close.append(tensor)
        else:
            yield Finding("against", "fail", tensor.name, Kind.UNEQUAL, facts={"how": describe(tensor)})
    for names in found.ties_broken:
        yield Finding("against", "warn", names[0], Kind.TIED_HERE, facts={"others": ", ".join(names[1:])})
    for names in found.ties_new:
        yield Finding("against", "warn", names[0], Kind.TIED_THERE, facts={"others": ", ".join(names[1:])})
    if casts:
        dtypes = {"found": casts[0].dtype_a, "expected": casts[0].dtype_b}
        yield Finding("against", "warn", "", Kind.CAST_TO, len(casts), (casts[0].name,), dtypes)
    if close:
        facts: Facts = {"total": len(found.tensors), "how": describe(close[0])}
        yield Finding("against", "ok", "", Kind.CLOSE, len(close), (close[0].name,), facts)
    yield from _against_data(found, belonging_to_tensors(one) | belonging_to_tensors(other), there)
    if subject.is_partly_compared:
        left_out = {"here": one.num_left_out, "there": other.num_left_out}
        yield Finding("against", "skipped", "", Kind.ONLY_MODELS, facts=left_out)
    if not found.tensors and not found.only_in_a and not found.only_in_b:
        yield Finding("against", "ok", "", Kind.NO_TENSORS)
    if found.tensors and not found.different and not failed:
        yield Finding("against", "ok", "", Kind.ALL_EQUAL, len(found.tensors))


def _is_cast(here: Mapping[str, TensorEntry], there: Mapping[str, TensorEntry], name: str) -> bool:
    """Whether a tensor is the other one, rounded to its own dtype, as an export with a dtype casts it."""
    one, other = here[name], there[name]
    if one.dtype == other.dtype or one.shape != other.shape or not can_cast(other.dtype):
        return False
    return one.dtype.name in CASTABLE and tensor_digest(cast(other, one.dtype)) == tensor_digest(one)


def _of_program(
    side: Checkpoint, beside: Checkpoint, content: Content, names: Sequence[str], *, is_run: bool
) -> tuple[list[str], list[str]]:
    """Those of `names`, which one `side` alone has, that are constants which an exporter made, and those that
    its graph does not use, or has under a name that is tied to them.

    Where the program runs beside the model (`is_run`), what it computes tells of all of them.
    """
    made = [n for n in names if side.format in PROGRAMS and (is_run or n in side.constants)]
    if beside.format not in PROGRAMS:
        return made, []
    shared = {entry.view for name, entry in content.tensors.items() if name not in names}
    return made, [n for n in names if n not in made and (is_run or content.tensors[n].view in shared)]


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

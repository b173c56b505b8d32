"""verify: run checks on a checkpoint, and give a verdict.

A check is one function that takes a Subject and yields Findings; the first line of its docstring is
its line in `--list-checks`. The checks here need the file alone; those that need a live model are in
`torch_layer.checks`, and the command line puts the two tables together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.names import matches
from ptsave.core.nearest import hint_for
from ptsave.core.nodes import TensorEntry
from ptsave.core.select import select_model
from ptsave.core.verdict import Finding, places
from ptsave.errors import UsageError
from ptsave.formats.writers import BY_NAME
from ptsave.verbs.audit import audit
from ptsave.verbs.diff import describe, diff_tensors
from ptsave.verbs.resume import has_training_state
from ptsave.verbs.resume import resume as find_resumable
from ptsave.verbs.stats import non_finite


@dataclass(frozen=True)
class Subject:
    """What the checks of a file look at."""

    checkpoint: Checkpoint
    other: Checkpoint | None = None
    """What `--against` names."""
    allow: Sequence[str] = ()
    """Globs of the dotted names that `safe` accepts."""
    progress: Callable[[int], None] | None = None
    named: Sequence[str] = ()
    """The checks that the user asked for by name: they say so where there is nothing to check."""
    parameters: Callable[[], Mapping[str, tuple[int, ...]]] | None = None
    """Names and shapes of the architecture's parameters in its order, where there is a config."""


Began = Callable[[str], None]
Check = Callable[[Subject], Iterator[Finding]]

MODEL_CHECKS = ("keys", "behaviour", "roundtrip")
"""The checks of `torch_layer.checks`, named here so that a run without a model need not import torch."""


def bytes_(subject: Subject) -> Iterator[Finding]:
    """Container bounds, zip CRCs and every recorded digest; names the damaged tensor."""
    yield from audit(subject.checkpoint, subject.progress)


def safe(subject: Subject) -> Iterator[Finding]:
    """Nothing in the file would run; lists every name outside the known shapes."""
    uses = subject.checkpoint.globals.values()
    for use in uses:
        if matches(use.name, subject.allow):
            yield Finding("safe", "ok", use.name, f"{use.used_for} {use.count}×, allowed")
        else:
            yield Finding(
                "safe", "fail", use.name, f"{use.used_for} {use.count}×; a plain unpickler imports it"
            )
    if num_files := subject.checkpoint.num_code_files:
        message = f"carries a program ({num_files} files): torch runs it when it loads or calls the model"
        yield Finding("safe", "warn", "", message)
    elif not uses:
        yield Finding("safe", "ok", "", "names nothing that could run")


def finite(subject: Subject) -> Iterator[Finding]:
    """No NaN and no infinity in any floating-point tensor."""
    looked = bad = 0
    for name, nans, infinities in non_finite(subject.checkpoint, progress=subject.progress):
        looked += 1
        if nans or infinities:
            bad += 1
            yield Finding("finite", "fail", name, f"{nans} NaN, {infinities} infinite")
    if not looked:
        yield Finding("finite", "skipped", "", "there is no floating-point tensor")
    elif not bad:
        yield Finding("finite", "ok", "", f"{looked} floating-point tensors, every element finite")


def resume(subject: Subject) -> Iterator[Finding]:
    """Optimizer state covers the parameters in order and shape; what is missing is listed."""
    if "resume" in subject.named or has_training_state(subject.checkpoint):
        yield from find_resumable(subject.checkpoint, subject.parameters() if subject.parameters else None)


def against(subject: Subject) -> Iterator[Finding]:
    """The same tensors as a second checkpoint, whatever the two formats."""
    if subject.other is None:
        yield Finding("against", "skipped", "", "needs a second checkpoint: --against OTHER")
        return
    one, other = _comparable(subject.checkpoint, subject.other)
    found = diff_tensors(one, other, progress=subject.progress)
    for name in found.only_in_a:
        yield Finding("against", "fail", name, f"is not in {subject.other.path}")
    for name in found.only_in_b:
        yield Finding("against", "fail", name, f"is only in {subject.other.path}")
    for tensor in found.different:
        yield Finding("against", "fail", tensor.name, describe(tensor))
    for names in found.ties_broken:
        yield Finding("against", "warn", names[0], f"shares memory with {', '.join(names[1:])} here only")
    for names in found.ties_new:
        yield Finding("against", "warn", names[0], f"shares memory with {', '.join(names[1:])} there only")
    if found.has_same_values and not found.different:
        yield Finding("against", "ok", "", f"{len(found.tensors)} tensors are bitwise equal")


def _comparable(a: Checkpoint, b: Checkpoint) -> tuple[Mapping[str, TensorEntry], Mapping[str, TensorEntry]]:
    """All tensors of both where they have the same names, else the models' state dicts in them."""
    if a.tensors.keys() == b.tensors.keys():
        return a.tensors, b.tensors
    return _model_or_all(a), _model_or_all(b)


def _model_or_all(checkpoint: Checkpoint) -> Mapping[str, TensorEntry]:
    try:
        return select_model(checkpoint).tensors
    except UsageError:
        return checkpoint.tensors


FILE_CHECKS: dict[str, Check] = {
    "bytes": bytes_,
    "safe": safe,
    "finite": finite,
    "resume": resume,
    "against": against,
}


def choose_checks(text: str | None, *, with_other: bool) -> list[str]:
    """The checks that `--checks A,B` names; without it all, `against` where there is a second checkpoint.

    Raises: UsageError with the nearest name.
    """
    known = [*FILE_CHECKS, *MODEL_CHECKS]
    if text is None:
        return [name for name in known if name != "against" or with_other]
    return choose(text, known, "--checks", "checks")


def choose(text: str, known: Sequence[str], flag: str, kind: str) -> list[str]:
    """The names in a comma-separated list, each of them known.

    Raises: UsageError with the nearest name.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise UsageError(f"unknown name {name!r}", flag, hint_for(name, known, kind))
    if not names:
        raise UsageError("names nothing", flag, f"known {kind}: {', '.join(known)}")
    return names


def choose_formats(text: str | None) -> list[str]:
    """The formats that `--through A,B` names, if it is there.

    Raises: UsageError with the nearest name.
    """
    return [] if text is None else choose(text, list(BY_NAME), "--through", "formats")


def skipped(check: str, reason: str) -> Iterator[Finding]:
    """The finding of a check that could not run; it is never counted as passed."""
    yield Finding(check, "skipped", "", reason)


def total_bytes(names: Sequence[str], checkpoint: Checkpoint, other: Checkpoint | None) -> int:
    """How many bytes the checks of the file will read, for a progress bar."""
    size = sum(entry.num_bytes for entry in checkpoint.tensors.values())
    passes = sum(name in names for name in ("bytes", "finite", "against"))
    beside = sum(entry.num_bytes for entry in other.tensors.values()) if other is not None else 0
    return size * passes + beside


def run_checks(checks: Mapping[str, Callable[[], Iterator[Finding]]], began: Began) -> list[Finding]:
    """Run the checks in order and collect what they find; `began` is told the name of each."""
    findings: list[Finding] = []
    for name, check in checks.items():
        began(name)
        findings.extend(check())
    return findings


def facts(
    checkpoint: Checkpoint, model: str | None, device: str, seconds: float
) -> dict[str, str | int | float]:
    """What was verified, for a report: names and plain values in the order in which to show them."""
    tensors = checkpoint.tensors.values()
    known: dict[str, str | int | float] = {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "tensors": len(tensors),
        "bytes": sum({entry.view: entry.num_bytes for entry in tensors}.values()),
        "seconds": seconds,
    }
    if model is not None:
        known |= {"class": model, "device": device}
    environment = checkpoint.record.environment if checkpoint.record is not None else None
    return known | {f"saved with {name}": text for name, text in (environment or {}).items()}


def damage(findings: Sequence[Finding], checkpoint: Checkpoint) -> str:
    """What the check `bytes` found out, in a line; empty where all is whole."""
    bad = [name for name in places(findings, "bytes", "fail") if name in checkpoint.tensors]
    if not bad:
        return ""
    more = ", …" if len(bad) > 3 else ""
    verb, its = ("does", "its") if len(bad) == 1 else ("do", "their")
    names = ", ".join(bad[:3]) + more
    return (
        f"damaged: {len(bad)} of {len(checkpoint.tensors)} tensors {verb} not match {its} checksum ({names})"
    )

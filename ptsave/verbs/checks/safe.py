"""The check `safe`: reading the file with any other program runs nothing."""

from __future__ import annotations

from collections.abc import Iterator

from ptsave.core.finding import Finding, Kind, Level
from ptsave.core.global_names import kind_of
from ptsave.core.names import matches
from ptsave.verbs.checks.subject import Subject

KINDS = {"runs": Kind.RUNS, "library": Kind.LIBRARY, "unknown": Kind.UNKNOWN}


def safe(subject: Subject) -> Iterator[Finding]:
    """Nothing in the file would run; lists every name that is not in the allow-list."""
    uses = subject.checkpoint.globals.values()
    level: Level
    is_onnx = subject.checkpoint.format == "onnx"
    for use in uses:
        kind = kind_of(use.name)
        is_exact = use.name in subject.allow
        if kind == "runs" and is_exact:
            level, outcome = "warn", ", and allowed by its full name"
        elif kind != "runs" and (is_exact or matches(use.name, subject.allow)):
            level, outcome = "ok", "; allowed"
        else:
            is_operator = is_onnx or use.name.startswith("torch.ops.")
            taken = (
                "a runtime runs what is registered under it"
                if is_operator
                else "a plain unpickler imports it"
            )
            also = "; only its full name allows it" if matches(use.name, subject.allow) else ""
            level, outcome = "fail", f"; {taken}{also}"
        facts = {"used_for": use.used_for, "outcome": outcome}
        yield Finding("safe", level, use.name, KINDS[kind], use.count, facts=facts)
    yield from subject.checkpoint.beside
    if num_files := subject.checkpoint.num_code_files:
        yield Finding("safe", "warn", "", Kind.HAS_PROGRAM, num_files)
    elif not uses and not subject.checkpoint.beside:
        yield Finding("safe", "ok", "", Kind.NOTHING_RUNS)

"""The check `safe`: reading the file with any other program runs nothing."""

from __future__ import annotations

from collections.abc import Iterator

from ptsave.core.global_names import WORDS, kind_of
from ptsave.core.names import matches
from ptsave.core.verdict import Finding
from ptsave.verbs.checks.subject import Subject


def safe(subject: Subject) -> Iterator[Finding]:
    """Nothing in the file would run; lists every name outside the known shapes."""
    uses = subject.checkpoint.globals.values()
    for use in uses:
        kind = kind_of(use.name)
        what = f"{use.used_for} {use.count}×; {WORDS[kind]}"
        is_exact = use.name in subject.allow
        if kind == "runs" and is_exact:
            yield Finding("safe", "warn", use.name, f"{what}, and allowed by its full name", kind)
        elif kind != "runs" and (is_exact or matches(use.name, subject.allow)):
            yield Finding("safe", "ok", use.name, f"{what}; allowed", kind)
        else:
            also = "; only its full name allows it" if matches(use.name, subject.allow) else ""
            yield Finding("safe", "fail", use.name, f"{what}; a plain unpickler imports it{also}", kind)
    yield from subject.checkpoint.beside
    if num_files := subject.checkpoint.num_code_files:
        message = f"carries a program ({num_files} files): torch runs it when it loads or calls the model"
        yield Finding("safe", "warn", "", message)
    elif not uses and not subject.checkpoint.beside:
        yield Finding("safe", "ok", "", "names nothing that could run")

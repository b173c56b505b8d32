"""What findings come to."""

from __future__ import annotations

from ptsave.core.finding import Finding, Kind
from ptsave.core.verdict import Verdict, level_of


def test_what_a_check_came_to_is_the_worst_that_it_found() -> None:
    def findings(*levels: str) -> list[Finding]:
        return [Finding("c", level, "", Kind.EQUAL_OUTPUT) for level in levels]  # type: ignore[arg-type]

    assert level_of(findings("ok", "skipped", "warn", "fail")) == "fail"
    assert level_of(findings("ok", "skipped", "warn")) == "warn"
    assert level_of(findings("skipped", "ok")) == "ok"
    assert level_of(findings("skipped")) == "skipped"


def test_the_outcome_agrees_with_the_verdict() -> None:
    why = {"why": "why"}
    ok = Finding("ok", "ok", "", Kind.UNREADABLE, facts=why)
    skip = Finding("skipped", "skipped", "", Kind.UNREADABLE, facts=why)
    fail = Finding("fail", "fail", "", Kind.UNREADABLE, facts=why)
    for findings, words in (
        ((ok, skip), "passed ok; skipped: skipped (why)"),
        ((ok,), "passed ok"),
        ((ok, skip, fail), "failed fail"),
        ((skip,), "could not be checked"),
        ((), "could not be checked"),
    ):
        assert Verdict(findings).outcome == words
        assert words.startswith("passed") == Verdict(findings).is_yes

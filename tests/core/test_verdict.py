"""What findings come to, and messages that count, put together from several ranks."""

from __future__ import annotations

import copy

from ptsave.core.verdict import Counted, Finding, Verdict, level_of


def test_one_and_many_are_added_up_across_processes() -> None:
    one = Counted(1, "tensor lies there", "tensors lie there")
    assert one == "1 tensor lies there"
    sent = copy.deepcopy(one)  # as pickled, without a pickle
    assert sent.plus(one) == "2 tensors lie there"
    assert Counted(0, "tensor", "tensors") == "0 tensors"


def test_what_a_check_came_to_is_the_worst_that_it_found() -> None:
    def findings(*levels: str) -> list[Finding]:
        return [Finding("c", level, "", "") for level in levels]  # type: ignore[arg-type]

    assert level_of(findings("ok", "skipped", "warn", "fail")) == "fail"
    assert level_of(findings("ok", "skipped", "warn")) == "warn"
    assert level_of(findings("skipped", "ok")) == "ok"
    assert level_of(findings("skipped")) == "skipped"


def test_the_outcome_agrees_with_the_verdict() -> None:
    ok, skip, fail = (Finding(level, level, "", "why") for level in ("ok", "skipped", "fail"))  # type: ignore[arg-type]
    for findings, words in (
        ((ok, skip), "passed ok; skipped: skipped (why)"),
        ((ok,), "passed ok"),
        ((ok, skip, fail), "failed fail"),
        ((skip,), "could not be checked"),
        ((), "could not be checked"),
    ):
        assert Verdict(findings).outcome == words
        assert words.startswith("passed") == Verdict(findings).is_yes


def test_a_finding_says_where() -> None:
    assert str(Finding("c", "ok", "", "fine")) == "fine"
    assert str(Finding("c", "ok", "a.b", "fine")) == "a.b: fine"

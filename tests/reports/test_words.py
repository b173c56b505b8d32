"""The words that the reports share."""

from __future__ import annotations

import pytest

from ptsave.core.verdict import Finding, Verdict
from ptsave.reports.words import clean, fact, level_of, line, outcome


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("bytes", 12, "12 B"),
        ("bytes", 1023, "1,023 B"),
        ("bytes", 1536, "1.5 KiB (1,536 B)"),
        ("bytes", 5 * 1024**5, "5,120.0 TiB (5,629,499,534,213,120 B)"),
        ("bytes", "unknown", "unknown"),
        ("tensors", 1234567, "1,234,567"),
        ("seconds", 2.04, "2.0"),
        ("trusted", True, "True"),
        ("class", "a\nb\ufffe", r"a\nb\ufffe"),
        ("record", None, "None"),
    ],
)
def test_facts(name: str, value: object, shown: str) -> None:
    assert fact(name, value) == shown


def test_an_integer_that_python_refuses_to_print_is_spelt_in_hexadecimal() -> None:
    assert fact("tensors", 10**5000) == fact("bytes", 10**5000) == hex(10**5000)


def test_what_a_check_came_to_is_the_worst_that_it_found() -> None:
    def findings(*levels: str) -> list[Finding]:
        return [Finding("c", level, "", "") for level in levels]  # type: ignore[arg-type]

    assert level_of(findings("ok", "skipped", "warn", "fail")) == "fail"
    assert level_of(findings("ok", "skipped", "warn")) == "warn"
    assert level_of(findings("skipped", "ok")) == "ok"
    assert level_of(findings("skipped")) == "skipped"


def test_the_outcome_agrees_with_the_verdict() -> None:
    ok, skip, fail = (Finding(level, level, "", "") for level in ("ok", "skipped", "fail"))  # type: ignore[arg-type]
    for findings, words in (
        ((ok, skip), "passed ok; skipped skipped"),
        ((ok,), "passed ok"),
        ((ok, skip, fail), "failed fail"),
        ((skip,), "nothing could be checked"),
        ((), "nothing could be checked"),
    ):
        assert outcome(Verdict(findings)) == words
        assert words.startswith("passed") == Verdict(findings).is_yes


def test_lines_and_clean_text() -> None:
    assert line(Finding("c", "ok", "", "fine")) == "fine"
    assert line(Finding("c", "ok", "a.b", "fine")) == "a.b: fine"
    assert clean("a\0\u202e\ud800\uffff") == r"a\x00\u202e\ud800\uffff"

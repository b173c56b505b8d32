"""GitHub workflow commands, read back as the runner reads them."""

from __future__ import annotations

import re

from ptsave.core.verdict import Verdict
from ptsave.render.report import annotation_lines
from tests.render.report.samples import BAD, EVIL, EVIL_NAME, GOOD, said


def parse(line: str) -> tuple[str, dict[str, str], str]:
    """The command, its properties and its message.

    Source: actions/runner `ActionCommand.TryParseV2`.
    """
    matched = re.fullmatch(r"::(\w+) (.*?)::(.*)", line)
    assert matched, line
    command, properties, message = matched.groups()
    pairs = dict(pair.split("=", 1) for pair in properties.split(","))
    return command, {key: unescape(value) for key, value in pairs.items()}, unescape(message)


def unescape(text: str) -> str:
    for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, character)
    return text


def test_a_yes_says_nothing() -> None:
    assert annotation_lines(GOOD, "a.pt") == []


def test_the_cause_comes_first_then_failures_then_warnings() -> None:
    parsed = [parse(line) for line in annotation_lines(BAD, "runs/a.pt")]
    assert [(command, properties["title"]) for command, properties, _ in parsed] == [
        ("error", "ptsave verify"),
        ("error", "ptsave bytes"),
        ("error", "ptsave behaviour"),
        ("error", "ptsave behaviour"),
        ("warning", "ptsave keys"),
    ]
    assert parsed[0][2] == BAD.cause
    assert parsed[4][2] == "embeddings.position_ids: is a buffer that the state dict leaves out"
    assert {properties["file"] for _, properties, _ in parsed} == {"runs/a.pt"}


def test_a_no_without_a_failure_is_an_error_too() -> None:
    (line,) = annotation_lines(Verdict((said("keys", "skipped", "", "needs a config"),)), "a.pt")
    assert line == "::error file=a.pt,title=ptsave verify::could not be checked"


def test_no_name_can_end_a_command_or_begin_one() -> None:
    path = "a,b:c%2C\n::error::x.pt"
    lines = annotation_lines(EVIL, path)
    for line in lines:
        assert line.isprintable()
        assert len(line.splitlines()) == 1
    parsed = [parse(line) for line in lines]
    assert {properties["file"] for _, properties, _ in parsed} == {r"a,b:c%2C\n::error::x.pt"}
    assert {frozenset(properties) for _, properties, _ in parsed} == {frozenset({"file", "title"})}
    assert parsed[1][2] == (
        rf"{EVIL_NAME}: \x00\x1b[31mred\x07 \u202egnp.exe \ud800 \ufffe %0A::error::x\n::stop-commands::y"
    )


def test_what_github_would_drop_is_counted() -> None:
    failures = tuple(said("bytes", "fail", f"t{i}", "damaged") for i in range(1234))
    warnings = tuple(said("keys", "warn", f"t{i}", "odd") for i in range(10))
    parsed = [parse(line) for line in annotation_lines(Verdict(failures + warnings, "damaged"), "a.pt")]
    errors = [message for command, _, message in parsed if command == "error"]
    assert len(errors) == 10
    assert errors[0] == "damaged"
    assert errors[1:9] == [f"t{i}: damaged" for i in range(8)]
    assert errors[9] == "… and 1,226 more; the log names them"
    assert len(parsed) - len(errors) == 10
    assert parsed[-1][2] == "t9: odd"


def test_a_message_has_an_end() -> None:
    (line,) = annotation_lines(Verdict((said("safe", "fail", "x" * 10**6, "built"),)), "a.pt")
    assert len(line) < 1100

"""A verdict as GitHub workflow commands: what failed shows at the run and in the pull request.

Source: docs.github.com, "Workflow commands for GitHub Actions"; the escapes are those of `escapeData`
and `escapeProperty` in actions/toolkit's `core/src/command.ts`.
"""

from __future__ import annotations

from ptsave.core.finding import Level
from ptsave.core.verdict import Verdict
from ptsave.render.report.words import clean

MAX_OF_A_KIND = 10
"""GitHub shows so many errors and so many warnings of one step, and drops the others unseen."""
MAX_CHARS = 1000
"""Cap on the characters of one message."""

_COMMANDS: dict[Level, str] = {"fail": "error", "warn": "warning"}


def annotation_lines(verdict: Verdict, path: str) -> list[str]:
    """The lines to print: the cause first, then an error for each failure and a warning for each doubt.

    `path`: the checkpoint, relative to the repository's root. What GitHub would drop is counted in the
    last line of its kind.
    """
    lines: list[str] = []
    for level, command in _COMMANDS.items():
        found = [(f"ptsave {f.check}", str(f)) for f in verdict.findings if f.level == level]
        if level == "fail" and not verdict.is_yes and (verdict.cause or not found):
            found.insert(0, ("ptsave verify", verdict.cause or verdict.outcome))
        if len(found) > MAX_OF_A_KIND:
            left = len(found) - (MAX_OF_A_KIND - 1)
            found[MAX_OF_A_KIND - 1 :] = [("ptsave verify", f"… and {left:,} more; the log names them")]
        lines += [_command(command, path, title, message) for title, message in found]
    return lines


def _command(command: str, path: str, title: str, message: str) -> str:
    return f"::{command} file={_property(path)},title={_property(title)}::{_data(_shortened(message))}"


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS - 1]}…"


def _data(text: str) -> str:
    return clean(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")

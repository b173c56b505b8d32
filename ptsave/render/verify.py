"""What `verify` prints."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ptsave.core.address import Location
from ptsave.core.finding import Finding, Level
from ptsave.core.names import escape
from ptsave.core.verdict import Verdict
from ptsave.errors import PtsaveError
from ptsave.render import as_json
from ptsave.render.terminal import PATIENCE_SECONDS, Mode, document, failure, note, out, say, styled, table
from ptsave.render.words import count, size

if TYPE_CHECKING:
    from ptsave.config.lock import Pin
    from ptsave.models.save import Recorded


LEVELS = {"ok": ("ok", "32"), "warn": ("warn", "33"), "fail": ("FAIL", "1;31"), "skipped": ("skipped", "2")}
MAX_OTHERS = 8
"""How many names are shown of the files that were not looked into."""
MAX_ALIKE = {"fail": 6, "warn": 3, "ok": 3, "skipped": 3}
"""How many findings of one check and level are printed without --verbose: all of verify fits on a screen."""


def show_workflow_commands(lines: Sequence[str]) -> None:
    """GitHub's workflow commands, on stderr so that stdout stays one result; they are escaped already."""
    for line in lines:
        say(line)


def show_checks(mode: Mode, functions: Mapping[str, Any]) -> None:
    """What `--list-checks` prints: each check with the first line of its docstring."""
    lines = {name: (function.__doc__ or "").strip().splitlines()[0] for name, function in functions.items()}
    if mode.json:
        document({"checks": lines})
    else:
        table(list(lines.items()))


def checking(mode: Mode) -> Callable[[str], None]:
    """The function to call as each check begins: it says so with --verbose, and on a terminal once the work
    has taken a while."""
    started = time.monotonic()

    def began(check: str) -> None:
        is_long = sys.stderr.isatty() and time.monotonic() - started > PATIENCE_SECONDS
        if mode.verbose or (is_long and not mode.quiet):
            say(f"checking {check} …")

    return began


def show_recorded(mode: Mode, result: Recorded) -> None:
    """What `verify --record` prints."""
    taken = size(result.num_bytes)
    note(mode, f"recorded the behaviour of {result.model} in {result.path}: the record takes {taken}")


def show_pinned(mode: Mode, lock: Location, pin: Pin) -> None:
    """What `verify --pin` prints."""
    note(mode, f"pinned in {lock}: {pin.digest}")


def show_verdict(mode: Mode, result: Verdict, path: Location) -> None:
    """What `verify` prints: the findings, and the verdict on the last line."""
    if mode.json:
        document(as_json.verdict(result, path, iter))
        return
    if not mode.quiet:
        _findings(result, mode)
        if result.cause:
            out(f"{'because':<10} {escape(result.cause)}")
        if mode.verbose and result.root:
            out(f"{'root':<10} {result.root}")
    answer = styled(result.answer, "1;32" if result.is_yes else "1;31")
    out(f"{answer}: {escape(str(path))} {escape(result.outcome)}")
    if any(finding.check == "safe" and finding.level == "fail" for finding in result.findings):
        note(
            mode,
            "hint: `ptsave convert … NEW.safetensors --extras drop` takes the tensors alone and runs nothing",
        )


def show_one(mode: Mode, outcome: tuple[Verdict, Mapping[str, object]] | PtsaveError, path: Location) -> None:
    """One of several verdicts, or the error in place of one; with --json the summary has them all."""
    if isinstance(outcome, PtsaveError):
        failure(outcome, json=False)
    if mode.json:
        return
    if isinstance(outcome, PtsaveError):
        out(f"{styled('error', '1;31')}: {escape(str(path))} {escape(outcome.what)}")
    else:
        show_verdict(mode, outcome[0], path)
    if not mode.quiet:
        out()


def show_summary(mode: Mode, counted: dict[str, Any]) -> None:
    """How many verdicts say what, and what was not looked into, of the JSON object of several."""
    if mode.json:
        document(counted)
        return
    said = ", ".join(f"{number} {word}" for word, number in counted["counts"].items() if number)
    others = counted["not_looked_into"]
    beside = f"; not looked into: {', '.join(others[:MAX_OTHERS])}" if others else ""
    more = f", and {len(others) - MAX_OTHERS} more" if len(others) > MAX_OTHERS else ""
    if any(name.endswith("/") for name in others):
        more += " (--recursive looks into folders)"
    out(f"{count(len(counted['verdicts']), 'checkpoint')}: {said}{escape(beside)}{more}")


def _findings(result: Verdict, mode: Mode) -> None:
    alike: dict[tuple[str, Level], list[Finding]] = {}
    for finding in result.findings:
        alike.setdefault((finding.check, finding.level), []).append(finding)
    for (check, level), findings in alike.items():
        word, code = LEVELS[level]
        start = f"{check:<10} {styled(f'{word:<8}', code)}"
        shown = len(findings) if mode.verbose else MAX_ALIKE[level]
        for finding in findings[:shown]:
            out(f"{start} {escape(str(finding))}")
        if len(findings) > shown:
            out(f"{start} … {len(findings) - shown:,} more (--verbose lists them)")

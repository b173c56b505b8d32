"""verify's verdict as a file: JSON for programs, JUnit for CI, HTML for people.

Everything that came from a checkpoint is escaped for the format that it goes into: names are hostile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ptsave.core.address import Location
from ptsave.core.names import hint_for
from ptsave.core.verdict import Verdict
from ptsave.errors import UsageError
from ptsave.render.report.annotations import annotation_lines
from ptsave.render.report.html import html as html_text
from ptsave.render.report.junit import junit as junit_text
from ptsave.storage.opening import check_file_destination, write_file

__all__ = ["SUFFIXES", "annotation_lines", "check_report_path", "report_text", "write_report"]

SUFFIXES = (".json", ".xml", ".html")
"""What a report's name may end with: its format follows from it."""


def check_report_path(path: Location) -> None:
    """Refuse a report of an unknown kind or at an impossible place, before any work is done for it.

    Raises: UsageError with the nearest suffix; RefusedError when it would replace what was read; WriteError.
    """
    _check_suffix(path)
    check_file_destination(path, overwrite=True)


def _check_suffix(path: Location) -> None:
    if path.suffix.lower() not in SUFFIXES:
        hint = hint_for(path.suffix.lower(), SUFFIXES, "suffixes")
        raise UsageError(f"no kind of report has the suffix {path.suffix!r}", f"--report {path}", hint)


def write_report(
    path: Location, verdict: Verdict, facts: Mapping[str, object], json_document: Mapping[str, Any]
) -> None:
    """Write what `report_text` makes to `path`, old or new; an older report is replaced.

    Raises: WriteError.
    """
    write_file(path, report_text(path, verdict, facts, json_document).encode(), overwrite=True)


def report_text(
    path: Location, verdict: Verdict, facts: Mapping[str, object], json_document: Mapping[str, Any]
) -> str:
    """The text of a report in the format that `path`'s suffix says; nothing is written.

    `facts`: what was verified, as names and plain values in the order in which to show them; `path` is
    the checkpoint, `seconds` how long it took. `json_document`: what `verify --json` prints.

    Raises: UsageError when no report has such a suffix.
    """
    _check_suffix(path)
    if path.suffix.lower() == ".json":
        return json.dumps(json_document, ensure_ascii=True, allow_nan=False, indent=2) + "\n"
    subject = str(facts.get("path", ""))
    if path.suffix.lower() == ".html":
        return html_text(verdict, subject, facts)
    seconds = facts.get("seconds")
    return junit_text(verdict, subject, float(seconds) if isinstance(seconds, (int, float)) else 0.0, facts)

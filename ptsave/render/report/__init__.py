"""verify's verdict as a file: JSON for programs, JUnit for CI, HTML for people.

Everything that came from a checkpoint is escaped for the format that it goes into: names are hostile.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from itertools import chain
from typing import Any

from ptsave import __version__
from ptsave.core.address import Location
from ptsave.core.names import hint_for
from ptsave.core.storage import BLOCK_BYTES
from ptsave.core.verdict import Verdict
from ptsave.errors import PtsaveError, UsageError
from ptsave.render import as_json
from ptsave.render.report.annotations import annotation_lines
from ptsave.render.report.html import html as html_text
from ptsave.render.report.junit import junit, report_of, suite_of, suite_of_error
from ptsave.render.report.several import html_of_several
from ptsave.storage.opening import check_file_destination, replacing_file

__all__ = [
    "SUFFIXES",
    "annotation_lines",
    "begin_report",
    "check_report_path",
    "report_text",
    "write_report",
    "write_reports",
]

SUFFIXES = (".json", ".xml", ".html")
"""The suffixes of reports, which choose their format."""


def check_report_path(path: Location) -> None:
    """Refuse a report of an unknown kind or at an impossible place, before any work is done for it.

    Raises: UsageError with the nearest suffix; RefusedError when it would replace what was read; WriteError.
    """
    _check_suffix(path)
    check_file_destination(path, overwrite=True)


def begin_report(path: Location, destination: Location) -> Callable[[Verdict, Mapping[str, object]], None]:
    """A function that writes the verdict on the program at `destination` to `path`.

    Raises: as `check_report_path`.
    """
    check_report_path(path)

    def write(verdict: Verdict, facts: Mapping[str, object]) -> None:
        write_report(path, verdict, facts, lambda: as_json.versioned(as_json.verdict(verdict, destination)))

    return write


def _check_suffix(path: Location) -> None:
    if path.suffix.lower() not in SUFFIXES:
        hint = hint_for(path.suffix.lower(), SUFFIXES, "suffixes")
        raise UsageError(f"no kind of report has the suffix {path.suffix!r}", f"--report {path}", hint)


def write_report(
    path: Location,
    verdict: Verdict,
    facts: Mapping[str, object],
    json_document: Callable[[], Mapping[str, Any]],
) -> None:
    """Write what `report_text` makes to `path`, old or new; an older report is replaced.

    Raises: WriteError.
    """
    _write(path, report_text(path, verdict, facts, json_document))


def report_text(
    path: Location,
    verdict: Verdict,
    facts: Mapping[str, object],
    json_document: Callable[[], Mapping[str, Any]],
) -> Iterable[str]:
    """The text of a report in the format that `path`'s suffix says, in pieces; nothing is written.

    `facts`: what was verified, as names and plain values in the order in which to show them; `path` is
    the checkpoint, `seconds` how long it took. `json_document` makes what `verify --json` prints.

    Raises: UsageError when no report has such a suffix.
    """
    _check_suffix(path)
    subject = str(facts.get("path", ""))
    if path.suffix.lower() == ".html":
        return [html_text(verdict, subject, {**facts, **_now()})]
    if path.suffix.lower() == ".xml":
        return junit(verdict, subject, _seconds(facts), facts)
    return _json_text(json_document())


def _now() -> dict[str, str]:
    """When a page was made, and by which ptsave."""
    now = datetime.now(timezone.utc).isoformat(" ", "minutes").replace("+00:00", " UTC")
    return {"verified": now, "by": f"ptsave {__version__}"}


def _json_text(document: Mapping[str, Any]) -> Iterable[str]:
    return chain(as_json.pieces(document), ["\n"])


def _write(path: Location, pieces: Iterable[str]) -> None:
    with tempfile.TemporaryFile() as whole:  # of 200,000 findings, too long for the memory that is left
        whole.writelines(piece.encode() for piece in pieces)
        with replacing_file(path, whole.tell(), overwrite=True) as output:
            output.reserve()
            whole.seek(0)
            while block := whole.read(BLOCK_BYTES):
                output.write_at(whole.tell() - len(block), block)


def write_reports(
    path: Location,
    results: Sequence[tuple[Location, tuple[Verdict, Mapping[str, object]] | PtsaveError]],
    json_document: Mapping[str, Any],
    command: str,
) -> None:
    """Write the verdicts, with their facts, or errors on several checkpoints, by path, into one report.

    `command`: what came to them, which a page shows.

    Raises: WriteError.
    """
    if path.suffix.lower() == ".html":
        verdicts = [
            (str(where), result if isinstance(result, PtsaveError) else result[0])
            for where, result in results
        ]
        _write(path, [html_of_several(verdicts, {"command": command, **_now()})])
    elif path.suffix.lower() == ".json":
        _write(path, _json_text(json_document))
    else:
        _write(path, report_of(_suite(i, str(where), result) for i, (where, result) in enumerate(results)))


def _suite(
    number: int, where: str, result: tuple[Verdict, Mapping[str, object]] | PtsaveError
) -> Iterable[str]:
    if isinstance(result, PtsaveError):
        return suite_of_error(where, str(result), str(result.hint), number=number)
    verdict, facts = result
    return suite_of(verdict, where, _seconds(facts), facts, number=number)


def _seconds(facts: Mapping[str, object]) -> float:
    seconds = facts.get("seconds")
    return float(seconds) if isinstance(seconds, (int, float)) else 0.0

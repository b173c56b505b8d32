"""A verdict as one HTML page that loads nothing, and what all pages share.

The style and the script are inlined from `page.css` and `page.js`. A content security policy with their
digests lets nothing else in, so that even a name that slipped through the escapes could neither run nor
fetch. Without scripts all of it works but the sorting.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from html import escape as escape_html
from importlib.resources import files

from ptsave.core.finding import LEVELS, Finding, Level
from ptsave.core.verdict import Departure, Verdict, level_of
from ptsave.render.report.plot import amount, gathered, plot
from ptsave.render.report.words import clean, fact
from ptsave.render.words import count

MAX_PAGE_BYTES = 2_000_000
"""Cap on a page: what would exceed it is counted at the foot of its table."""
ROOM_BYTES = 20_000
"""Of that, what the feet, the style, the script and the ends of elements take."""
TABLE_BYTES = 400
"""What a table takes beside its heads and rows: its foot and ends."""
MAX_ROWS = 1000
"""Findings of one level that the table shows: with many more, a phone could not open the page."""
MAX_CHARS = 500
"""Cap on the characters of one name or message."""


def html(verdict: Verdict, path: str, facts: Mapping[str, object]) -> str:
    """The page about the checkpoint at `path`; `facts` are shown in their order."""
    word = verdict.answer
    title = f"{word}: {text(path)} – ptsave verify"
    head = [*_head(verdict, path, word), *facts_of(facts)]
    growth = [*_growth(verdict)]
    room = MAX_PAGE_BYTES - ROOM_BYTES - num_bytes(head) - num_bytes(growth)
    findings = [*findings_of(verdict.findings, room)]
    if growth:
        calls = _calls(verdict.growth, room - num_bytes(findings))
        growth = ['<section class="growth">', *growth, *calls, "</section>"]
    return document(title, [*head, *growth, *findings])


def document(title: str, body: Iterable[str]) -> str:
    """A page of `body` with the style and the script of all pages, which lets nothing else in; `title` is
    escaped already."""
    style, script = _asset("page.css"), _asset("page.js")
    policy = f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}"
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{text(policy)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="referrer" content="no-referrer">',
        '<link rel="icon" href="data:,">',
        f"<title>{title}</title>",
        f"<style>{style}</style>",
        "</head>",
        "<body>",
        *body,
        f"<script>{script}</script>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _head(verdict: Verdict, path: str, word: str) -> Iterator[str]:
    yield f'<header class="{word}">'
    yield '<p class="tool">ptsave verify</p>'
    yield f'<h1><span class="word">{word}</span> <code>{text(path)}</code></h1>'
    yield f'<p class="outcome">{text(_sentence(verdict.outcome))}</p>'
    if verdict.cause:
        yield f'<p class="cause"><strong>Cause</strong> {text(verdict.cause)}</p>'
    yield '<ul class="checks">'
    for check, findings in verdict.by_check.items():
        level = level_of(findings)
        yield f'<li class="{level}"><span class="level">{level}</span> {text(check)}</li>'
    yield "</ul>"
    yield "</header>"


def facts_of(facts: Mapping[str, object]) -> Iterator[str]:
    """What a page says of how it came about."""
    shown = {name: value for name, value in facts.items() if name != "path"}  # the title has the path
    if not shown:
        return
    yield '<dl class="facts">'
    for name, value in shown.items():
        yield f"<div><dt>{text(name)}</dt><dd>{text(fact(name, value))}</dd></div>"
    yield "</dl>"


# --- the difference by layer --------------------------------------------------------------------------


def _growth(verdict: Verdict) -> Iterator[str]:
    if not verdict.growth:
        return
    named = {finding.where for finding in verdict.findings if finding.level == "fail" and finding.where}
    _, share = gathered(verdict.growth, named)
    gathering = f" Each point is the largest of {share} calls in a row." if share > 1 else ""
    yield "<h2>Difference by layer</h2>"
    yield (
        "<p>How far each module's output is from what it is compared with, in the order of the calls: root "
        "mean square of the difference over that of the values, on a logarithmic scale."
        f"{gathering}</p>"
    )
    yield f'<div class="frame">{plot(verdict.growth, named)}</div>'


def _calls(growth: Sequence[Departure], room_bytes: int) -> Iterator[str]:
    yield f"<details><summary>All {len(growth):,} calls as a table</summary>"
    lines = fitting((_call_row(i, call) for i, call in enumerate(growth)), room_bytes)
    hidden = len(growth) - len(lines)
    foot = f"Not shown: {count(hidden, 'call')}." if hidden else ""
    yield from table("calls", ("Call", "Module", "Class", "Difference"), lines, foot)
    yield "</details>"


def _call_row(index: int, call: Departure) -> str:
    repeat = f" (call {call.number + 1})" if call.number else ""
    name = f"<code>{text(call.module)}</code>{repeat}" if call.module else f"the whole model{repeat}"
    value = repr(call.relative) if math.isfinite(call.relative) else "1e999"  # JavaScript's infinity
    package, dot, kind = call.kind.rpartition(".")
    return (
        f'<tr><td data-v="{index}">{index + 1:,}</td><td>{name}</td>'
        f'<td><span class="package">{text(package + dot)}</span>{text(kind)}</td>'
        f'<td class="number" data-v="{value}">{amount(call.relative)}</td></tr>'
    )


# --- the findings -------------------------------------------------------------------------------------


def findings_of(findings: Iterable[Finding], room_bytes: int) -> Iterator[str]:
    """The section with the table of `findings`, by level."""
    levels: dict[Level, list[Finding]] = {level: [] for level in LEVELS}
    for finding in findings:
        levels[finding.level].append(finding)
    yield '<section class="findings">'
    yield "<h2>Findings</h2>"
    for level, found in levels.items():  # before the table: the style hides rows by what precedes them
        if found:
            yield (
                f'<input type="checkbox" id="show-{level}" checked><label class="{level}" '
                f'for="show-{level}"><span class="level">{level}</span> {len(found):,}</label>'
            )
    listed = [finding for found in levels.values() for finding in found[:MAX_ROWS]]
    lines = fitting(map(_finding_row, listed), room_bytes)
    shown = Counter(finding.level for finding in listed[: len(lines)])
    left_out = [
        f"{len(found) - shown[level]:,} more {level}"
        for level, found in levels.items()
        if len(found) > shown[level]
    ]
    foot = f"Not shown: {', '.join(left_out)}; a .json or .xml report has them all." if left_out else ""
    yield from table("found", ("Level", "Check", "Where", "Message"), lines, foot, sorted_by="Level")
    yield "</section>"


def _finding_row(finding: Finding) -> str:
    level = finding.level
    return (
        f'<tr class="{level}"><td data-v="{LEVELS.index(level)}"><span class="level">{level}</span></td>'
        f"<td>{text(finding.check)}</td><td><code>{text(finding.where)}</code></td>"
        f"<td>{text(finding.message)}</td></tr>"
    )


def table(
    name: str, heads: Sequence[str], rows: Iterable[str], foot: str = "", sorted_by: str = ""
) -> Iterator[str]:
    """A table to search and sort, whose id is `name`."""
    yield f'<table id="{name}" class="sortable searchable"><thead><tr>'
    for head in heads:
        order = ' aria-sort="ascending"' if head == sorted_by else ""
        yield f'<th scope="col"{order}>{head}</th>'
    yield "</tr></thead><tbody>"
    yield from rows
    yield "</tbody>"
    if foot:
        yield f'<tfoot><tr><td colspan="{len(heads)}">{foot}</td></tr></tfoot>'
    yield "</table>"


def listing(
    heads: Sequence[str], rows: Iterable[str], room_bytes: int, num_rows: int, numbers: Collection[str] = ()
) -> Iterator[str]:
    """A table to search and sort, of as many of `rows` as there is room for; the rest is counted at its foot.

    `numbers`: those of `heads` whose cells are sorted by the numbers that they show.
    """
    head = "".join(f'<th scope="col"{" data-n" if head in numbers else ""}>{head}</th>' for head in heads)
    yield f'<table class="sortable searchable"><thead><tr>{head}</tr></thead><tbody>'
    lines = fitting(rows, room_bytes - len(head) - TABLE_BYTES)
    yield from lines
    yield "</tbody>"
    if hidden := num_rows - len(lines):
        yield f'<tfoot><tr><td colspan="{len(heads)}">Not shown: {count(hidden, "tensor")}.</td></tr></tfoot>'
    yield "</table>"


def num_bytes(parts: Iterable[str]) -> int:
    """What `parts`, each on a line, take."""
    return sum(len(part.encode()) + 1 for part in parts)


def fitting(rows: Iterable[str], room_bytes: int) -> list[str]:
    """The first of `rows`, as many as there is room for."""
    lines: list[str] = []
    for line in rows:
        room_bytes -= len(line.encode()) + 1
        if room_bytes < 0:
            break
        lines.append(line)
    return lines


# --- text ---------------------------------------------------------------------------------------------


def text(value: object) -> str:
    """`value` as the text of an element or of a quoted attribute."""
    shown = clean(value)
    if len(shown) > MAX_CHARS:
        shown = f"{shown[:MAX_CHARS]}… ({len(shown) - MAX_CHARS:,} more characters)"
    return escape_html(shown, quote=True)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _asset(name: str) -> str:
    return files("ptsave.render.report").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """The source expression of a policy that lets exactly `text` in."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

"""Verdicts on several checkpoints as one HTML page: what each came to, and the findings of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ptsave.core.verdict import Verdict
from ptsave.errors import PtsaveError
from ptsave.render.report.html import (
    MAX_PAGE_BYTES,
    ROOM_BYTES,
    document,
    facts_of,
    findings_of,
    fitting,
    num_bytes,
    table,
    text,
)
from ptsave.render.words import count

LEVELS = {"error": "fail", "no": "fail", "yes": "ok"}
"""What a checkpoint came to → the level whose colour it has; the worst first."""


def html_of_several(results: Sequence[tuple[str, Verdict | PtsaveError]], facts: Mapping[str, object]) -> str:
    """The page about the checkpoints at these paths: each with its verdict, or the error instead."""
    answers = [_answer(result) for _, result in results]
    worst = min(answers, key=[*LEVELS].index)
    said = ", ".join(f"{answers.count(one)} {one}" for one in reversed(LEVELS) if one in answers)
    title = f"{count(len(results), 'checkpoint')}: {said}"
    head = [
        f'<header class="{"yes" if worst == "yes" else "no"}"><p class="tool">ptsave verify</p>',
        f'<h1><span class="word">{worst}</span> {text(title)}</h1></header>',
        *facts_of(facts),
    ]
    room = MAX_PAGE_BYTES - ROOM_BYTES - num_bytes(head)
    lines = fitting(map(_row, results), room // 2)
    hidden = len(results) - len(lines)
    foot = f"Not shown: {count(hidden, 'checkpoint')}." if hidden else ""
    heads = ("Verdict", "Checkpoint", "Why")
    verdicts = [*table("verdicts", heads, lines, foot)]
    found = [
        replace(finding, where=f"{path}: {finding.where}" if finding.where else path)
        for path, result in results
        if isinstance(result, Verdict)
        for finding in result.findings
    ]
    body = ['<section class="verdicts">', "<h2>Checkpoints</h2>", *verdicts, "</section>"]
    return document(
        f"{text(title)} – ptsave verify", [*head, *body, *findings_of(found, room - num_bytes(body))]
    )


def _answer(result: Verdict | PtsaveError) -> str:
    return result.answer if isinstance(result, Verdict) else "error"


def _row(one: tuple[str, Verdict | PtsaveError]) -> str:
    path, result = one
    answer = _answer(result)
    why = result.because if isinstance(result, Verdict) else result.what
    at = [*LEVELS].index(answer)
    return (
        f'<tr class="{LEVELS[answer]}"><td data-v="{at}"><span class="level">{answer}</span></td>'
        f"<td><code>{text(path)}</code></td><td>{text(why)}</td></tr>"
    )

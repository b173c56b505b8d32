"""Results: the file that scripts/bench writes, and the tables made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.limits import LIMITS
from benchmarks.measure import Samples
from benchmarks.rows import MIB, Row

SCHEMA_VERSION = 1


def results(name: str, row: Row, samples: Mapping[str, Samples]) -> list[dict[str, Any]]:
    """One entry a budget, with the medians that it came from."""
    sides = {
        side: {
            "median_wall_s": round(taken.wall, 4),
            "spread_wall_s": [round(min(taken.wall_s), 4), round(max(taken.wall_s), 4)],
            "median_peak_mib": round(taken.peak / MIB, 1),
            "runs": len(taken.wall_s),
        }
        for side, taken in samples.items()
    }
    return [
        {
            "row": name,
            "work": budget.what,
            "against": budget.against,
            "unit": budget.unit,
            "budget": budget.limit,
            "measured": round(budget.measured(samples), 4),
            "sides": sides,
        }
        for budget in row.budgets
    ]


def is_met(result: Mapping[str, Any]) -> bool | None:
    """Whether the budget is met; None where there is none."""
    return None if result["budget"] is None else result["measured"] <= result["budget"]


def merge(
    path: Path, machine: Mapping[str, Any], fresh: list[dict[str, Any]], order: Sequence[str]
) -> dict[str, Any]:
    """`fresh` over what the file holds from the same machine and versions, rows in `order`."""
    kept: list[dict[str, Any]] = []
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["machine"] == machine:
            again = {result["row"] for result in fresh}
            kept = [result for result in before["results"] if result["row"] not in again]
    both = sorted(
        kept + fresh, key=lambda result: order.index(result["row"]) if result["row"] in order else len(order)
    )
    return {"schema_version": SCHEMA_VERSION, "machine": dict(machine), "results": both}


def number(value: float, unit: str) -> str:
    """`0.81×`, `11 MiB`, `0.35 s`."""
    if unit == "×":
        return f"{value:.3f}×" if value < 0.1 else f"{value:.2f}×"
    return f"{value:.0f} {unit}" if unit == "MiB" else f"{value:.2f} {unit}"


def markdown(path: Path) -> str:
    """The table, the machine, and what limits each missed budget."""
    if not path.exists():
        return "Not measured yet.\n"
    document = json.loads(path.read_text(encoding="utf-8"))
    machine = document["machine"]
    lines = ["| work | against | budget | measured |", "|---|---|---|---|"]
    missed = []
    for result in document["results"]:
        measured = number(result["measured"], result["unit"])
        budget = ""
        if result["budget"] is not None:
            budget = f"≤ {number(result['budget'], result['unit'])}"
        if is_met(result) is False:
            missed.append(result)
            measured = f"**{measured}, missed**"
        lines.append(f"| {result['work']} | {result['against']} | {budget} | {measured} |")
    lines += ["", "Measured on " + _sentence(machine)]
    for result in missed:
        reason = LIMITS.get(result["row"], "not yet explained")
        lines += ["", f"Missed: {result['work']}{_versus(result)}. What limits it: {reason}."]
    return "\n".join(lines) + "\n"


AT_A_GLANCE = [
    ("`inspect` 1 GiB `.pt`", "`torch.load(mmap=True)`"),
    ("`convert` 1 GiB `.pt` → safetensors, whole process", "`cp` and fsync"),
    ("`convert` 1 GiB `.pt` → safetensors, whole process", "torch script"),
    ("`convert` 1 GiB `.pt` → safetensors, peak", ""),
    ("`save` 1 GiB as `.pt`, in process", "`torch.save`"),
    ("`load` 1 GiB `.pt` into fresh memory, CRCs checked", "`torch.load`"),
    ("`Checkpoints.save` 1 GiB, the loop's stall", "`torch.save`"),
]
"""The work, and what it is measured against, of the rows that the README shows."""


def some(path: Path) -> str:
    """The table of a few rows, without the budgets.

    Raises: KeyError for a row that was not measured.
    """
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    by_words = {(result["work"], result["against"]): result for result in results}
    lines = ["| work | against | measured |", "|---|---|---|"]
    for work, against in AT_A_GLANCE:
        result = by_words[work, against]
        lines.append(f"| {work} | {against} | {number(result['measured'], result['unit'])} |")
    return "\n".join(lines) + "\n"


def _versus(result: Mapping[str, Any]) -> str:
    return f" against {result['against']}" if result["against"] else ""


def _sentence(machine: Mapping[str, Any]) -> str:
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("python", "torch", "safetensors", "typer") if name in machine
    )
    return (
        f"{machine['cores']} cores of an {machine['cpu']}, {machine['memory_gib']} GiB, "
        f"{machine['kernel']}, {machine['file_system']}, warm cache; {versions}."
    )

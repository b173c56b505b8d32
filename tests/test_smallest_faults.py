"""The table of the smallest faults in docs/behaviour.md is what its script measures."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.models.verify.test_zoo import MODELS


@pytest.fixture(scope="module")
def script(root: Path) -> dict[str, Any]:
    return runpy.run_path(str(root / "scripts" / "smallest_faults.py"))


@pytest.fixture(scope="module")
def table(root: Path, script: dict[str, Any]) -> list[str]:
    text = (root / "docs" / "behaviour.md").read_text(encoding="utf-8")
    found = text.partition(script["START"])[2].partition(script["END"])[0]
    return found.strip().splitlines()


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_every_kind_of_model_has_figures(table: list[str], script: dict[str, Any]) -> None:
    assert tuple(table[:2]) == script["HEAD"]
    assert [cells(row)[0].split(" ")[0] for row in table[2:]] == [*MODELS]
    assert all(float(figure) > 0 for row in table[2:] for figure in cells(row)[1:4])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["Computed", "Experts"])
def test_the_figures_are_those_of_today(model: str, table: list[str], script: dict[str, Any]) -> None:
    """Within a factor of four: other kernels round otherwise."""
    (kept,) = (cells(row) for row in table if row.startswith(f"| {model} "))
    today = cells(script["row"](model, MODELS[model]))
    assert today[0] == kept[0]
    assert today[4] == kept[4]
    for now, then in zip(today[1:4], kept[1:4], strict=True):
        assert float(then) / 4 <= float(now) <= float(then) * 4

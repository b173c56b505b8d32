"""The tree of modules: what is alike is one line, and only that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ptsave.cli import main


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """The lines of `--tree` of a state dict with these shapes, by name."""
    monkeypatch.chdir(tmp_path)

    def lines(shapes: dict[str, int], *more: str) -> list[str]:
        torch.save({name: torch.zeros(size) for name, size in shapes.items()}, "a.pt")
        assert main.run(["inspect", "a.pt", "--tree", *more]) == 0
        return [" ".join(line.split()) for line in capfd.readouterr().out.splitlines()[2:]]

    return lines


ALIKE = {f"layers.{i}.{name}": 4 for i in range(12) for name in ("weight", "bias")}


def test_layers_that_are_alike_are_one_line(tree) -> None:  # type: ignore[no-untyped-def]
    assert tree(ALIKE) == [
        "└─ layers 96 elements 384 B 100.0%",
        "└─ [0-11] 12 × 8 elements 384 B 100.0%",
        "├─ weight float32 [4] 16 B 4.2%",
        "└─ bias float32 [4] 16 B 4.2%",
    ]
    assert len(tree(ALIKE, "-v")) == 1 + 12 * 3


@pytest.mark.parametrize(
    "other",
    [{"layers.5.weight": 3}, {"layers.5.extra": 4}, {"layers.5.norm.weight": 4}, {"layers.5x.weight": 4}],
)
def test_one_that_differs_is_shown(other: dict[str, int], tree) -> None:  # type: ignore[no-untyped-def]
    shapes = ALIKE | other
    if "layers.5x.weight" in other:
        shapes = {name.replace(".5.", ".5x."): size for name, size in ALIKE.items()}
    labels = [line.replace("│", "").split()[1] for line in tree(shapes)]
    assert [label for label in labels if label.startswith("[")] == ["[0-4]", "[6-11]"]


def test_a_gap_in_the_numbers_is_no_run(tree) -> None:  # type: ignore[no-untyped-def]
    labels = [line.replace("│", "").split()[1] for line in tree({f"l.{i}.w": 1 for i in (0, 1, 3, 4, 10**9)})]
    assert labels == ["l", "[0-1]", "w", "[3-4]", "w", "1000000000", "w"]


def test_depth(tree, capfd: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    assert len(tree(ALIKE, "--depth", "1")) == 1
    assert len(tree(ALIKE, "--depth", "2")) == 2
    assert main.run(["inspect", "a.pt", "--depth", "2"]) == 2
    assert "--depth would not be used" in capfd.readouterr().err

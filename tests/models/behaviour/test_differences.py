"""The words for how far an output is from the recorded one."""

from __future__ import annotations

import pytest
import torch

from ptsave.models.behaviour.differences import compare_output
from ptsave.models.behaviour.trace import samples_of


@pytest.mark.parametrize(
    ("old", "new", "figures"),
    [
        ([1.0, 2.0], [1.0, 2.5], "max absolute 0.5, max relative 0.25, "),
        ([1e-9, 2.0], [1e-6, 2.5], "max absolute 0.5, max relative 0.25, "),
        ([1e-9, 0.0], [1e-6, 1e-7], "max absolute 9.99e-07, "),
    ],
)
def test_relative_differences_are_of_values_away_from_zero(
    old: list[float], new: list[float], figures: str
) -> None:
    samples = [samples_of(torch.tensor(values))["output"] for values in (old, new)]
    found = compare_output("output", *samples).figures
    assert found.startswith(figures)
    assert ("relative" in found) == ("relative" in figures)

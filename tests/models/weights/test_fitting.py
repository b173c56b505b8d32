"""What of a file goes into a model: told without a value, of a model without memory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ptsave.core.parts.keys import Expected
from ptsave.core.parts.select import select_model
from ptsave.formats import open_checkpoint
from ptsave.models.weights.fitting import expected_of, fit_of, goes_by_name, select_for


class Net(nn.Module):
    """A tie, a buffer of the state dict, and one outside it."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.one = nn.Linear(width, width, bias=False)
        self.two = nn.Linear(width, width, bias=False)
        self.two.weight = self.one.weight
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("made", torch.ones(4), persistent=False)


def skeleton(width: int = 3) -> Net:
    with torch.device("meta"):
        return Net(width)


def test_what_a_model_expects() -> None:
    assert expected_of(skeleton()) == {
        "one.weight": Expected((3, 3), "float32"),
        "two.weight": Expected((3, 3), "float32", tied_to="one.weight"),
        "count": Expected((2,), "int64", is_buffer=True),
        "made": Expected((4,), "float32", is_buffer=True, is_recomputed=True),
    }


def test_how_a_file_fits(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        selection, report = fit_of(skeleton(), select_model(checkpoint))
        assert report.fits
        assert goes_by_name(skeleton(), selection, report)
        report = fit_of(skeleton(4), select_model(checkpoint))[1]
        assert [(one.name, one.expected, one.found) for one in report.mismatched] == [
            ("one.weight", (4, 4), (3, 3)),
            ("two.weight", (4, 4), (3, 3)),
        ]


def test_the_state_dict_that_fits_is_selected(tmp_path: Path) -> None:
    torch.save({"student": Net(4).state_dict(), "teacher": Net().state_dict()}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        assert select_for(skeleton(), checkpoint).where == "teacher"
        assert select_for(skeleton(4), checkpoint).where == "student"

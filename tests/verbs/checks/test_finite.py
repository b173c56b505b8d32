"""What `finite` finds, by the fields of its findings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ptsave.core.finding import Finding, Kind
from ptsave.formats import open_checkpoint
from ptsave.verbs.checks.finite import finite
from ptsave.verbs.checks.subject import Asked, Subject


def found(tmp_path: Path, value: object, infinite: Sequence[str] = ()) -> list[Finding]:
    torch.save(value, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        return list(finite(Subject(checkpoint, asked=Asked(("finite",), infinite=infinite))))


def test_all_are_counted(tmp_path: Path) -> None:
    (one,) = found(tmp_path, {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.arange(3)})
    assert (one.level, one.kind, one.count) == ("ok", Kind.ALL_FINITE, 2)


def test_what_is_not_finite_is_counted_by_tensor(tmp_path: Path) -> None:
    bad = torch.tensor([math.nan, math.inf, -math.inf, 1.0])
    (one,) = found(tmp_path, {"a": torch.zeros(2), "b": bad})
    assert (one.level, one.kind, one.where) == ("fail", Kind.NOT_FINITE, "b")
    assert one.facts == {"nans": 1, "infinities": 2}


@pytest.mark.parametrize(("value", "level"), [(math.inf, "ok"), (math.nan, "fail")])
def test_infinities_may_be_allowed_and_nan_never(value: float, level: str, tmp_path: Path) -> None:
    one, *_ = found(tmp_path, {"mask": torch.full((2,), value), "w": torch.zeros(1)}, ["mask"])
    kind = Kind.INFINITE_ALLOWED if level == "ok" else Kind.NOT_FINITE
    assert (one.level, one.kind, one.where) == (level, kind, "mask")


def test_integers_alone_are_skipped(tmp_path: Path) -> None:
    (one,) = found(tmp_path, {"a": torch.arange(3)})
    assert (one.level, one.kind) == ("skipped", Kind.NO_FLOATS)

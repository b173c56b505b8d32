"""Bars end at the size of the files, however often their bytes pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from ptsave.core.address import Location
from ptsave.formats.base import WriteOptions
from ptsave.models.verify.one import Listener, Request, verify_path
from ptsave.verbs.checks.subject import Asked
from ptsave.verbs.convert import convert_paths
from ptsave.verbs.diff import diff_paths
from ptsave.verbs.edit import Edits
from ptsave.verbs.inspect import inspect_path
from ptsave.verbs.request import reading


class Bars:
    """Takes down what bars are told."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.told: list[int] = []

    @contextmanager
    def __call__(self, label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        self.sizes.append(total_bytes)
        yield self.told.append


@pytest.mark.parametrize("passing", [0, 5, 20, 21, 400])
def test_what_passes_is_told_in_proportion(passing: int) -> None:
    bars = Bars()
    with reading(bars, "reading", 10, passing) as advance:
        for num_bytes in (3, 3, 1, 5, 0, 8):
            advance(num_bytes)
            assert 0 <= sum(bars.told) <= 10
    assert (bars.sizes, sum(bars.told)) == ([10], 10)
    if passing == 20:
        assert bars.told == [1, 2, 0, 3, 0, 4, 0]


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    """A file with two names for most of its bytes."""
    weight = torch.randn(100, 100)
    torch.save({"a": weight, "b": weight, "c": torch.ones(10)}, tmp_path / "m.pt")
    return tmp_path / "m.pt"


def commands(path: Location) -> dict[str, Callable[[Bars], object]]:
    options, to = WriteOptions(overwrite=True), Path(f"{path}.safetensors")
    return {
        "convert": lambda bar: convert_paths(
            [path, to], options, Edits(), format=None, select=None, extras="fail", dry_run=False, bar=bar
        ),
        "stats": lambda bar: inspect_path(path, stats=True, bar=bar),
        "verify": lambda bar: verify_path(Request(path, Asked(("bytes", "finite"))), Listener(print, bar)),
    }


@pytest.mark.parametrize("name", ["convert", "stats", "verify"])
def test_a_bar_ends_at_the_size_of_the_file(name: str, tied: Path) -> None:
    bars = Bars()
    commands(tied)[name](bars)
    assert bars.sizes == [sum(bars.told)] == [tied.stat().st_size]


def test_the_bar_of_a_difference_ends_at_the_size_of_both(tied: Path) -> None:
    bars = Bars()
    diff_paths(tied, tied, bars)
    assert bars.sizes == [sum(bars.told)] == [2 * tied.stat().st_size]

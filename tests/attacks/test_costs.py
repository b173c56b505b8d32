"""The kinds of small files that `scripts/fuzz --costs` measures: each is what its name says."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from fuzz import costs
from ptsave.errors import PtsaveError
from ptsave.formats import open_checkpoint
from tests.support import some

from .cost_files import KINDS


@pytest.mark.parametrize("name", some(KINDS))
def test_a_kind_is_read_or_refused(name: str, tmp_path: Path) -> None:
    path = costs.write(KINDS[name](5), tmp_path / "file")
    with suppress(PtsaveError), open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors or checkpoint.data or checkpoint.format == "pt2"
    costs.remove(path)
    assert not list(tmp_path.iterdir())


def test_a_small_file_has_as_many_things_as_fit() -> None:
    count = costs.how_many(KINDS["st_empty"])
    assert 0.97 * costs.SMALL_BYTES < costs.size(KINDS["st_empty"](count)) <= costs.SMALL_BYTES


def test_a_command_is_measured(tmp_path: Path) -> None:
    path = costs.write(KINDS["tied_tensors"](5), tmp_path / "file")
    cost = costs.measure(path, "inspect --diff")
    assert (cost.kind, cost.command, cost.code) == ("file", "inspect --diff", 0)
    assert cost.is_within
    assert cost.seconds > 0
    assert cost.num_bytes > 10_000_000
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "command"),
    [
        ("record_of_floats", 100_000, "verify -c"),
        ("record_of_floats", 100_000, "verify --report .xml"),
        ("st_shapes", 100_000, "convert dcp"),
    ],
)
def test_a_small_file_takes_no_more_than_its_bound(
    name: str, count: int, command: str, tmp_path: Path
) -> None:
    path = costs.write(KINDS[name](count), tmp_path / "file")
    assert path.stat().st_size <= costs.SMALL_BYTES
    cost = costs.measure(path, command)
    assert cost.code in (0, 1), cost.says
    assert cost.num_bytes <= costs.MAX_BYTES

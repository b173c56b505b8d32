"""Proposals of renamings cost little, whatever the names."""

from __future__ import annotations

from ptsave.core.dtypes import BY_NAME
from ptsave.core.keys import Expected
from ptsave.core.nodes import TensorEntry
from ptsave.core.renaming import MAX_CHARS, MAX_PARTS, _edges, propose
from ptsave.core.storage import MemoryStorage


def entry(name: str) -> TensorEntry:
    return TensorEntry(name, BY_NAME["float32"], (1,), (1,), MemoryStorage(bytearray(4)), 0)


def test_a_name_of_many_dots_is_compared_by_its_end() -> None:
    name = "a." * 50_000 + "fc.weight"
    pairs = list(_edges(["fc.weight"], [name]))
    assert pairs == [("a." * 50_000, "")]
    assert not list(_edges(["other"], ["." * 100_000]))
    expected = {"fc.weight": Expected((1,), "float32")}
    proposal = propose(expected, {name: entry(name)})
    assert proposal is not None
    assert proposal.num_fitting == 1
    assert MAX_PARTS < 100


def test_nothing_is_proposed_for_names_beyond_a_cap() -> None:
    name = "a." * (MAX_CHARS // 2) + "fc.weight"
    assert propose({"fc.weight": Expected((1,), "float32")}, {name: entry(name)}) is None

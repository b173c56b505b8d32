"""Every leaf by its path, in time that the file bounds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import BY_NAME
from ptsave.core.leaves import leaves
from ptsave.core.nodes import Global, Opaque, TensorEntry
from ptsave.core.storage import MemoryStorage
from ptsave.core.tree import MAX_DEPTH
from ptsave.errors import LimitError

STORAGE = MemoryStorage(memoryview(bytes(16)))


def tensor() -> TensorEntry:
    return TensorEntry("", BY_NAME["float32"], (4,), (1,), STORAGE, 0)


def named(root: Any) -> list[tuple[str, Any]]:
    return [(".".join(map(str, path)), leaf) for path, leaf in leaves(root)]


class Repeated(Opaque):
    shared = True


def test_leaves_in_order() -> None:
    entry = tensor()
    root = {
        "a": {"b": entry, 1: "x"},
        "betas": (0.9, 0.999),
        "list": [entry, [1, 2]],
        "empty": {},
        "none": None,
        "name": Global("a.b"),
        "called": Opaque("pathlib.Path", ("a", 1)),
        "object": Opaque("m.C", (entry,), {"x": 1}, [2]),
    }
    assert named(root) == [
        ("a.b", entry),
        ("a.1", "x"),
        ("betas", (0.9, 0.999)),
        ("list.0", entry),
        ("list.1", [1, 2]),
        ("empty", {}),
        ("none", None),
        ("name", root["name"]),
        ("called", root["called"]),
        ("object", root["object"]),
        ("object.0", entry),
        ("object.x", 1),
        ("object.0", 2),
    ]


def test_roots_that_are_leaves() -> None:
    entry = tensor()
    for root in (entry, 1, {}, [1, 2], Global("a.b")):
        assert list(leaves(root)) == [((), root)]


def test_slots_are_attributes() -> None:
    assert dict(Opaque("m.C", (), (None, {"a": 1})).children()) == {"a": 1}
    assert dict(Opaque("m.C", (), ({"b": 2}, {"a": 1})).children()) == {"b": 2, "a": 1}
    assert dict(Opaque("m.C", (), 5).children()) == {"state": 5}


def test_an_object_is_entered_once_and_a_module_each_time() -> None:
    entry = tensor()
    plain, module = Opaque("m.C", (), {"t": entry}), Repeated("m.M", (), {"t": entry})
    assert [name for name, leaf in named([plain, plain]) if leaf is entry] == ["0.t"]
    assert [name for name, leaf in named([module, module]) if leaf is entry] == ["0.t", "1.t"]


def test_names_that_two_paths_spell_stay_apart() -> None:
    root = {"a.b": tensor(), "a": {"b": tensor()}, 1: {"x": 0}, "1": {"x": 1}}
    checkpoint = Checkpoint("test", Path("test"), root)
    assert list(checkpoint.tensors) == ["a.b", "a.b~2"]
    assert checkpoint.data == {"1.x": 0, "1.x~2": 1}


def test_many_equal_names_take_no_longer() -> None:
    root: dict[Any, Any] = {"a": 0}
    for _ in range(20_000):
        root[Opaque("a")] = 0
    root = {f"<{'a'}>": 0} | root
    started = time.process_time()
    assert len(Checkpoint("test", Path("test"), root).data) == 20_002
    assert time.process_time() - started < 2


def test_containers_that_hold_themselves_end() -> None:
    loop: list[Any] = [1, {}]
    loop.append(loop)
    thing = Opaque("m.C", (), {"x": 1})
    thing.state["me"] = thing
    names = [name for name, _ in named({"loop": loop, "thing": thing})]
    assert names == ["loop.0", "loop.1", "loop.2", "thing", "thing.x", "thing.me"]


def doubled(leaf: Any, wrap: Any) -> Any:
    for _ in range(40):
        leaf = wrap(leaf)
    return leaf


@pytest.mark.parametrize(
    "root",
    [
        doubled([{}], lambda inner: [inner, inner]),
        doubled({"x": 1}, lambda inner: {"a": inner, "b": inner}),
        doubled((1,), lambda inner: (inner, inner)),
        doubled(Repeated("m.M", (), {"x": 1}), lambda inner: Repeated("m.M", (), {"a": inner, "b": inner})),
        [[None] * 100_000] * 1000,
        [tensor()] * 1_000_000,
    ],
    ids=["lists", "dicts", "tuples", "modules", "one long list", "one tensor"],
)
def test_sharing_meets_its_cap(root: Any) -> None:
    started = time.process_time()
    with pytest.raises(LimitError, match="repeats"):
        list(leaves(root))
    assert time.process_time() - started < 5


def test_long_keys_meet_their_cap() -> None:
    with pytest.raises(LimitError, match="name_chars"):
        list(leaves({"k" * 100_000: {str(i): 0 for i in range(10_000)}}))


def test_depth_meets_its_cap() -> None:
    root: list[Any] = []
    for _ in range(MAX_DEPTH + 1):
        root = [root]
    with pytest.raises(LimitError, match="depth"):
        list(leaves(root))
    with pytest.raises(LimitError, match="depth") as caught:
        _ = Checkpoint("test", Path("there"), root).data
    assert caught.value.where == "there"


def test_many_different_leaves_are_no_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptsave.core.leaves.MAX_REPEATS", 5000)
    assert len(list(leaves({i: i for i in range(6000)}))) == 6000

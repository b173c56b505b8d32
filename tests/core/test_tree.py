"""Trees of nested data are walked and rewritten, whatever they share or hold of themselves."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from ptsave.core.dtypes import BY_NAME
from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.core.storage import MemoryStorage
from ptsave.core.tree import (
    CYCLE,
    GONE,
    MAX_DEPTH,
    are_scalars,
    dotted,
    items_of,
    map_tensors,
    own_kind,
    rewrite,
    walk,
)
from ptsave.errors import LimitError, LossyError
from tests.core.test_leaves import doubled

STORAGE = MemoryStorage(memoryview(bytes(16)))


def tensor() -> TensorEntry:
    return TensorEntry("", BY_NAME["float32"], (4,), (1,), STORAGE, 0)


def test_map_tensors() -> None:
    entry, other = tensor(), tensor()
    state: OrderedDict[str, Any] = OrderedDict(w=entry)
    state._metadata = {"": {}}  # type: ignore[attr-defined]
    plain = {"epoch": [1, 2]}
    root = {"s": state, "again": state, "t": (entry, 1), "l": [entry], "plain": plain}
    copy = map_tensors(root, lambda _: other)
    assert copy["s"] is copy["again"]
    assert type(copy["s"]) is OrderedDict
    assert copy["s"]._metadata == {"": {}}
    assert copy == {"s": {"w": other}, "again": {"w": other}, "t": (other, 1), "l": [other], "plain": plain}


# --- walk ---------------------------------------------------------------------------------------------------


def walked(root: Any, **how: Any) -> list[tuple[str, Any]]:
    return [(dotted(path), node) for path, node in walk(root, **how)]


def test_walk_goes_through_containers_in_order() -> None:
    inner = [1, {}]
    root = {"a": inner, 2: (3,), "m": MappingProxyType({"x": 4}), "s": {5}}
    assert [name for name, _ in walked(root)] == ["", "a", "a.0", "a.1", "2", "2.0", "m", "m.x", "s"]
    assert dict(walked(root)) | {"": root} == dict(walked(root))
    assert walked(7) == [("", 7)]


def test_walk_enters_what_is_shared_once_unless_each_path_counts() -> None:
    inner = {"x": 1}
    assert [name for name, _ in walked([inner, inner])] == ["", "0", "0.x", "1"]
    assert [name for name, _ in walked([inner, inner], once=False)] == ["", "0", "0.x", "1", "1.x"]
    assert len(walked(doubled({"x": 1}, lambda inner: [inner, inner]))) == 1 + 40 * 2 + 1


@pytest.mark.parametrize("once", [True, False])
def test_walk_says_where_a_container_holds_itself(once: bool) -> None:
    loop: dict[str, Any] = {"a": [1]}
    loop["a"].append(loop)
    assert walked(loop, once=once)[-1] == ("a.1", CYCLE)


@pytest.mark.slow
def test_walk_is_as_deep_as_the_data() -> None:
    root: Any = "end"
    for _ in range(100_000):
        root = [root]
    assert [node for _, node in walk(root)][-1] == "end"
    assert len(list(walk(root, max_depth=3))) == 4


def test_walk_keeps_apart_what_a_mapping_makes_on_the_way() -> None:
    def fresh(node: Any) -> list[tuple[Any, Any]]:
        return [(i, [i]) for i in range(50)] if node == "root" else list(items_of(node))

    assert sum(type(node) is int for _, node in walk("root", fresh)) == 50


# --- rewrite ------------------------------------------------------------------------------------------------


def increased(path: Any, leaf: Any) -> Any:
    return leaf + 1


def test_rewrite_keeps_kinds_and_sharing() -> None:
    state: OrderedDict[str, Any] = OrderedDict(w=1)
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    root = {"s": state, "l": [state, (2, [])], "m": MappingProxyType({"x": 4})}
    made = rewrite(root, increased)
    assert made == {"s": {"w": 2}, "l": [{"w": 2}, (3, [])], "m": {"x": 5}}
    assert type(made["s"]) is OrderedDict
    assert made["s"]._metadata is state._metadata  # type: ignore[attr-defined]
    assert type(made["m"]) is dict
    assert made["s"] is made["l"][0]
    apart = rewrite(root, increased, once=False)
    assert apart == made
    assert apart["s"] is not apart["l"][0]


def test_rewrite_keeps_metadata_of_any_mapping() -> None:
    class Described(dict):  # type: ignore[type-arg]
        _metadata = "versions"

    assert rewrite(Described(x=1), increased)._metadata == "versions"


def test_rewrite_leaves_out_what_is_gone() -> None:
    root: dict[str, Any] = {"a": [1, 0, 2], "b": 0, "t": (0, 3), "empty": {"x": 0}}
    assert rewrite(root, lambda path, leaf: leaf or GONE) == {"a": [1, 2], "t": (3,), "empty": {}}
    assert rewrite(root, lambda path, leaf: leaf or GONE, leave=lambda path, node, made: made or GONE) == {
        "a": [1, 2],
        "t": (3,),
    }
    assert rewrite(0, lambda path, leaf: GONE) is GONE


def test_rewrite_tells_each_path() -> None:
    root: dict[Any, Any] = {"a": [1, {"b": 2}], 3: (4,)}
    assert rewrite(root, lambda path, leaf: dotted(path)) == {"a": ["a.0", {"b": "a.1.b"}], 3: ("3.0",)}


def test_rewrite_enters_what_stands_in_a_place() -> None:
    def opened(path: Any, node: Any) -> Any:
        return list(node) if isinstance(node, frozenset) else node

    shared = frozenset({1})
    made = rewrite([shared, shared], increased, enter=opened)
    assert made == [[2], [2]]
    assert made[0] is made[1]


def test_rewrite_makes_lists_and_tuples_of_their_own_kinds() -> None:
    class Pair(NamedTuple):
        a: int
        b: int

    class Listed(list[int]):
        pass

    unchanged = (5, "x")
    root = {"pair": Pair(1, 2), "listed": Listed([1]), "tuple": unchanged}
    made = rewrite(root, lambda path, leaf: leaf + 1 if leaf in (1, 2) else leaf, leave=own_kind)
    assert made == {"pair": Pair(2, 3), "listed": [2], "tuple": unchanged}
    assert [type(value) for value in made.values()] == [Pair, Listed, tuple]
    assert made["tuple"] is unchanged


def looped(wrap: Callable[[Any], Any]) -> Any:
    loop: list[Any] = [0]
    loop.append(wrap(loop))
    return loop


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: {"x": x}, lambda x: (x,)], ids=["list", "dict", "tuple"]
)
def test_rewrite_keeps_or_refuses_what_holds_itself(wrap: Callable[[Any], Any]) -> None:
    made = rewrite(looped(wrap), increased)
    assert made[0] == 1
    inner = made[1] if made[1] is made else next(value for _, value in items_of(made[1]))
    assert inner is made
    with pytest.raises(LossyError, match=r"'1.*' is a container that holds itself"):
        rewrite(looped(wrap), increased, once=False)
    with pytest.raises(LossyError, match=r"'1.*' is a container that holds itself"):
        rewrite(looped(wrap), increased, keeps_cycles=False)


def test_rewrite_is_bounded_by_the_data() -> None:
    assert rewrite(doubled({"x": 1}, lambda inner: [inner, inner]), increased)
    root: list[Any] = []
    for _ in range(MAX_DEPTH + 1):
        root = [root]
    with pytest.raises(LimitError, match="depth"):
        rewrite(root, increased)


@pytest.mark.parametrize(
    "shared", [[1, 2], (1, 2), {"a": 1}, MappingProxyType({"a": 1})], ids=lambda node: type(node).__name__
)
def test_a_walk_looks_once_into_what_is_met_often(shared: Any) -> None:
    """Also where it finds nothing to enter, which takes as long to see."""
    looked = []

    def containers(node: Any) -> list[tuple[Any, Any]]:
        looked.append(id(node))
        return [item for item in items_of(node) if isinstance(item[1], (Mapping, list, tuple))]

    assert sum(1 for _ in walk([shared] * 5, containers)) == 6
    assert looked.count(id(shared)) == 1


def test_plain_data_are_told_by_their_types() -> None:
    class Name(str):
        __slots__ = ()

    assert are_scalars([1, 2.0, None, "x", b"", True, 1j, bytearray(), Name("n")])
    assert are_scalars(())
    assert not are_scalars([1, ()])
    assert not are_scalars([1, Opaque("x")])


def test_plain_lists_are_copied_as_they_are_where_that_is_asked() -> None:
    asked: list[Any] = []
    root = {"plain": [1, None, "x"], "pair": (1, 2), "mixed": [1, Opaque("x")]}
    found = rewrite(root, lambda path, leaf: asked.append(leaf) or leaf, keeps_scalars=True)
    assert found == root
    assert found["plain"] is not root["plain"]
    assert len(asked) == 2

"""The pickles that are emitted, checked against Python's own machine."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import Counter, OrderedDict
from typing import Any

import pytest
from hypothesis import given, settings

from ptsave.core.dtypes import BY_NAME
from ptsave.core.nodes import Global, Opaque, TensorEntry
from ptsave.errors import LossyError
from ptsave.formats.pickle.emit import Emitter, New, Reduce, Row, Slot, Table, can_emit
from tests.formats.torch.test_write import trees
from tests.support import examples


def no_tensor(emitter: Emitter, entry: TensorEntry) -> None:
    raise AssertionError


def emit(value: Any) -> bytes:
    data = Emitter(no_tensor).pickle(value)
    pickletools.dis(data, out=io.StringIO())  # refuses what is malformed
    return data


@given(trees)
@settings(max_examples=examples(100))
def test_python_reads_what_is_emitted(tree: Any) -> None:
    assert pickle.loads(emit(tree)) == tree


def test_what_is_shared_stays_shared_and_cycles_close() -> None:
    inner = [1]
    tree: dict[str, Any] = {"a": inner, "b": inner, "t": (inner, inner)}
    tree["self"] = tree
    found = pickle.loads(emit(tree))
    assert found["a"] is found["b"] is found["t"][0]
    assert found["self"] is found


def test_a_tree_that_shares_exponentially_stays_small() -> None:
    tree: list[Any] = []
    for _ in range(60):
        tree = [tree, tree]
    assert len(emit(tree)) < 1000
    node: tuple[Any, ...] = (0,)
    for _ in range(60):
        node = (node, node)
    assert len(emit(node)) < 1000


def test_more_objects_than_a_byte_can_number() -> None:
    lists = [[i] for i in range(1000)]
    found = pickle.loads(emit([lists, lists[700], lists[3]]))
    assert found[1] is found[0][700]
    assert found[2] is found[0][3]


def test_long_lists_of_constants_are_what_they_were() -> None:
    for constants in ([None, True, False] * 2000, [*range(0x100)] * 20, [1, True] * 2000, [*range(0x101)]):
        made = pickle.loads(emit([constants, tuple(constants)]))
        assert made == [constants, tuple(constants)]
        assert [*map(type, made[0])] == [*map(type, constants)]
    assert emit([None, True, False]) == b"\x80\x02]q\x00(N\x88\x89e."


def test_dictionaries_keep_their_kind_and_attributes() -> None:
    state: Any = OrderedDict(a=1)
    state._metadata = OrderedDict({"": {"version": 1}})
    found = pickle.loads(emit(state))
    assert type(found) is OrderedDict
    assert found._metadata == state._metadata
    counts = Counter("aab")
    assert type(pickle.loads(emit(counts))) is Counter
    assert pickle.loads(emit([counts, counts])) == [counts, counts]


def test_a_formats_own_objects() -> None:
    made = pickle.loads(
        emit(
            Table(
                [
                    ("call", Reduce("fractions", "Fraction", (1, 3))),
                    ("new", New("types", "SimpleNamespace", {"x": (1, 2)})),
                    ("bare", New("types", "SimpleNamespace")),
                ]
            )
        )
    )
    assert str(made["call"]) == "1/3"
    assert made["new"].x == (1, 2)
    assert vars(made["bare"]) == {}


def test_a_row_is_emitted_as_its_template_filled() -> None:
    """A memo's index takes one byte and then four; what a slot holds may be shared with another row."""

    def made(value: Any, size: Any) -> New:
        state = {"value": value, "pair": [Reduce("torch", "Size", (size,)), (True, [value])], "again": size}
        return New("types", "SimpleNamespace", state)

    template = made(Slot(0), Slot(1))
    sizes = [(1, 2), (3,), ()]
    rows = [(f"layers.{i}", sizes[i % 3]) for i in range(300)]
    filled = emit(Table((i, made(*row)) for i, row in enumerate(rows)))
    assert emit(Table((i, Row(template, row)) for i, row in enumerate(rows))) == filled
    assert emit([Row(template, rows[0])]) == emit([made(*rows[0])])


@pytest.mark.parametrize(
    "leaf",
    [1, "x", None, b"", 1j, True, [1, (2.0,)], {1}, {}, BY_NAME["half"], Opaque("torch.device", ("cpu",))],
)
def test_what_can_be_emitted_is(leaf: Any) -> None:
    assert can_emit(leaf)
    emit(leaf)


@pytest.mark.parametrize(
    "leaf",
    [
        Opaque("torch.device", ([],)),
        Opaque("pkg.Thing"),
        Global("os.system"),
        frozenset(),
        [frozenset()],
        range(3),
    ],
)
def test_what_cannot_be_emitted_is_refused(leaf: Any) -> None:
    assert not can_emit(leaf)
    with pytest.raises(LossyError, match=r"cannot hold 'key"):
        emit({"key": leaf})

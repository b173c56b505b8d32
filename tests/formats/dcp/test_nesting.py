"""Flat state dicts, nested again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint._nested_dict import flatten_state_dict, unflatten_state_dict

from ptsave.errors import CorruptError, LimitError
from ptsave.formats.dcp.nesting import nest, restore_parameter_numbers

KEYS = st.text("abc.0", min_size=1, max_size=3)
TREES = st.recursive(
    st.integers(),
    lambda inner: (
        st.dictionaries(KEYS, inner, max_size=3) | st.lists(st.dictionaries(KEYS, inner), max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, TREES, max_size=4))
def test_as_torch_does_it(tree: dict[str, Any]) -> None:
    try:
        flat, paths = flatten_state_dict(tree)
    except ValueError:  # two keys that are spelled the same
        return
    expected = unflatten_state_dict(flat, paths)
    assert nest(((paths[name], value) for name, value in flat.items()), "") == expected


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([("a", "b"), ("a", "b")], "two items"),
        ([("a", "b"), ("a",)], "two items"),
        ([("a",), ("a", "b")], "inside a value"),
        ([("a", 0), ("a", "b")], "a list and a dict"),
        ([("a", -1)], "a list and a dict"),
    ],
)
def test_paths_that_contradict_each_other(paths: list[tuple[Any, ...]], message: str) -> None:
    with pytest.raises(CorruptError, match=message):
        nest(((path, 1) for path in paths), "")


def test_the_caps() -> None:
    with pytest.raises(LimitError, match="list_places"):
        nest([(("a", 10**12), 1)], "")
    with pytest.raises(LimitError, match="depth"):
        nest([(("a",) * 1000, 1)], "")


def test_what_was_empty_leaves_a_hole() -> None:
    assert nest([(("a", 2), 1)], "") == {"a": [None, None, 1]}


def optimizer(keys: list[Any], params: Any) -> dict[str, Any]:
    return {"state": {key: {"step": 1} for key in keys}, "param_groups": [{"lr": 0.1, "params": params}]}


def test_an_optimizers_parameters_are_numbers_again() -> None:
    tree = {"optimizers": [optimizer(["0", "10"], [0, 10])]}
    assert restore_parameter_numbers(tree)
    assert list(tree["optimizers"][0]["state"]) == [0, 10]


@pytest.mark.parametrize(
    ("keys", "params"),
    [(["layer.weight"], ["layer.weight"]), (["0"], ["0"]), (["00"], [0]), ([], [0]), (["0"], None)],
)
def test_other_keys_stay_text(keys: list[str], params: Any) -> None:
    tree = optimizer(keys, params)
    assert not restore_parameter_numbers(tree)
    assert list(tree["state"]) == keys

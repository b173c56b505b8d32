"""Canonical JSON, held to the rfc8785 package and to what the RFC prints."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from ptsave.core.nodes import Global, Opaque
from ptsave.errors import LossyError
from ptsave.sign.canonical import array_of_texts, canonical, number, plain
from tests.support import examples

TEXT = st.text(st.characters(exclude_categories=("Cs",)))
VALUES: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)


@settings(max_examples=examples(400))
@given(VALUES)
def test_it_is_what_rfc8785_writes(value: Any) -> None:
    assert canonical(value) == rfc8785.dumps(value)


@settings(max_examples=examples(400))
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_back(value: float) -> None:
    assert float(json.loads(number(value))) == value
    assert number(value).encode() == rfc8785.dumps(value)


@settings(max_examples=examples(100))
@given(st.lists(TEXT | st.lists(TEXT | st.integers(0, 2**53 - 1))))
def test_the_quick_way_spells_the_same(items: list[Any]) -> None:
    assert array_of_texts(items) == canonical(items)


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        (333333333.33333329, "333333333.3333333"),
        (1e30, "1e+30"),
        (4.5, "4.5"),
        (2e-3, "0.002"),
        (1e-27, "1e-27"),
        (-0.0, "0"),
    ],
)
def test_numbers_of_the_rfc(value: float, spelled: str) -> None:
    assert number(value) == spelled


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53, "\ud800", {"\udfff": 1}])
def test_what_has_no_spelling_is_refused(value: Any) -> None:
    with pytest.raises(LossyError):
        canonical(value)


def test_leaves_of_checkpoints_are_plain() -> None:
    assert plain((1, 2.5, True, None, "x")) == [1, 2.5, True, None, "x"]
    assert plain(2**60) == {"int": str(2**60)}
    assert plain(math.inf) == "inf"
    assert plain(b"\x01\xff") == {"bytes": "01ff", "num_bytes": 2}
    assert plain(Opaque("a.B", (1,))) == {"opaque": "a.B", "args": [1]}
    assert plain(Global("a.b")) == {"global": "a.b"}
    with pytest.raises(LossyError, match="object"):
        plain(object())

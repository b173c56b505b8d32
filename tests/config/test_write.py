"""What is written as TOML is read back as it was."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptsave.config.write import toml_text
from ptsave.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(texts, values, max_size=5))
def test_it_comes_back(document: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text(document, ["# a comment", "of two\nlines"])) == document


def test_numbers_that_are_not_finite() -> None:
    back = tomllib.loads(toml_text({"a": math.inf, "b": -math.inf, "c": math.nan}))
    assert (back["a"], back["b"]) == (math.inf, -math.inf)
    assert math.isnan(back["c"])


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, None, {1}, b"x", [None], "\udcff", {"\udcff": 1}])
def test_what_toml_cannot_hold(value: Any) -> None:
    with pytest.raises(UsageError):
        toml_text({"key": value})

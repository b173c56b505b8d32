"""JSON in pieces: the text of `json.dumps`, whatever is long, and never all of it at once."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from ptsave.render.as_json import pieces
from ptsave.verbs.jsonable import jsonable

LONG = 2500
VALUES: dict[str, Any] = {
    "nothing": {},
    "empty containers": {"a": {}, "b": [], "c": ()},
    "scalars": {
        "i": 1,
        "f": 1.5,
        "n": None,
        "t": True,
        "s": "é\n",
        "nan": math.nan,
        "z": 2j,
        "huge": 1 << 5000,
    },
    "a long list": {"a": list(range(LONG)), "b": 1},
    "a long list of odd floats": {"a": [1.0] * LONG + [math.inf]},
    "a long list of huge integers": {"a": [1] * LONG + [-(1 << 5000)]},
    "long lists in a list": {"a": [[1] * LONG, 2, tuple(range(LONG)), {"b": 3}]},
    "a long object": {"a": {f"k{i}": i for i in range(LONG)}, "b": {"c": {"d": list(range(LONG))}}},
    "bytes and sets": {"a": [b"ab", {1, 2}, bytearray(300)] * LONG},
    "keys that are no text": {"a": {1: 2, (3, 4): 5}},
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_the_text_is_that_of_json(value: Any) -> None:
    made = list(pieces(value))
    assert "".join(made) == json.dumps(jsonable(value))
    assert max(map(len, made)) < 400_000


def test_a_generator_is_an_array() -> None:
    rows = ({"i": i} for i in range(LONG))
    files = (fields for fields in [{"rows": (n for n in ())}, {"rows": rows}])
    made = json.loads("".join(pieces({"files": files})))
    assert made == {"files": [{"rows": []}, {"rows": [{"i": i} for i in range(LONG)]}]}


def test_items_are_made_as_they_are_written() -> None:
    left = iter(range(10 * LONG))
    text = pieces({"rows": (number for number in left)})
    for _ in range(6):
        next(text)
    assert next(left) < LONG

"""The record as text: one meaning, and a cost that its own length bounds."""

from __future__ import annotations

import pytest

from ptsave.core.record import MAX_VALUES, Digests, Record
from ptsave.errors import CorruptError, LimitError


def test_a_record_comes_back() -> None:
    record = Record(
        model={"class": "a.B", "args": {"x": [1, -0.0, None]}},
        digests=Digests("xxh3_128", {"w": "0" * 32, "-0": "1" * 32}),
        aliases={"ü": "w"},
        extras={"loss": float("inf"), "lone": "\ud800"},
    )
    assert Record.from_json(record.to_json()) == record
    assert Record.from_json(record.to_json().encode()) == record


@pytest.mark.parametrize(
    "text",
    [
        '"schema_version":1',
        '"digests":{"algorithm":"xxh3_128","tensors":{"w":"00","w":"11"}}',
        '"digests":{"algorithm":"xxh3_128","tensors":{},"tensors":{}}',
        '"model":{"class":"a.B","args":{"rate":1,"rate":2}}',
        '"behaviour":{"environment":{"tf32":false,"tf32":true}}',
        '"newer":[{"a":1,"\\u0061":2}]',
        '"aliases":{},"aliases":{}',
    ],
)
def test_a_key_that_repeats_at_any_depth_is_refused(text: str) -> None:
    with pytest.raises(CorruptError, match="the ptsave record has two keys"):
        Record.from_json('{"schema_version":1,' + text + "}")


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"schema_version":2}', "{}", "[" * 100_000, b"\xff{}"])
def test_what_is_no_record_is_refused(text: str | bytes) -> None:
    with pytest.raises(CorruptError):
        Record.from_json(text)


@pytest.mark.parametrize("value", ["[]", "{}", "0"])
def test_values_are_counted_before_they_are_made(value: str) -> None:
    text = '{"schema_version":1,"extras":[' + ",".join([value] * (MAX_VALUES + 1)) + "]}"
    with pytest.raises(LimitError, match="record_values"):
        Record.from_json(text)

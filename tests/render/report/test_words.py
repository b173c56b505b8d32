"""The words that the reports share."""

from __future__ import annotations

import pytest

from ptsave.render.report.words import clean, fact


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("bytes", 12, "12 B"),
        ("bytes", 1023, "1,023 B"),
        ("bytes", 1536, "1.5 KiB (1,536 B)"),
        ("bytes", 5 * 1024**5, "5,120.0 TiB (5,629,499,534,213,120 B)"),
        ("bytes", "unknown", "unknown"),
        ("tensors", 1234567, "1,234,567"),
        ("seconds", 2.04, "2.0"),
        ("trusted", True, "True"),
        ("class", "a\nb\ufffe", r"a\nb\ufffe"),
        ("record", None, "None"),
    ],
)
def test_facts(name: str, value: object, shown: str) -> None:
    assert fact(name, value) == shown


def test_an_integer_that_python_refuses_to_print_is_spelt_in_hexadecimal() -> None:
    assert fact("tensors", 10**5000) == fact("bytes", 10**5000) == hex(10**5000)


def test_clean_text() -> None:
    assert clean("a\0\u202e\ud800\uffff") == r"a\x00\u202e\ud800\uffff"

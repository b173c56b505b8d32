"""What a finding says is made of its kind, its count, its names and its facts."""

from __future__ import annotations

import copy
import string

import pytest

from ptsave.core.finding import _CHOICE, Finding, Kind, counted, failed_of, merge


def test_one_and_many() -> None:
    assert counted(1, "tensor lies there", "tensors lie there") == "1 tensor lies there"
    assert counted(0, "tensor", "tensors") == "0 tensors"
    for number, words in ((0, "0 tensors fit"), (1, "1 tensor fits"), (2, "2 tensors fit")):
        assert Finding("keys", "ok", "", Kind.FITS, number).message == f"{words} the architecture"


def test_names_and_facts_are_put_in_as_they_are() -> None:
    """A name from a file is never a template."""
    name = "{count} [one|many] {facts.__class__}"
    found = Finding("whole", "ok", "", Kind.TRANSIENT, 2, (name, "b"))
    assert found.message.startswith(f"2 buffers (such as {name}) are not in their modules' state dicts")
    assert Finding("bytes", "fail", "", Kind.DAMAGED, facts={"why": name}).message == f"damaged: {name}"


def test_a_finding_says_where() -> None:
    assert str(Finding("c", "ok", "", Kind.EQUAL_OUTPUT)) == "bitwise equal"
    assert str(Finding("c", "ok", "a.b", Kind.EQUAL_OUTPUT)) == "a.b: bitwise equal"


def test_a_finding_goes_between_processes() -> None:
    found = Finding("against", "ok", "", Kind.CLOSE, 1, ("a",), {"total": 2, "how": "1 value differs"})
    assert copy.deepcopy(found) == found  # as pickled, without a pickle
    assert copy.deepcopy(found).message == found.message


def test_failures_of_a_kind() -> None:
    found = [
        Finding("keys", "fail", "a", Kind.LOST_TIE),
        Finding("keys", "warn", "b", Kind.LOST_TIE),
        Finding("keys", "fail", "c", Kind.NEW_TIE),
        Finding("keys", "fail", "a", Kind.LOST_TIE),
        Finding("keys", "fail", "d", Kind.MISSING),
    ]
    assert failed_of(found, Kind.LOST_TIE) == ["a"]
    assert failed_of(found, Kind.LOST_TIE, Kind.NEW_TIE) == ["a", "c"]


@pytest.mark.parametrize("kind", Kind)
def test_words_of_a_kind_can_be_made(kind: Kind) -> None:
    """Every place in them has a plain name, and one and many come only where there is a count."""
    keys = {key for _, key, _, _ in string.Formatter().parse(kind.value) if key is not None}
    assert all(key.isidentifier() for key in keys), keys
    assert "count" in keys or not _CHOICE.search(kind.value)


def test_counts_of_several_processes_are_added_up() -> None:
    def cast(*names: str, dtype: str = "float16") -> Finding:
        return Finding("bytes", "warn", "", Kind.CAST_SINCE, len(names), names, {"dtype": dtype})

    (both,) = merge([cast("a"), cast("b", "c")])
    assert (both.count, both.places) == (3, ("a", "b", "c"))
    assert both.message.startswith("3 tensors (such as 'a') were cast to float16")
    assert len(merge([cast("a"), cast("b", dtype="bfloat16")])) == 2


def test_what_one_process_alone_did_not_check_is_not_skipped() -> None:
    finite, none = (
        Finding("finite", "ok", "", Kind.ALL_FINITE, 2),
        Finding("finite", "skipped", "", Kind.NO_FLOATS),
    )
    assert merge([none, finite, none]) == [finite]
    assert merge([none, none]) == [none]


def test_a_check_that_failed_in_one_process_passed_in_none() -> None:
    sound = Finding("bytes", "ok", "", Kind.CRCS_MATCH, 2)
    damaged = Finding("bytes", "fail", "a", Kind.DAMAGED, facts={"why": "torn"})
    of_another = Finding("finite", "ok", "", Kind.ALL_FINITE, 1)
    assert merge([sound, damaged, of_another]) == [damaged, of_another]

"""Errors know options by key: a command spells them as flags, a function of Python as arguments."""

from __future__ import annotations

import copy

import pytest

from ptsave.errors import LossyError, Option, UsageError, options_of

SELECT = Option("select", "KEY.PATH")
OVERWRITE = Option("overwrite", True, tail=" replaces it")
DROP = "leave it out", Option("drop", lead=" with ")
EXTRAS = Option("extras", "drop", otherwise="save as .pt")
CASES = {
    "named alone": (Option("select"), "--select", "select="),
    "with a value": (SELECT, "--select KEY.PATH", 'select="KEY.PATH"'),
    "of two words": (Option("allow_missing"), "--allow-missing", "allow_missing="),
    "a switch": (OVERWRITE, "--overwrite replaces it", "overwrite=True replaces it"),
    "a config": (Option("config", "CONFIG"), "-c CONFIG", 'config="CONFIG"'),
    "what a shell would take apart": (Option("select", "a b"), "--select 'a b'", 'select="a b"'),
    "what Python does not have": (DROP, "leave it out with --drop", "leave it out"),
    "something else in Python": (EXTRAS, "--extras drop", "save as .pt"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_option_is_spelled_for_its_reader(case: str) -> None:
    hint, flag, argument = CASES[case]
    error = LossyError("what", "", hint)
    assert error.hint == flag
    with pytest.raises(LossyError) as raised, options_of(("select", "allow_missing", "overwrite", "config")):
        raise error
    assert raised.value.hint == argument


def test_what_a_file_says_is_no_option() -> None:
    with pytest.raises(UsageError) as raised, options_of(("select",)):
        raise UsageError("there is no key '--select'", Option("select"), "--select")
    assert str(raised.value) == "there is no key '--select' (select=)"
    assert raised.value.hint == "--select"


def test_an_error_goes_between_processes() -> None:
    error = copy.copy(UsageError("what", Option("device", "cuda"), "why"))  # as pickled, without a pickle
    assert str(error) == "what (--device cuda)"

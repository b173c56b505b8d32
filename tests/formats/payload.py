"""A payload that says whether a real loader ran it, and whether ptsave tells of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptsave.errors import PtsaveError
from ptsave.formats import open_checkpoint
from ptsave.verbs.checks.safe import safe
from ptsave.verbs.checks.subject import Subject
from tests.attacks.pickles import Call, Name

NAME = "a_module_whose_name_has_forty_letters_in"
FUNCTION = "a_function_whose_name_has_as_many_letter"
assert len(NAME) == len(FUNCTION) == 40
PAYLOAD = Call(Name(NAME, FUNCTION), ())


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """What the payload adds to when it runs."""
    folder = tmp_path / "importable"
    folder.mkdir()
    (folder / f"{NAME}.py").write_text(f"calls = []\ndef {FUNCTION}():\n    calls.append(True)\n")
    monkeypatch.syspath_prepend(folder)
    module = __import__(NAME)
    monkeypatch.setattr(module, "calls", found := [])
    yield found
    del sys.modules[NAME]


def is_named(path: Path) -> bool:
    """Whether ptsave refuses the file, or names the payload."""
    try:
        with open_checkpoint(path) as checkpoint:
            return any(f.level == "fail" and NAME in f.where for f in safe(Subject(checkpoint)))
    except PtsaveError:
        return True

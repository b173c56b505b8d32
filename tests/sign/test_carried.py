"""What a conversion carries along: the signatures that still hold, and a line for each of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ptsave.models.weights.live import checkpoint_of
from ptsave.sign.carried import carried
from ptsave.sign.signer import signer_of
from tests.sign.keys_made import write_pair

STATE = {"a": torch.ones(2), "b": torch.zeros(3)}


@pytest.fixture
def document(tmp_path: Path) -> Any:
    secret, _ = write_pair(tmp_path, "k")
    signer = signer_of([secret])
    assert signer is not None
    (envelope,), _ = signer.sign(checkpoint_of(STATE, tmp_path), "sha256", dict.fromkeys(STATE, "0" * 64))
    return envelope


@pytest.mark.parametrize(
    ("state", "renamed", "signs_anew", "is_kept", "says"),
    [
        (STATE, {}, False, True, ""),
        (dict(reversed(STATE.items())), {}, True, True, ""),
        ({"a": STATE["a"], "c": STATE["b"]}, {"b": "c"}, False, True, "of the old names"),
        ({"a": STATE["a"], "c": STATE["b"]}, {"b": "c"}, True, False, "is void"),
        ({"a": STATE["a"], "c": STATE["b"]}, {}, False, False, "is void"),
        ({"a": STATE["a"].half(), "b": STATE["b"]}, {}, False, False, "is void"),
        ({"a": STATE["a"]}, {}, False, False, "is void"),
        ({**STATE, "epoch": 3}, {}, False, False, "is void"),
        ({"a": STATE["a"], "b": STATE["a"]}, {}, False, False, "is void"),
    ],
)
def test_what_is_kept(
    state: Any, renamed: Any, signs_anew: bool, is_kept: bool, says: str, document: Any, tmp_path: Path
) -> None:
    found = carried([document], checkpoint_of(state, tmp_path), renamed, signs_anew=signs_anew)
    assert found.signatures == ([document] if is_kept else [])
    assert len(found.notes) == bool(says)
    assert all(says in note for note in found.notes)


def test_one_that_cannot_be_read_stays_behind(document: Any, tmp_path: Path) -> None:
    found = carried([{"payload": 3}, document], checkpoint_of(STATE, tmp_path), {}, signs_anew=False)
    assert found.signatures == [document]
    assert [note.split(":")[0] for note in found.notes] == ["a signature stays behind"]

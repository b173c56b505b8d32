"""Whose statements count: a key is believed of what it signed alone, whatever a signature says of itself."""

from __future__ import annotations

from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Kind
from ptsave.core.record import Record
from ptsave.models.weights.live import checkpoint_of
from ptsave.sign.envelope import encoded, to_json
from ptsave.sign.keys import private_key
from ptsave.sign.signer import signer_of
from ptsave.sign.trusted import SignedBy, authenticated, signatories, trusted
from tests.sign.keys_made import KINDS, write_pair

Document = dict[str, Any]


def signed_with(folder: Path, *documents: Any) -> Checkpoint:
    checkpoint = checkpoint_of({"w": torch.ones(2)}, folder)
    return replace(checkpoint, record=Record(signatures=documents))


def payload(folder: Path, secret: Path) -> bytes:
    signer = signer_of([secret])
    assert signer is not None
    signer.sign(checkpoint_of({"w": torch.ones(2)}, folder), "sha256", {"w": "0" * 64})
    return b64decode(signer.documents[0]["payload"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_a_key_of_another_kind_under_the_trusted_name(kind: str, other: str, tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "k", kind)
    forger, _ = write_pair(tmp_path, "forger", other)
    said, mine = payload(tmp_path, secret), private_key(secret).public.key_id
    forged = to_json(said, [(mine, private_key(forger).sign(encoded(said)))])
    found = authenticated(signed_with(tmp_path, forged), SignedBy([trusted(public)]))
    assert not found.statements
    assert [one.kind for one in found.findings] == [Kind.FORGED_SIGNATURE]


NAMES = (str.upper, lambda key_id: key_id[:16], lambda key_id: f"{key_id} ", lambda key_id: "")


@pytest.mark.parametrize("name", NAMES)
def test_a_key_is_named_in_full(name: Any, tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "k")
    key, said = private_key(secret), payload(tmp_path, secret)
    document = to_json(said, [(name(key.public.key_id), key.sign(encoded(said)))])
    found = authenticated(signed_with(tmp_path, document), SignedBy([trusted(public)]))
    assert not found.statements
    assert [one.kind for one in found.findings] == [Kind.FOREIGN]


def test_a_bad_signature_beside_a_good_one(tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "k")
    key, said = private_key(secret), payload(tmp_path, secret)
    good, mine = key.sign(encoded(said)), key.public.key_id
    for pairs in ([(mine, good), ("other", b"0" * 64)], [(mine, b"0" * 64), (mine, good)]):
        document = to_json(said, pairs)
        found = authenticated(signed_with(tmp_path, document), SignedBy([trusted(public)]))
        assert len(found.statements) == 1
        assert [(one.level, one.kind) for one in found.findings] == [("skipped", Kind.OTHER_SIGNATURE)]


def test_who_is_said_to_have_signed(tmp_path: Path) -> None:
    named = to_json(b"{}", [("ab" * 32, b"x"), ("ab" * 32, b"y"), ("", b"z")])
    assert signatories(signed_with(tmp_path, named, 7)) == [
        "SHA256:abababababababab",
        "a key that it does not name",
        "a signature that cannot be read",
    ]
    assert signatories(checkpoint_of({"w": torch.ones(2)}, tmp_path)) == []

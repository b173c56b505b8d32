"""The signer: drafts as long as what is signed, one statement for both, and what it refuses."""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path

import pytest
import torch

from ptsave.errors import UsageError
from ptsave.models.weights.live import checkpoint_of
from ptsave.sign.envelope import encoded
from ptsave.sign.keys import private_key
from ptsave.sign.signer import signed_digest, signer_of
from tests.sign.keys_made import KINDS, write_pair


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_is_as_long_as_what_is_signed(kind: str, tmp_path: Path) -> None:
    """A header is laid out with the draft, and the spaces make up for shorter signatures."""
    secret, _ = write_pair(tmp_path, "k", kind)
    signer = signer_of([secret])
    assert signer is not None
    for i in range(8):
        checkpoint = checkpoint_of({"w": torch.ones(i + 1)}, tmp_path)
        draft, _ = signer.sign(checkpoint, "sha256", None)
        made, num_spaces = signer.sign(checkpoint, "sha256", {"w": f"{i:064x}"})
        assert len(json.dumps(draft)) == len(json.dumps(made)) + num_spaces
        (document,), key = made, private_key(secret).public
        signature = document["signatures"][0]
        assert key.signed(b64decode(signature["sig"]), encoded(b64decode(document["payload"])))
        statement = json.loads(b64decode(document["payload"]))["predicate"]
        assert statement["tensors"]["count"] == 1, "a draft of another checkpoint is none"


def test_which_digest_is_signed() -> None:
    assert signed_digest(None, None) == signed_digest(None, "xxh3_128") == "sha256"
    assert signed_digest(None, "blake3") == signed_digest("blake3", "sha256") == "blake3"
    with pytest.raises(UsageError, match="prove nothing"):
        signed_digest("xxh3_128", "sha256")


def test_what_is_refused(tmp_path: Path) -> None:
    secret, _ = write_pair(tmp_path, "k")
    assert signer_of([]) is None
    for keys, expires in (([secret, secret], None), ([secret], "2027-2-3"), ([secret], "20270203")):
        with pytest.raises(UsageError):
            signer_of(keys, expires=expires)
    signer = signer_of([secret], only=["w"])
    assert signer is not None
    with pytest.raises(UsageError):
        signer.sign(checkpoint_of({"v": torch.ones(1)}, tmp_path), "sha256", None)

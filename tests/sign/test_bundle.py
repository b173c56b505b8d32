"""Bundles of files: model_signing reads ours, we read theirs, and every change of a file is a no."""

from __future__ import annotations

import json
import shutil
from base64 import b64decode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import ptsave
from ptsave.core.finding import Kind
from ptsave.errors import CorruptError, RefusedError, UsageError
from ptsave.sign.bundle import parse_bundle
from ptsave.sign.canonical import canonical
from ptsave.sign.envelope import encoded, to_json
from ptsave.sign.files import parse_files, payload_of
from ptsave.sign.keys import PrivateKey, private_key
from ptsave.sign.parties import Keys
from tests.sign.keys_made import write_pair

Document = dict[str, Any]
model_signing: Any = pytest.importorskip("model_signing", reason="it needs Python 3.11")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with a checkpoint in it, and a file that no reader of tensors looks at."""
    ptsave.save(tmp_path / "net.pt", {"w": torch.arange(200.0), "b": torch.zeros(3)})
    ptsave.convert(tmp_path / "net.pt", tmp_path / "model", format="safetensors-sharded", shard_size=500)
    (tmp_path / "model" / "tokenizer").mkdir()
    (tmp_path / "model" / "tokenizer" / "vocab.txt").write_text("a b c")
    return tmp_path


def bundle_of(path: Path, key: PrivateKey, ignored: Sequence[str] = ()) -> Document:
    return dict(Keys([key]).bundle(payload_of(path, ignored)))


def findings(path: Path, public: Path, bundle: Path) -> list[Kind]:
    verdict = ptsave.verify(path, signed_by=public, signature=bundle, checks="signature")
    return [finding.kind for finding in verdict.findings]


@pytest.mark.parametrize("kind", ["p256", "p384"])
def test_model_signing_accepts_ours_and_we_accept_theirs(kind: str, made: Path) -> None:
    secret, public = write_pair(made, "k", kind)
    theirs = model_signing.signing.Config().use_elliptic_key_signer(private_key=secret)
    accepts = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public)
    for name in ("one.safetensors", "one.pt", "one.npz", "shards"):
        form = "safetensors-sharded" if name == "shards" else None
        path, bundle = made / name, made / f"{name}.sig"
        if name != "one.npz":
            ptsave.convert(made / "net.pt", path, format=form, sign=secret, bundle=bundle)
            accepts.verify(path, bundle)
            assert findings(path, public, bundle)[0] == Kind.FILES_SIGNED
        else:
            ptsave.convert(made / "net.pt", path)
        theirs.sign(path, made / "theirs.sig")
        assert Kind.FILES_SIGNED in findings(path, public, made / "theirs.sig")
    theirs.sign(made / "model", made / "theirs.sig")
    for path in (made / "model", made / "model" / "model.safetensors.index.json"):
        assert findings(path, public, made / "theirs.sig") == [Kind.FILES_SIGNED]


def changed(folder: Path) -> None:
    with open(folder / "tokenizer" / "vocab.txt", "a") as file:
        file.write("d")


def added(folder: Path) -> None:
    (folder / "tokenizer" / "more").write_text("")


def gone(folder: Path) -> None:
    (folder / "tokenizer" / "vocab.txt").unlink()


def swapped(folder: Path) -> None:
    (folder / "tokenizer").rename(folder / "tokens")


def linked(folder: Path) -> None:
    path = folder / "tokenizer" / "vocab.txt"
    shutil.copy(path, folder.parent / "vocab")
    path.unlink()
    path.symlink_to(folder.parent / "vocab")


def linked_folder(folder: Path) -> None:
    shutil.move(folder / "tokenizer", folder.parent / "tokenizer")
    (folder / "tokenizer").symlink_to(folder.parent / "tokenizer")


def with_git(folder: Path) -> None:
    """What a bundle ignores may change, and holds nothing that is loaded."""
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("x")


@pytest.mark.parametrize("change", [changed, added, gone, swapped, linked, linked_folder, with_git])
def test_other_files_are_a_no(change: Callable[[Path], None], made: Path) -> None:
    secret, public = write_pair(made, "k", "p256")
    model_signing.signing.Config().use_elliptic_key_signer(private_key=secret).sign(
        made / "model", made / "theirs.sig"
    )
    change(made / "model")
    expected = Kind.FILES_SIGNED if change is with_git else Kind.FILES_OTHER
    assert findings(made / "model", public, made / "theirs.sig") == [expected]


def test_what_is_loaded_must_be_among_the_signed_files(made: Path) -> None:
    """A bundle may ignore files, and one of another folder says nothing of this one."""
    secret, public = write_pair(made, "k", "p256")
    ignoring = made / "ignoring.sig"
    names = [path.name for path in (made / "model").iterdir() if path.is_file()]
    ignoring.write_text(json.dumps(bundle_of(made / "model", private_key(secret), names)))
    assert findings(made / "model", public, ignoring) == [Kind.FILES_OTHER]
    of_file = made / "file.sig"
    of_file.write_text(json.dumps(bundle_of(made / "net.pt", private_key(secret))))
    assert findings(made / "net.pt", public, of_file) == [Kind.FILES_SIGNED]
    assert findings(made / "model", public, of_file) == [Kind.FILES_OTHER]
    ptsave.convert(made / "net.pt", made / "other.pt", rename={"^w": "v"})
    assert findings(made / "other.pt", public, of_file) == [Kind.FILES_OTHER]


def test_whose_it_is(made: Path) -> None:
    secret, _ = write_pair(made, "k", "p256")
    _, other = write_pair(made, "other", "p256")
    path = made / "b.sig"
    document = bundle_of(made / "net.pt", private_key(secret))
    path.write_text(json.dumps(document))
    assert findings(made / "net.pt", other, path) == [Kind.FOREIGN]
    hint = json.loads(json.dumps(document))
    hint["verificationMaterial"]["publicKey"]["hint"] = bundle_of(
        made / "net.pt", private_key(made / "other.key")
    )["verificationMaterial"]["publicKey"]["hint"]
    path.write_text(json.dumps(hint))
    assert findings(made / "net.pt", other, path) == [Kind.FORGED_SIGNATURE]


def with_payload(document: Document, key: Any, edit: Callable[[Document], object]) -> Document:
    """The bundle of an edited statement, signed as it should be."""
    payload = json.loads(b64decode(document["dsseEnvelope"]["payload"]))
    edit(payload)
    data = canonical(payload)
    return {**document, "dsseEnvelope": to_json(data, [("", key.sign(encoded(data)))])}


@pytest.mark.parametrize(
    "edit",
    [
        lambda p: p.update(predicateType="https://model_signing/Digests/v0.1"),
        lambda p: p.update(_type="x"),
        lambda p: p["predicate"]["serialization"].update(method="shards"),
        lambda p: p["predicate"]["serialization"].update(hash_type="md5"),
        lambda p: p["predicate"]["serialization"].update(ignore_paths="tokenizer"),
        lambda p: p["predicate"]["serialization"].pop("allow_symlinks"),
        lambda p: p["predicate"]["resources"][0].update(algorithm="blake3"),
        lambda p: p["predicate"]["resources"][0].update(digest="00"),
        lambda p: p["predicate"]["resources"].append(dict(p["predicate"]["resources"][0])),
        lambda p: p["predicate"].update(resources=3),
        lambda p: p["subject"].append({}),
    ],
)
def test_statements_that_are_refused(edit: Callable[[Document], object], made: Path) -> None:
    secret, public = write_pair(made, "k", "p256")
    key = private_key(secret)
    document = with_payload(bundle_of(made / "net.pt", key), key, edit)
    with pytest.raises(CorruptError):
        parse_files(parse_bundle(document, "").payload, "")
    (made / "b.sig").write_text(json.dumps(document))
    assert findings(made / "net.pt", public, made / "b.sig") == [Kind.MALFORMED_SIGNATURE]


@pytest.mark.parametrize(
    "change",
    [
        {"mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.1"},
        {"mediaType": None},
        {"verificationMaterial": {"x509CertificateChain": {"certificates": []}}},
        {"verificationMaterial": {"publicKey": {}}},
        {"verificationMaterial": 3},
        {"dsseEnvelope": None},
        {"dsseEnvelope": {"payload": "", "payloadType": "application/vnd.in-toto+json", "signatures": []}},
    ],
    ids=str,
)
def test_bundles_that_are_refused(change: Document, made: Path) -> None:
    secret, _ = write_pair(made, "k", "p256")
    with pytest.raises(CorruptError):
        parse_bundle({**bundle_of(made / "net.pt", private_key(secret)), **change}, "")


def test_what_cannot_be_written_is_refused_before(made: Path) -> None:
    edwards, _ = write_pair(made, "e")
    one, _ = write_pair(made, "a", "p256")
    two, _ = write_pair(made, "b", "p256")
    (made / "taken").write_text("")
    for sign, bundle in (
        (edwards, made / "x.sig"),
        ([one, two], made / "x.sig"),
        ((), made / "x.sig"),
        (one, made / "out.pt"),
        (one, made / "taken"),
    ):
        with pytest.raises((UsageError, RefusedError)):
            ptsave.convert(made / "net.pt", made / "out.pt", sign=sign, bundle=bundle)
        assert not (made / "out.pt").exists()

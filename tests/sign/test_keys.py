"""Keys: what is read, what is refused, and that nothing secret is said."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from ptsave.core.address import located
from ptsave.errors import MissingFileError, PtsaveError, RefusedError, UnreadableError, UsageError
from ptsave.sign.keys import PASSWORD, PublicKey, private_key
from ptsave.sign.trusted import trusted
from ptsave.storage import system
from tests.sign.keys_made import KINDS, write_certificate, write_pair


def keys_of(path: Path) -> list[PublicKey]:
    return [one for one in trusted(path).authorities if isinstance(one, PublicKey)]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_signs(kind: str, tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "k", kind)
    key = private_key(secret)
    (trust,) = keys_of(public)
    signature = key.sign(b"message")
    assert trust.signed(signature, b"message")
    assert not trust.signed(signature, b"messagE")
    assert not trust.signed(signature[:-1], b"message")
    assert not trust.signed(b"", b"message")
    assert key.sign(b"message") == signature, "one signature for one message"
    assert len(signature) <= key.most_bytes
    assert trust.key_id == key.public.key_id


def test_openssl_reads_and_makes_them(tmp_path: Path) -> None:
    secret, public = tmp_path / "k.pem", tmp_path / "k.pub"
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "ed25519", "-out", secret], check=True, capture_output=True
    )
    secret.chmod(0o600)
    subprocess.run(["openssl", "pkey", "-in", secret, "-pubout", "-out", public], check=True)
    message, signature = tmp_path / "m", tmp_path / "s"
    message.write_bytes(b"message")
    signature.write_bytes(private_key(secret).sign(b"message"))
    verify = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", message]
    subprocess.run([*verify, "-sigfile", signature], check=True, capture_output=True)


def test_a_password_is_in_the_environment_or_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, public = write_pair(tmp_path, "k", password="hunter2")
    monkeypatch.delenv(PASSWORD, raising=False)
    with pytest.raises(RefusedError, match="encrypted") as caught:
        private_key(secret)
    assert PASSWORD in caught.value.hint
    asked: list[str] = []

    def prompt(words: str) -> str:
        asked.append(words)
        return "hunter2"

    key = private_key(secret, prompt)
    assert asked == [f"password of {secret}: "]
    monkeypatch.setenv(PASSWORD, "hunter2")
    assert private_key(secret).sign(b"x") == key.sign(b"x")
    monkeypatch.setenv(PASSWORD, "hunter3")
    with pytest.raises(RefusedError, match="password does not open") as caught:
        private_key(secret)
    assert "hunter3" not in f"{caught.value} {caught.value.hint}"
    assert keys_of(public)[0].signed(key.sign(b"x"), b"x")


@pytest.mark.skipif(not system.HAS_OWNERS, reason="Windows has no such permissions")
def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    secret, _ = write_pair(tmp_path, "k")
    for mode in (0o640, 0o604):
        secret.chmod(mode)
        with pytest.raises(RefusedError, match="other users") as caught:
            private_key(secret)
        assert caught.value.hint == f"chmod 600 {secret}"


def test_nothing_secret_is_said(tmp_path: Path) -> None:
    secret, _ = write_pair(tmp_path, "k")
    body = secret.read_text().splitlines()[1]
    assert body not in repr(private_key(secret))
    secret.write_text(secret.read_text().replace(body, body[:-8] + "AAAAAAAA"))
    bad: list[PtsaveError] = []
    secret.write_text(secret.read_text()[:-30])
    with pytest.raises(PtsaveError) as caught:
        private_key(secret)
    bad.append(caught.value)
    with pytest.raises(PtsaveError) as caught:
        trusted(secret)
    bad.append(caught.value)
    assert all(body[:16] not in f"{error} {error.hint} {error.details}" for error in bad)


def test_what_is_no_key(tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "k")
    other, other_public = write_pair(tmp_path, "p521", "p521")
    rsa_key = rsa.generate_private_key(65537, 2048)
    rsa_file = tmp_path / "rsa.pem"
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    rsa_file.write_bytes(rsa_key.public_key().public_bytes(serialization.Encoding.PEM, form))
    text = tmp_path / "text.pem"
    text.write_text("no key")
    two = tmp_path / "two.pem"
    two.write_bytes(public.read_bytes() * 2)
    long = tmp_path / "long.pem"
    long.write_bytes(b"x" * 100_000)
    with pytest.raises(UsageError, match="cannot sign"):
        private_key(public)
    with pytest.raises(UsageError, match="this is a private key"):
        trusted(secret)
    for path in (other_public, rsa_file, text, two, long):
        with pytest.raises(UsageError):
            trusted(path)
    for path in (other, text, long):
        path.chmod(0o600)
        with pytest.raises(UsageError):
            private_key(path)
    for path in (tmp_path / "none.pem", tmp_path / "no" / "folder.pem", tmp_path / "k.key" / "x"):
        with pytest.raises(MissingFileError):
            trusted(path)
    with pytest.raises(UnreadableError):
        trusted(Path("x\0y"))
    with pytest.raises(UsageError, match="this machine"):
        private_key(located("s3://bucket/key.pem"))


def test_a_folder_of_keys(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    with pytest.raises(UsageError, match="no keys"):
        trusted(folder)
    pairs = [write_pair(tmp_path, name, kind) for name, kind in zip("abc", KINDS, strict=True)]
    for _, public in pairs:
        public.rename(folder / public.name)
    (folder / "README").write_text("whose they are")
    assert [key.source for key in keys_of(folder)] == [str(folder / f"{name}.pub") for name in "abc"]
    (folder / "bad.pem").write_text("")
    with pytest.raises(UsageError):
        trusted(folder)


def test_a_certificate_holds_for_a_time(tmp_path: Path) -> None:
    secret, public = write_pair(tmp_path, "k", "p256")
    for days, is_out in (((-2, 2), False), ((-9, -2), True), ((2, 9), True)):
        (key,) = keys_of(write_certificate(tmp_path, secret, days))
        assert key.is_out_of_date() == is_out
        assert key.key_id == keys_of(public)[0].key_id

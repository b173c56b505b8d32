"""Keys in PEM files: Ed25519, and ECDSA on P-256 and P-384. No message shows a secret.

Source: RFC 8410 (Ed25519 in PKCS #8 and X.509), RFC 5915 and RFC 5480 (elliptic curves).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptsave.core.address import Address, Location
from ptsave.core.finding import Finding, Kind
from ptsave.errors import MissingFileError, Option, RefusedError, Text, UnreadableError, UsageError, install
from ptsave.sign.authority import CHECK, Judged, Signatory
from ptsave.sign.envelope import Envelope
from ptsave.storage.system import disk

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

MAX_KEY_BYTES = 64 * 1024
"""Cap on a key's file."""
PASSWORD = "PTSAVE_KEY_PASSWORD"
"""The environment variable with the password of an encrypted private key."""
KINDS = "Ed25519, ECDSA P-256 or ECDSA P-384"
CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_PRIVATE = b"PRIVATE KEY-----"
Prompt = Callable[[str], str]
"""Asks a person for a password; the argument says for which key."""


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are checked with."""

    _key: Any
    key_id: str
    """SHA-256 of its SubjectPublicKeyInfo in DER, in lower-case hexadecimal."""
    source: str = ""
    """The file that it is from."""
    not_before: datetime | None = None
    """From when it holds, where a certificate says so."""
    not_after: datetime | None = None

    @property
    def hint(self) -> str:
        """What bundles call it: SHA-256 of its SubjectPublicKeyInfo in PEM."""
        form = library()
        pem = self._key.public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
        return sha256(pem).hexdigest()

    @property
    def is_elliptic(self) -> bool:
        """Whether it is an ECDSA key."""
        return bool(_hash_of(self._key))

    @property
    def name(self) -> str:
        """`release.pem (SHA256:0123456789abcdef)`."""
        return (
            f"{os.path.basename(self.source)} ({short(self.key_id)})" if self.source else short(self.key_id)
        )

    def signed(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` is one of `message` by this key."""
        return signed(self._key, signature, message)

    def judge(self, envelope: Envelope, where: str) -> Iterator[Judged]:
        """Judge the signatures that name this key, and no others: many keys cost no more than one."""
        own = self.hint if envelope.is_by_hint else self.key_id
        named = [i for i, one in enumerate(envelope.signatures) if one.key_id == own]
        message = envelope.message if named else b""
        for i in named:
            if not self.signed(envelope.signatures[i].value, message):
                yield i, Finding(CHECK, "fail", "", Kind.FORGED_SIGNATURE, facts={"key": self.name})
            elif self.is_out_of_date():
                days = {"begin": f"{self.not_before:%Y-%m-%d}", "end": f"{self.not_after:%Y-%m-%d}"}
                yield i, Finding(CHECK, "fail", "", Kind.KEY_OUT_OF_DATE, facts={"key": self.name, **days})
            else:
                yield i, Signatory(self.name, self.key_id)

    def is_out_of_date(self) -> bool:
        """Whether its certificate is not valid now."""
        now = datetime.now(timezone.utc)
        is_early = self.not_before is not None and now < self.not_before
        return is_early or (self.not_after is not None and now > self.not_after)


@dataclass(frozen=True)
class PrivateKey:
    """A key that signs."""

    _key: Any
    public: PublicKey

    @property
    def most_bytes(self) -> int:
        """The length of its longest signature: those of ECDSA vary by a few bytes."""
        size = getattr(self._key, "key_size", 0) // 8
        return 8 + 2 * (size + 1) - 2 if size else 64

    def sign(self, message: bytes) -> bytes:
        """Its signature of `message`; the same for the same message."""
        signature: bytes = self._key.sign(message, *_hash_of(self._key, deterministic=True))
        return signature

    def __repr__(self) -> str:
        return f"<private key {short(self.public.key_id)}>"


def signed(key: Any, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is one of `message` by `key`, which the library holds."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, message, *_hash_of(key))
    except InvalidSignature:
        return False
    return True


def short(key_id: str) -> str:
    """A key's name for a person: the first digits of its id."""
    return f"SHA256:{key_id[:16]}" if key_id else "a key that it does not name"


def private_key(where: Location, prompt: Prompt | None = None) -> PrivateKey:
    """The private key in a PEM file. The password of an encrypted one is in PTSAVE_KEY_PASSWORD, or `prompt`
    asks for it.

    Raises: MissingFileError; RefusedError where others may read the file, or the password is wrong;
    UsageError for a file without a private key, or with one of another kind.
    """
    path = on_this_machine(where, "sign")
    data = read_pem(path, is_secret=True)
    if _PRIVATE not in data:
        is_public = b"-----BEGIN" in data
        what = "a public key or a certificate cannot sign" if is_public else "is not a private key in PEM"
        raise UsageError(what, str(path), "name the private key: openssl genpkey -algorithm ed25519 -out KEY")
    load = library()
    password: bytes | None = None
    if b"ENCRYPTED" in data:
        password = _password(path, prompt)
    try:
        key = load.load_pem_private_key(data, password)
    except (ValueError, TypeError):
        what = "the password does not open the key, or the file is damaged"
        if password is None:
            what = "the private key cannot be read"
        raise RefusedError(
            what, str(path), f"it must be PEM (PKCS #8); a password is in {PASSWORD}"
        ) from None
    except Exception as error:
        raise _unsupported(error, path) from None
    _check_kind(key, path)
    return PrivateKey(key, _public(key.public_key(), str(path)))


def public_key(data: bytes, path: Path) -> PublicKey:
    """The public key, or that of the certificate, in the content of a PEM file.

    Raises: UsageError for a file without a public key, or one of another kind.
    """
    if _PRIVATE in data:
        hint = "name the public key: openssl pkey -in KEY -pubout"
        raise UsageError("this is a private key; signatures are checked with the public one", str(path), hint)
    if data.count(b"-----BEGIN ") != 1:
        raise UsageError("is not one public key or certificate in PEM", str(path), f"give {KINDS}")
    load = library()
    certificate: Certificate | None = None
    try:
        if CERTIFICATE in data:
            from cryptography.x509 import load_pem_x509_certificate

            certificate = load_pem_x509_certificate(data)
            key: Any = certificate.public_key()
        else:
            key = load.load_pem_public_key(data)
    except ValueError:
        raise UsageError("is not a public key in PEM", str(path), f"give {KINDS}") from None
    except Exception as error:
        raise _unsupported(error, path) from None
    _check_kind(key, path)
    if certificate is None:
        return _public(key, str(path))
    return _public(key, str(path), certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def _public(
    key: Any, source: str, not_before: datetime | None = None, not_after: datetime | None = None
) -> PublicKey:
    return PublicKey(key, key_id_of(key), source, not_before, not_after)


def key_id_of(key: Any) -> str:
    """What DSSE's signatures call a public key."""
    form = library()
    return sha256(key.public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def library() -> Any:
    """The part of `cryptography` that reads keys.

    Raises: RefusedError where it is not installed.
    """
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        what = "signatures need cryptography, which is not installed"
        raise RefusedError(what, "", install("sign")) from error
    return serialization


def is_used_here(key: Any) -> bool:
    """Whether a key is of one of KINDS."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    is_edwards = isinstance(key, (ed25519.Ed25519PrivateKey, ed25519.Ed25519PublicKey))
    is_curve = isinstance(key, (ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey))
    return is_edwards or (is_curve and isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1)))


def _check_kind(key: Any, path: Path) -> None:
    """Raise UsageError for a key that is not used here."""
    if not is_used_here(key):
        raise UsageError("the key is of a kind that is not used here", str(path), f"give {KINDS}")


def _hash_of(key: Any, *, deterministic: bool = False) -> tuple[Any, ...]:
    """What a key's `sign` and `verify` take beside the bytes."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(key, (ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey)):
        return ()
    digest = hashes.SHA384() if isinstance(key.curve, ec.SECP384R1) else hashes.SHA256()
    return (ec.ECDSA(digest, deterministic_signing=True) if deterministic else ec.ECDSA(digest),)


def on_this_machine(where: Location, option: str) -> Path:
    """The path of a key's file. Raises: UsageError for an address."""
    if isinstance(where, Address):
        raise UsageError("a key is a file on this machine", Option(option), "copy it here")
    return where


def read_pem(path: Path, *, is_secret: bool = False) -> bytes:
    """The content of a key's file.

    Raises: RefusedError for a secret that others may read; MissingFileError; UnreadableError.
    """
    try:
        with open(path, "rb") as file:
            others = disk.others_may_read(file.fileno()) if is_secret else False
            data = file.read(MAX_KEY_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise MissingFileError("no such key", str(path), "check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "the name cannot be one of a file"
        raise UnreadableError(f"cannot read the key: {reason}", str(path), "check the path") from None
    if others and _PRIVATE in data:
        raise RefusedError("other users may read the private key", str(path), ("chmod 600 ", str(path)))
    if len(data) > MAX_KEY_BYTES:
        raise UsageError("is not a key in PEM: it is too long", str(path), f"give {KINDS}")
    return data


def _password(path: Path, prompt: Prompt | None) -> bytes:
    text = os.environ.get(PASSWORD)
    if text is None and prompt is not None:
        text = prompt(f"password of {path}: ")
    if not text:
        raise RefusedError("the private key is encrypted", str(path), f"put its password into {PASSWORD}")
    return text.encode("utf-8", "surrogateescape")


def _unsupported(error: Exception, path: Path) -> Exception:
    """What to raise for an error of the library; one that is not about the key is a bug."""
    from cryptography.exceptions import UnsupportedAlgorithm

    if not isinstance(error, UnsupportedAlgorithm):
        return error
    hint: Text = f"give {KINDS}"
    return UsageError("the key is of a kind that is not used here", str(path), hint)

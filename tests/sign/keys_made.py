"""Keys for the tests, as openssl writes them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

KINDS = ("ed25519", "p256", "p384")


def make_key(kind: str) -> Any:
    """A new private key."""
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(
        {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}[kind]
    )


def write_pair(
    folder: Path, name: str, kind: str = "ed25519", password: str | None = None
) -> tuple[Path, Path]:
    """A private key that only its owner may read, and its public key, in PEM files."""
    key, secret, public = make_key(kind), folder / f"{name}.key", folder / f"{name}.pub"
    how: Any = serialization.NoEncryption()
    if password is not None:
        how = serialization.BestAvailableEncryption(password.encode())
    form = serialization.PrivateFormat.PKCS8
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, how))
    secret.chmod(0o600)
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, spki))
    return secret, public


def write_certificate(folder: Path, secret: Path, days: tuple[int, int]) -> Path:
    """A certificate that the key in `secret` makes of itself, from `days[0]` to `days[1]` from today."""
    key: Any = serialization.load_pem_private_key(secret.read_bytes(), None)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "release")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    path = folder / f"{secret.stem}{days[1]}.crt"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path


@dataclass(frozen=True)
class Certified:
    """A key and its certificate."""

    key: Any
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def write_key(self, path: Path) -> Path:
        """The private key, that only its owner may read."""
        form, bare = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        path.write_bytes(self.key.private_bytes(serialization.Encoding.PEM, form, bare))
        path.chmod(0o600)
        return path


def key_usage(*names: str) -> x509.KeyUsage:
    """What a key may be used for, alone."""
    kinds = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
    )
    of_authority = ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{kind: kind in names for kind in (*kinds, *of_authority)})


SIGNING = (
    (x509.BasicConstraints(False, None), True),
    (key_usage("digital_signature"), True),
    (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False),
)
"""The extensions of whoever signs, and whether they are critical."""


def issuing(longest: int | None = None) -> tuple[tuple[x509.ExtensionType, bool], ...]:
    """The extensions of an authority with at most `longest` authorities below it."""
    return ((x509.BasicConstraints(True, longest), True), (key_usage("key_cert_sign", "crl_sign"), True))


def certify(
    name: str,
    issuer: Certified | None = None,
    extensions: Any = None,
    *,
    names: tuple[x509.GeneralName, ...] = (),
    kind: str = "p256",
    days: tuple[float, float] = (-1, 9),
    key: Any = None,
    hashed: Any = None,
) -> Certified:
    """A new key, or `key`, with a certificate by `issuer`, or by itself."""
    key = key or make_key(kind)
    signs, now = issuer.key if issuer is not None else key, datetime.now(timezone.utc)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for extension, critical in issuing() if extensions is None else extensions:
        builder = builder.add_extension(extension, critical)
    digest = None if isinstance(signs, ed25519.Ed25519PrivateKey) else hashed or hashes.SHA256()
    return Certified(key, builder.sign(signs, digest))

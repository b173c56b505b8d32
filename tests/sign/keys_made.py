"""Keys for the tests, as openssl writes them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

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

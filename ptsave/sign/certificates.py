"""X.509 certificates: an authority that the user trusts says who owns a key.

`cryptography.x509.verification` is for TLS servers and clients: it takes no Ed25519 keys, and code cannot
tell why it refuses a chain. So this module builds on the primitives of `cryptography`.

Source: RFC 5280, sections 4.2 (extensions) and 6.1 (paths). Stricter: each certificate must be valid today,
and the signer's must be for digital signatures. Simpler: certificates that constrain names or policies are
refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptsave.core.finding import Finding, Kind
from ptsave.errors import CorruptError, LimitError, UsageError
from ptsave.sign.authority import CHECK, Judged, Signatory
from ptsave.sign.envelope import Envelope
from ptsave.sign.keys import KINDS, PublicKey, is_used_here, key_id_of, library, signed

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

MAX_CERTIFICATES = 16
"""Cap on the certificates that come with one signature."""
_MIN_RSA_BITS = 2048
_CODE_SIGNING, _ANY_USAGE = "1.3.6.1.5.5.7.3.3", "2.5.29.37.0"
_KNOWN = frozenset({"2.5.29.14", "2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.35", "2.5.29.37"})
"""Extensions that may be critical: key identifiers, key usages, alternative names, basic constraints."""
_HINT = "give certificates in PEM, the signer's first, then who issued it"


@dataclass(frozen=True)
class CertifiedName:
    """Trusts signatures of certain names, for which authorities have issued certificates."""

    roots: Sequence[Certificate]
    names: Sequence[str]

    @property
    def name(self) -> str:
        """As messages show it."""
        return f"{' or '.join(self.names)} ({', '.join(map(title_of, self.roots))})"

    def judge(self, envelope: Envelope, where: str) -> Iterator[Judged]:
        """Check the certificate that came with a signature, and the signature against its key."""
        if not envelope.chain:
            return
        try:
            chain = certificates_of(envelope.chain, where)
        except (CorruptError, LimitError) as error:
            yield 0, Finding(CHECK, "fail", "", Kind.MALFORMED_SIGNATURE, facts={"why": error.what})
            return
        who = title_of(chain[0])
        if (why := refused(chain, self.roots, self.names)) is not None:
            yield 0, Finding(CHECK, "fail", "", why.kind, facts=why.facts)
        elif not signed(chain[0].public_key(), envelope.signatures[0].value, envelope.message):
            yield 0, Finding(CHECK, "fail", "", Kind.FORGED_SIGNATURE, facts={"key": who})
        else:
            yield 0, Signatory(who, f"certificate: {who}")


@dataclass(frozen=True)
class Refused:
    """Why a certificate is refused: the cause, and the facts for the message."""

    kind: Kind
    facts: dict[str, str | int | float]


def read_certificates(data: bytes, path: Path) -> list[Certificate]:
    """The certificates in the content of a PEM file, in its order.

    Raises: UsageError; RefusedError without the library.
    """
    library()
    from cryptography.x509 import load_pem_x509_certificates

    try:
        found = load_pem_x509_certificates(data)
    except ValueError:
        raise UsageError("is not a certificate in PEM", str(path), _HINT) from None
    if len(found) > MAX_CERTIFICATES:
        raise UsageError(f"has more than {MAX_CERTIFICATES} certificates", str(path), _HINT)
    return found


def certificates_of(chain: Sequence[bytes], where: str) -> list[Certificate]:
    """The certificates in DER that come with a signature.

    Raises: CorruptError; LimitError.
    """
    from cryptography.x509 import load_der_x509_certificate

    if len(chain) > MAX_CERTIFICATES:
        raise LimitError("certificates", MAX_CERTIFICATES, len(chain), where)
    try:
        return [load_der_x509_certificate(one) for one in chain]
    except _malformed():
        raise CorruptError("a certificate of the signature cannot be read", where, _HINT) from None


def is_authority(certificate: Certificate) -> bool:
    """Whether a certificate may issue others."""
    from cryptography.x509 import BasicConstraints

    return bool(_value(certificate, BasicConstraints, "ca"))


def names_of(certificate: Certificate) -> list[str]:
    """The names in a certificate: e-mail addresses, URIs and host names; without any, the common name.

    A malformed certificate has no names.
    """
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    kinds = (x509.RFC822Name, x509.UniformResourceIdentifier, x509.DNSName)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [name for kind in kinds for name in names.get_values_for_type(kind)]
    except x509.ExtensionNotFound:
        pass
    except _malformed():
        return []
    try:
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except _malformed():
        return []
    return [str(one.value) for one in common]


def title_of(certificate: Certificate) -> str:
    """The name of a certificate, as messages show it."""
    if names := names_of(certificate):
        return ", ".join(names)
    try:
        return certificate.subject.rfc4514_string() or "nobody"
    except _malformed():
        return "nobody"


def path_of(
    chain: Sequence[Certificate], roots: Sequence[Certificate], now: datetime
) -> list[Certificate] | None:
    """The certificates from `chain[0]` to one of `roots`, each issued by the next; else None."""
    path = [chain[0]]
    trusted = sorted(roots, key=lambda root: not _is_in_date(root, now))
    while path[-1] not in roots:
        issuers = [one for one in (*trusted, *chain[1:]) if one not in path and _has_issued(one, path[-1])]
        if not issuers:
            return None
        path.append(issuers[0])
    return path


def refused(
    chain: Sequence[Certificate],
    roots: Sequence[Certificate],
    names: Sequence[str],
    now: datetime | None = None,
) -> Refused | None:
    """Why the certificate `chain[0]` is refused; None where `roots` vouch that it is for one of `names`."""
    now = now or datetime.now(timezone.utc)
    who = title_of(chain[0])
    path = path_of(chain, roots, now)
    if path is None:
        return Refused(Kind.CERTIFICATE_FOREIGN, {"who": who, "root": ", ".join(map(title_of, roots))})
    for above, certificate in enumerate(path):
        if why := _why_unfit(certificate, above):
            return Refused(Kind.CERTIFICATE_UNFIT, {"who": title_of(certificate), "why": why})
        if not _is_in_date(certificate, now):
            days = {"begin": f"{certificate.not_valid_before_utc:%Y-%m-%d}"}
            days["end"] = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
            return Refused(Kind.KEY_OUT_OF_DATE, {"key": title_of(certificate), **days})
    if not {*names} & {*names_of(chain[0])}:
        return Refused(Kind.OTHER_IDENTITY, {"who": who, "expected": " or ".join(names)})
    return None


def why_unfit(certificate: Certificate) -> str:
    """Why the key of a certificate cannot sign models today; empty where it can."""
    is_in_date = _is_in_date(certificate, datetime.now(timezone.utc))
    return _why_unfit(certificate, 0) or ("" if is_in_date else "it does not hold today")


def is_key_of(certificate: Certificate, key: PublicKey) -> bool:
    """Whether a certificate is for `key`."""
    return bool(key_id_of(certificate.public_key()) == key.key_id)


def der(certificate: Certificate) -> bytes:
    """A certificate's bytes."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)


def _why_unfit(certificate: Certificate, above: int) -> str:
    """Why a certificate is not valid in a path; `above`: its distance from the signer's, which is 0."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import rsa

    try:
        extensions = list(certificate.extensions)
        is_weak = isinstance(certificate.signature_hash_algorithm, (hashes.SHA1, hashes.MD5))
        key = certificate.public_key()
    except _malformed():
        return "it is malformed"
    critical = [one.oid.dotted_string for one in extensions if one.critical]
    unknown = [oid for oid in critical if oid not in _KNOWN]
    constrained = any(isinstance(one.value, x509.NameConstraints) for one in extensions)
    usages = _value(certificate, x509.ExtendedKeyUsage)
    oids = [usage.dotted_string for usage in usages] if usages is not None else [_ANY_USAGE]
    if is_weak:
        return "its signature is of a hash that collides"
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _MIN_RSA_BITS:
        return f"its key is of less than {_MIN_RSA_BITS} bits"
    if constrained:
        return "it constrains names, which is not checked here"
    if unknown:
        return f"it has a critical extension that is unknown here ({unknown[0]})"
    if _CODE_SIGNING not in oids and _ANY_USAGE not in oids:
        return "it is not for code signing"
    if not above:
        if is_authority(certificate):
            return "it is of an authority, which issues certificates and signs no model"
        if not is_used_here(key):
            return f"its key is not {KINDS}"
        may_sign = _value(certificate, x509.KeyUsage, "digital_signature")
        return "" if may_sign else "it is not for digital signatures"
    if not is_authority(certificate):
        return "it is of no authority, and has issued another"
    if _value(certificate, x509.KeyUsage, "key_cert_sign") is False:
        return "it may not issue certificates"
    longest = _value(certificate, x509.BasicConstraints, "path_length")
    if longest is not None and above - 1 > longest:
        return f"it may have {longest} authorities below it, and has {above - 1}"
    return ""


def _value(certificate: Certificate, kind: Any, name: str | None = None) -> Any:
    """An extension, or a field of one; None where it is missing or malformed."""
    from cryptography.x509 import ExtensionNotFound

    try:
        value = certificate.extensions.get_extension_for_class(kind).value
    except ExtensionNotFound:
        return None
    except _malformed():
        return None
    return value if name is None else getattr(value, name)


def _is_in_date(certificate: Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _has_issued(issuer: Certificate, certificate: Certificate) -> bool:
    """Whether `issuer` has issued `certificate`: by its names, and by the signature."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except _malformed():
        return False
    return True


def _malformed() -> tuple[type[Exception], ...]:
    """The exceptions that the library raises for a malformed certificate."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    of_parts = x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType
    return (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, *of_parts)

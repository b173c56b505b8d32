"""Signing without a key of one's own: sigstore issues a short-lived certificate for a login.

A public log records the signature and its time. The library `sigstore` logs a CI job in, asks for the
certificate, writes to the log, and verifies all three.

Source: `sigstore.sign`, `sigstore.verify`, `sigstore.oidc` of sigstore-python 4.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptsave.core.finding import Finding, Kind
from ptsave.errors import LossyError, RefusedError, install
from ptsave.own_process import without_messages
from ptsave.sign.authority import CHECK, Judged, Signatory
from ptsave.sign.bundle import WRAPPED
from ptsave.sign.certificates import title_of
from ptsave.sign.envelope import PAYLOAD_TYPE, Envelope

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from sigstore.models import ClientTrustConfig, TrustedRoot
    from sigstore.oidc import IdentityToken

WORD = "sigstore"
"""The value of `--sign` and `--signed-by` that names the public instance of sigstore."""
TOKEN = "SIGSTORE_IDENTITY_TOKEN"
"""The environment variable with the signer's identity token; sigstore's own command reads it, too."""
_MOST_BYTES = 24 * 1024
"""Bytes by which a bundle may exceed its statement: certificate, log entry and proof take some 8 KiB."""
_ROOT = "application/vnd.dev.sigstore.trustedroot"


@dataclass(frozen=True)
class LoggedIdentity:
    """Trusts signatures of certain names, which an instance of sigstore and a login provider vouch for."""

    root: TrustedRoot
    names: Sequence[str]
    issuer: str

    @property
    def name(self) -> str:
        """As messages show it."""
        return f"{' or '.join(self.names)} ({self.issuer})"

    def judge(self, envelope: Envelope, where: str) -> Iterator[Judged]:
        """Check that one of the names has signed, and that the log has the signature."""
        if not envelope.bundle:
            return
        from sigstore.models import Bundle
        from sigstore.verify import Verifier

        asked = _Asked(self.names, self.issuer)
        try:
            with without_messages():
                bundle = Bundle.from_json(envelope.bundle)
                kind, payload = Verifier(trusted_root=self.root).verify_dsse(bundle, asked)
        except (
            Exception
        ) as error:  # whatever it raises for bytes that somebody sent, it has not verified them
            if asked.other:
                facts = {"who": asked.other, "expected": self.name}
                yield 0, Finding(CHECK, "fail", "", Kind.OTHER_IDENTITY, facts=facts)
            else:
                yield 0, Finding(CHECK, "fail", "", Kind.NOT_LOGGED, facts={"why": _said(error)})
            return
        if (kind, payload) != (PAYLOAD_TYPE, envelope.payload):
            facts = {"why": "sigstore reads another statement in it"}
            yield 0, Finding(CHECK, "fail", "", Kind.MALFORMED_SIGNATURE, facts=facts)
            return
        who = f"{title_of(bundle.signing_certificate)} ({self.issuer})"
        yield 0, Signatory(who, f"sigstore: {who}")


class _Asked:
    """The policy that the library applies to a valid certificate: one of these names, from this issuer."""

    def __init__(self, names: Sequence[str], issuer: str) -> None:
        from sigstore.verify import policy

        self._policy = policy.AnyOf([policy.Identity(identity=name, issuer=issuer) for name in names])
        self.other = ""
        """The name in the certificate, where it is none of those that were asked for."""

    def verify(self, cert: Certificate) -> None:
        """Raises: VerificationError where the certificate has another name."""
        from sigstore.errors import VerificationError

        try:
            self._policy.verify(cert)
        except VerificationError:
            self.other = f"{title_of(cert)} ({_issuer_of(cert)})"
            raise


@dataclass(frozen=True)
class SigningIdentity:
    """The identity that this process signs with: that of a CI job, or of the owner of a token."""

    config: ClientTrustConfig
    title: str

    @property
    def names(self) -> Sequence[str]:
        """The signer's name, as messages show it."""
        return [self.title]

    def draft(self, payload: bytes) -> Mapping[str, Any]:
        """A placeholder as long as the longest result of `sign`."""
        return _wrapped(bytes(2 * len(payload) + _MOST_BYTES))

    def sign(self, payload: bytes) -> Mapping[str, Any]:
        """The bundle as a record has it.

        Raises: RefusedError; LossyError.
        """
        data = json.dumps(self.bundle(payload), separators=(",", ":")).encode()
        if len(data) > 2 * len(payload) + _MOST_BYTES:
            what = f"the bundle of sigstore has {len(data)} bytes, more than there is room for"
            raise LossyError(what, "", "sign with a key")
        return _wrapped(data)

    def bundle(self, payload: bytes) -> Mapping[str, Any]:
        """Sign, and enter the signature in the log.

        Raises: RefusedError.
        """
        from sigstore.dsse import Statement
        from sigstore.sign import SigningContext

        try:
            context = SigningContext.from_trust_config(self.config)
            with context.signer(_token()) as signer:  # a new one: they last some minutes
                made: dict[str, Any] = json.loads(signer.sign_dsse(Statement(payload)).to_json())
        except Exception as error:
            raise _failed("sigstore has not signed", error) from error
        return made


def signing_identity(where: Path) -> SigningIdentity:
    """The identity of this process, for the instance of sigstore at `where`: WORD, or a client trust config.

    Raises: RefusedError without the library, a network or an identity; UsageError for what is no config.
    """
    _require()
    from sigstore.models import ClientTrustConfig

    try:
        if str(where) == WORD:
            config = ClientTrustConfig.production()
        else:
            config = ClientTrustConfig.from_json(where.read_text("utf-8"))
    except Exception as error:
        raise _failed("there is no config of sigstore to sign by", error, str(where)) from error
    token = _token()
    return SigningIdentity(config, f"{token.identity} ({token.federated_issuer})")


def logged_identity(where: Path, names: Sequence[str], issuer: str) -> LoggedIdentity:
    """Trust in signatures of `names` that the instance of sigstore at `where` vouches for. Needs no network.

    Raises: RefusedError without the library, or for what is no trusted root.
    """
    _require()
    from sigstore.models import ClientTrustConfig, TrustedRoot

    try:
        if str(where) == WORD:
            with without_messages():  # it would say that no network is asked
                root = ClientTrustConfig.production(offline=True).trusted_root
        elif _ROOT in (text := where.read_text("utf-8")) and "signingConfig" not in text:
            root = TrustedRoot.from_file(str(where))
        else:
            root = ClientTrustConfig.from_json(text).trusted_root
    except Exception as error:
        raise _failed("it is not a trusted root of sigstore", error, str(where)) from error
    return LoggedIdentity(root, names, issuer)


def _token() -> IdentityToken:
    """The identity token of this process: from the environment, or from the CI job.

    Raises: RefusedError.
    """
    from sigstore.oidc import IdentityToken, detect_credential

    try:
        if (token := os.environ.get(TOKEN) or detect_credential()) is not None:
            return IdentityToken(token)
    except Exception as error:
        raise _failed("what says who signs is refused", error) from error
    what = "nothing here says who signs: this is no CI job that may ask for its identity"
    hint = f"grant the job `id-token: write`, or put a token into {TOKEN}: sigstore get-identity-token"
    raise RefusedError(what, "", hint)


def _require() -> None:
    """Raises: RefusedError where the library is not installed."""
    if find_spec("sigstore") is None:
        raise RefusedError("identities need sigstore, which is not installed", "", install("sigstore"))


def _failed(what: str, error: Exception, where: str = "") -> RefusedError:
    """The error for what the library raised, of any kind: it has errors for much, and lets others pass."""
    return RefusedError(f"{what}: {_said(error)}", where, "sigstore says what it lacks; or sign with a key")


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _wrapped(data: bytes) -> Mapping[str, Any]:
    return {WRAPPED: b64encode(data).decode()}


def _issuer_of(certificate: Certificate) -> str:
    """The login provider that the certificate names.

    Source: Fulcio, `docs/oid-info.md`: 1.3.6.1.4.1.57264.1.1 is the issuer as plain bytes.
    """
    found = [one.value for one in certificate.extensions if one.oid.dotted_string == "1.3.6.1.4.1.57264.1.1"]
    return str(getattr(found[0], "value", b"").decode("utf-8", "replace")) if found else "no issuer"

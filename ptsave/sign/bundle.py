"""Sigstore bundles: an envelope with what says whose its signature is, as model_signing and sigstore write.

Source: sigstore's protobuf-specs, `sigstore_bundle.proto`: `mediaType`, `verificationMaterial` (a key's hint,
a chain of certificates, or one certificate with entries of a log) and `dsseEnvelope`.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ptsave.core.strict_json import parse_object
from ptsave.errors import CorruptError
from ptsave.sign.envelope import Envelope, from_base64, parse_envelope, to_json

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
WRAPPED = "sigstore"
"""The key under which a record has a bundle with entries of a log, in base64: its quotes cannot be counted
before it is made, and a container may need two bytes for each."""
_HINT = "sign the files again: model_signing sign key, or ptsave convert --sign KEY --bundle FILE"


def parse_signed(document: Any, where: str) -> Envelope:
    """What is signed, as a record or a file of its own has it: a bare envelope, or a bundle.

    Raises: CorruptError, LimitError.
    """
    document = unwrapped(document, where)
    is_bundle = isinstance(document, dict) and "mediaType" in document
    return parse_bundle(document, where) if is_bundle else parse_envelope(document, where)


def unwrapped(document: Any, where: str) -> Any:
    """What a record has under WRAPPED, as a file of its own has it; another document as it is.

    Raises: CorruptError, LimitError.
    """
    if not isinstance(document, Mapping) or document.keys() != {WRAPPED}:
        return document
    try:
        data = from_base64(document[WRAPPED])
    except (TypeError, ValueError, AttributeError):
        raise CorruptError("the bundle is not base64", where, _HINT) from None
    return parse_object(data, "the bundle", where)


def parse_bundle(document: Mapping[str, Any], where: str) -> Envelope:
    """The envelope in a bundle.

    Raises: CorruptError, LimitError.
    """
    material: Any = document.get("verificationMaterial")
    envelope = parse_envelope(document.get("dsseEnvelope"), where)
    if len(envelope.signatures) != 1:
        raise CorruptError("the bundle does not have one signature", where, _HINT)
    try:
        if material.get("tlogEntries") or material.get("timestampVerificationData"):
            return replace(envelope, bundle=json.dumps(document))  # whose versions their library knows
        if document["mediaType"] != MEDIA_TYPE:
            raise CorruptError(f"the bundle is of the type {document['mediaType']!r:.80}", where, _HINT)
        if (chain := material.get("x509CertificateChain")) is not None:
            certificates = [from_base64(one["rawBytes"]) for one in chain["certificates"]]
            if certificates:
                return replace(envelope, chain=certificates)
        elif (hint := material["publicKey"]["hint"]) and isinstance(hint, str):
            return replace(
                envelope, signatures=[replace(envelope.signatures[0], key_id=hint)], is_by_hint=True
            )
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    raise CorruptError("the bundle does not say whose its signature is", where, _HINT)


def bundle_json(material: Mapping[str, Any], payload: bytes, key_id: str, signature: bytes) -> dict[str, Any]:
    """The JSON of a bundle; `material`: what says whose the signature is."""
    return {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {**material, "tlogEntries": []},
        "dsseEnvelope": to_json(payload, [(key_id, signature)]),
    }


def material_of_chain(chain: Sequence[bytes]) -> dict[str, Any]:
    """What says whose a signature is, with certificates in DER: the signer's, and those above it."""
    return {
        "x509CertificateChain": {"certificates": [{"rawBytes": b64encode(one).decode()} for one in chain]}
    }

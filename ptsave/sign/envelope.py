"""Envelopes: a statement with its signatures, in the format of DSSE.

Source: DSSE (Dead Simple Signing Envelope) v1: the JSON of `payload`, `payloadType` and `signatures`, and the
pre-authentication encoding that is signed.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptsave.core.address import Location
from ptsave.core.strict_json import parse_object
from ptsave.errors import CorruptError, LimitError
from ptsave.storage.opening import open_file

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_ENVELOPES = 64
"""Cap on the statements in one record or file."""
MAX_SIGNATURES = 64
"""Cap on the signatures of all statements: each that names a trusted key is checked."""
MAX_BYTES = 4 * 1024 * 1024
"""Cap on one statement, and on a file with some."""
_HINT = "the file is damaged or was changed; sign the checkpoint again"


@dataclass(frozen=True)
class Signature:
    """One signature of a statement."""

    key_id: str
    """The key that it claims to be by; nothing proves that."""
    value: bytes


@dataclass(frozen=True)
class Envelope:
    """A statement and its signatures, none of them checked."""

    payload: bytes
    signatures: Sequence[Signature]
    is_by_hint: bool = False
    """Whether it names its key as bundles do: see `PublicKey.hint`."""
    chain: Sequence[bytes] = ()
    """The certificates in DER that came with its signature, the signer's first."""
    bundle: str = ""
    """The JSON of its bundle, where an entry of a log came with it."""

    @property
    def message(self) -> bytes:
        """What was signed."""
        return encoded(self.payload)


def encoded(payload: bytes) -> bytes:
    """The pre-authentication encoding of a statement, which is unique for its bytes and type."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def to_json(payload: bytes, signatures: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
    """The JSON of an envelope; `signatures`: pairs of key id and signature."""
    return {
        "payload": b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": key_id, "sig": b64encode(value).decode()} for key_id, value in signatures],
    }


def parse_envelope(document: Any, where: str) -> Envelope:
    """Read the JSON of an envelope.

    Raises: CorruptError, LimitError.
    """
    try:
        if document["payloadType"] != PAYLOAD_TYPE:
            raise CorruptError(
                f"the signed payload is of the type {document['payloadType']!r:.60}", where, _HINT
            )
        payload = from_base64(document["payload"])
        listed = document["signatures"]
        if not isinstance(listed, list):
            raise TypeError(listed)
        if len(listed) > MAX_SIGNATURES:
            raise LimitError("signatures", MAX_SIGNATURES, len(listed), where)
        found = [Signature(one.get("keyid") or "", from_base64(one["sig"])) for one in listed]
        if not all(isinstance(one.key_id, str) for one in found):
            raise TypeError(found)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CorruptError("the signature is not a DSSE envelope", where, _HINT) from None
    return Envelope(payload, found)


def from_base64(text: str) -> bytes:
    """Base64 in its only spelling. Raises: ValueError, LimitError."""
    if len(text) > MAX_BYTES:
        raise LimitError("signature_bytes", MAX_BYTES, len(text))
    data = b64decode(text.encode("ascii"), validate=True)
    if b64encode(data).decode() != text:
        raise ValueError("not the canonical base64")
    return data


def read_envelope(where: Location) -> Mapping[str, Any]:
    """The JSON of the envelope in a file of its own.

    Raises: MissingFileError and what opening raises; CorruptError; LimitError.
    """
    with open_file(where) as file:
        if file.size_bytes > MAX_BYTES:
            raise LimitError("signature_bytes", MAX_BYTES, file.size_bytes, str(where))
        data = file.read_at(0, file.size_bytes)
    return parse_object(data, "the signature", str(where))


def file_bytes(document: Mapping[str, Any]) -> bytes:
    """The content of a file of its own for an envelope."""
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"

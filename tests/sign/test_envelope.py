"""Envelopes: one spelling, one type, and the bytes that are signed."""

from __future__ import annotations

from base64 import b64encode, urlsafe_b64encode
from pathlib import Path
from typing import Any

import pytest

from ptsave.errors import CorruptError, LimitError
from ptsave.sign.envelope import MAX_SIGNATURES, encoded, file_bytes, parse_envelope, read_envelope, to_json

PAYLOAD = b"\xfb\xff\xfe{}"
DOCUMENT = to_json(PAYLOAD, [("key", b"\xfb\xff" * 5)])


def with_signature(**fields: Any) -> dict[str, Any]:
    return {**DOCUMENT, "signatures": [{**DOCUMENT["signatures"][0], **fields}]}


def test_what_is_signed() -> None:
    """Source: DSSE, protocol.md: `DSSEv1 LEN(type) type LEN(payload) payload`, lengths in bytes."""
    assert encoded(b"hello") == b"DSSEv1 28 application/vnd.in-toto+json 5 hello"


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "signature"
    path.write_bytes(file_bytes(DOCUMENT))
    found = parse_envelope(read_envelope(path), "")
    assert found.payload == PAYLOAD
    assert [(one.key_id, one.value) for one in found.signatures] == [("key", b"\xfb\xff" * 5)]
    assert parse_envelope(with_signature(keyid=None), "").signatures[0].key_id == ""


@pytest.mark.parametrize(
    "document",
    [
        {**DOCUMENT, "payload": urlsafe_b64encode(PAYLOAD).decode()},
        {**DOCUMENT, "payload": b64encode(PAYLOAD).decode() + "\n"},
        {**DOCUMENT, "payload": " " + b64encode(PAYLOAD).decode()},
        {**DOCUMENT, "payload": b64encode(PAYLOAD).decode() + "===="},
        {**DOCUMENT, "payload": "é"},
        {**DOCUMENT, "payloadType": "application/vnd.in-toto+JSON"},
        {**DOCUMENT, "payloadType": "application/vnd.in-toto+json; charset=utf-8"},
        {**DOCUMENT, "signatures": None},
        with_signature(sig=DOCUMENT["signatures"][0]["sig"].rstrip("=")),
        with_signature(sig="+/+="),
        with_signature(keyid=7),
        [DOCUMENT],
        "",
    ],
    ids=range(13),
)
def test_another_spelling_is_refused(document: Any) -> None:
    with pytest.raises(CorruptError):
        parse_envelope(document, "")


def test_a_key_that_repeats_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "signature"
    path.write_bytes(file_bytes(DOCUMENT).replace(b'{"payload"', b'{"payload":"","payload"', 1))
    with pytest.raises(CorruptError, match="two keys 'payload'"):
        read_envelope(path)


def test_there_are_caps(tmp_path: Path) -> None:
    with pytest.raises(LimitError):
        parse_envelope({**DOCUMENT, "signatures": DOCUMENT["signatures"] * (MAX_SIGNATURES + 1)}, "")
    path = tmp_path / "signature"
    with open(path, "wb") as file:
        file.truncate(5 * 1024 * 1024)
    with pytest.raises(LimitError):
        read_envelope(path)

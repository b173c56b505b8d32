"""An instance of sigstore on this machine: an authority that certifies logins, and logs of both.

It answers what the library of sigstore asks of Fulcio (`/api/v2/signingCert`), of Rekor 1
(`/api/v1/log/entries`) and of a GitHub job's login, with keys of its own. It
believes each token, for whoever asks it is a test.

Source: RFC 6962, sections 3.2 and 3.3 (timestamps); Fulcio's `docs/oid-info.md`; Rekor's `openapi.yaml`.
"""

from __future__ import annotations

import json
import struct
import time
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.sign.keys_made import key_usage

GITHUB = "https://token.actions.githubusercontent.com"
WORKFLOW = "https://github.com/acme/net/.github/workflows/release.yml@refs/tags/v1"
_ISSUER, _ISSUER_2, _TIMESTAMPS = "1.3.6.1.4.1.57264.1.1", "1.3.6.1.4.1.57264.1.8", "1.3.6.1.4.1.11129.2.4.2"
_SINCE = "2024-01-01T00:00:00Z"


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.DER, form)


def _text(data: bytes) -> str:
    return b64encode(data).decode()


def _der(tag: int, data: bytes) -> bytes:
    size = len(data)
    length = (
        bytes([size])
        if size < 128
        else bytes([0x81, size])
        if size < 256
        else b"\x82" + size.to_bytes(2, "big")
    )
    return bytes([tag]) + length + data


def token(identity: str = WORKFLOW, issuer: str = GITHUB, seconds: int = 600) -> str:
    """A login's token, with a signature that nobody here checks."""
    now = int(time.time())
    claims = {"aud": "sigstore", "sub": identity, "iss": issuer, "iat": now - 60, "exp": now + seconds}
    parts = [{"alg": "RS256"}, claims]
    coded = [urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*coded, "c2ln"])


@dataclass
class Instance:
    """The keys of an instance, and what its servers answer."""

    url: str = ""
    root_key: ec.EllipticCurvePrivateKey = field(default_factory=_key)
    ct_key: ec.EllipticCurvePrivateKey = field(default_factory=_key)
    log_key: ec.EllipticCurvePrivateKey = field(default_factory=_key)
    minutes: float = 10
    """For how long a certificate holds."""
    requests: list[str] = field(default_factory=list)
    identity: str = WORKFLOW

    def __post_init__(self) -> None:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Local Fulcio")])
        now = datetime.now(timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.root_key.public_key())
        )
        self.root = (
            builder.serial_number(7)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=9))
            .add_extension(x509.BasicConstraints(True, 0), True)
            .add_extension(key_usage("key_cert_sign", "crl_sign"), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.root_key.public_key()), False)
            .sign(self.root_key, hashes.SHA256())
        )

    def certify(self, request: dict[str, Any], bearer: str) -> dict[str, Any]:
        """What Fulcio answers: a certificate for the key of a request, with the CT log's timestamp in it."""
        claims = json.loads(urlsafe_b64decode(bearer.split(".")[1] + "=="))
        csr = x509.load_pem_x509_csr(b64decode(request["certificateSigningRequest"]))
        now = datetime.now(timezone.utc)
        identity, issuer = claims["sub"], claims["iss"].encode()
        is_mail = "@" in identity and "/" not in identity
        name = x509.RFC822Name(identity) if is_mail else x509.UniformResourceIdentifier(identity)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.root.subject)
            .public_key(csr.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(minutes=self.minutes))
            .add_extension(key_usage("digital_signature"), True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.root_key.public_key()), False
            )
            .add_extension(x509.SubjectAlternativeName([name]), True)
            .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(_ISSUER), issuer), False)
            .add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier(_ISSUER_2), _der(0x0C, issuer)), False
            )
        )
        before = builder.sign(self.root_key, hashes.SHA256()).tbs_certificate_bytes
        stamped = _der(0x04, self._timestamps(before, int(now.timestamp() * 1000)))
        made = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(_TIMESTAMPS), stamped), False
        ).sign(self.root_key, hashes.SHA256())
        chain = [one.public_bytes(serialization.Encoding.PEM).decode() for one in (made, self.root)]
        return {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}}

    def _timestamps(self, tbs: bytes, milliseconds: int) -> bytes:
        entry = sha256(_spki(self.root_key)).digest() + len(tbs).to_bytes(3, "big") + tbs
        signed = struct.pack("!BBQH", 0, 0, milliseconds, 1) + entry + b"\0\0"
        signature = self.ct_key.sign(signed, ec.ECDSA(hashes.SHA256()))
        stamp = b"\0" + sha256(_spki(self.ct_key)).digest() + struct.pack("!QH", milliseconds, 0)
        stamp += b"\4\3" + len(signature).to_bytes(2, "big") + signature
        return (len(stamp) + 2).to_bytes(2, "big") + len(stamp).to_bytes(2, "big") + stamp

    def log(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """What Rekor answers: the entry, as the only one of the log, with what it promises and proves."""
        content = proposed["spec"]["proposedContent"]
        envelope = json.loads(content["envelope"])
        spec = {
            "envelopeHash": {
                "algorithm": "sha256",
                "value": sha256(content["envelope"].encode()).hexdigest(),
            },
            "payloadHash": {
                "algorithm": "sha256",
                "value": sha256(b64decode(envelope["payload"])).hexdigest(),
            },
            "signatures": [
                {"signature": envelope["signatures"][0]["sig"], "verifier": content["verifiers"][0]}
            ],
        }
        body = rfc8785.dumps({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
        root, log_id = sha256(b"\0" + body).digest(), sha256(_spki(self.log_key)).digest()
        entry = {
            "body": _text(body),
            "integratedTime": int(time.time()),
            "logID": log_id.hex(),
            "logIndex": 0,
        }
        note = f"local - 1\n1\n{_text(root)}\n"
        signed = _text(log_id[:4] + self.log_key.sign(note.encode(), ec.ECDSA(hashes.SHA256())))
        proof = {
            "logIndex": 0,
            "rootHash": root.hex(),
            "treeSize": 1,
            "hashes": [],
            "checkpoint": f"{note}\n\u2014 local {signed}\n",
        }
        promise = self.log_key.sign(rfc8785.dumps(entry), ec.ECDSA(hashes.SHA256()))
        verification = {"signedEntryTimestamp": _text(promise), "inclusionProof": proof}
        return {"00": {**entry, "verification": verification}}

    def trusted_root(self) -> dict[str, Any]:
        """What verifiers of this instance trust."""
        logs = []
        for key in (self.log_key, self.ct_key):
            public = {
                "rawBytes": _text(_spki(key)),
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                "validFor": {"start": _SINCE},
            }
            log_id = {"keyId": _text(sha256(_spki(key)).digest())}
            logs.append(
                {"baseUrl": self.url, "hashAlgorithm": "SHA2_256", "publicKey": public, "logId": log_id}
            )
        root = {"rawBytes": _text(self.root.public_bytes(serialization.Encoding.DER))}
        authority = {
            "subject": {"organization": "local", "commonName": "Local Fulcio"},
            "uri": self.url,
            "certChain": {"certificates": [root]},
            "validFor": {"start": _SINCE},
        }
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": logs[:1],
            "certificateAuthorities": [authority],
            "ctlogs": logs[1:],
            "timestampAuthorities": [],
        }

    def write(self, folder: Path) -> tuple[Path, Path]:
        """A client trust config for whoever signs, and a trusted root for whoever verifies."""
        service = [
            {"url": self.url, "majorApiVersion": 1, "validFor": {"start": _SINCE}, "operator": "local"}
        ]
        signing = {
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": service,
            "oidcUrls": service,
            "rekorTlogUrls": service,
            "tsaUrls": [],
            "rekorTlogConfig": {"selector": "ANY"},
            "tsaConfig": {"selector": "ANY"},
        }
        config = {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": self.trusted_root(),
            "signingConfig": signing,
        }
        paths = folder / "config.json", folder / "root.json"
        for path, document in zip(paths, (config, config["trustedRoot"]), strict=True):
            path.write_text(json.dumps(document))
        return paths


@contextmanager
def instance() -> Iterator[Instance]:
    """Run the servers of a new instance."""
    here = Instance()

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            here.requests.append(self.path)
            if self.path == "/api/v2/signingCert":
                self._answer(here.certify(data, self.headers["Authorization"].removeprefix("Bearer ")))
            else:
                self._answer(here.log(data))

        def do_GET(self) -> None:
            """A job's login, as GitHub's runner answers, or where people log in."""
            here.requests.append(self.path)
            ends = dict.fromkeys(("authorization_endpoint", "token_endpoint"), here.url)
            is_login = self.path.startswith("/token")
            self._answer({"value": token(here.identity)} if is_login else ends)

        def _answer(self, document: dict[str, Any]) -> None:
            data = json.dumps(document).encode()
            self.send_response(201 if self.command == "POST" else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    here.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

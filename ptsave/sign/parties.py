"""Signers: bare keys, and a key with a certificate. `identities` has the one that uses sigstore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ptsave.sign.bundle import bundle_json, material_of_chain
from ptsave.sign.envelope import encoded, to_json
from ptsave.sign.keys import PrivateKey, short

Document = Mapping[str, Any]


class Party(Protocol):
    """A signer. It makes one envelope, or one bundle, of a statement."""

    @property
    def names(self) -> Sequence[str]:
        """The signer's names, as messages show them."""

    def sign(self, payload: bytes) -> Document:
        """Sign the statement; returns the envelope or bundle that goes into the record."""

    def draft(self, payload: bytes) -> Document:
        """A placeholder as long as the longest result of `sign`. Nothing is signed."""

    def bundle(self, payload: bytes) -> Document:
        """Sign the statement; returns a bundle that `model_signing` reads."""


@dataclass(frozen=True)
class Keys:
    """Private keys whose public keys the verifier has. All signatures go into one envelope."""

    keys: Sequence[PrivateKey]

    @property
    def names(self) -> Sequence[str]:
        return [short(key.public.key_id) for key in self.keys]

    def sign(self, payload: bytes) -> Document:
        message = encoded(payload)
        return to_json(payload, [(key.public.key_id, key.sign(message)) for key in self.keys])

    def draft(self, payload: bytes) -> Document:
        return to_json(payload, [(key.public.key_id, bytes(key.most_bytes)) for key in self.keys])

    def bundle(self, payload: bytes) -> Document:
        (key,) = self.keys
        return bundle_json({"publicKey": {"hint": key.public.hint}}, payload, "", key.sign(encoded(payload)))


@dataclass(frozen=True)
class Certified:
    """A private key with a certificate that names its owner."""

    key: PrivateKey
    chain: Sequence[bytes]
    """The certificates in DER: the key's own first, then its issuers'."""
    title: str

    @property
    def names(self) -> Sequence[str]:
        return [self.title]

    def sign(self, payload: bytes) -> Document:
        return self._bundle(payload, self.key.sign(encoded(payload)))

    def draft(self, payload: bytes) -> Document:
        return self._bundle(payload, bytes(self.key.most_bytes))

    def bundle(self, payload: bytes) -> Document:
        return self.sign(payload)

    def _bundle(self, payload: bytes, signature: bytes) -> Document:
        return bundle_json(material_of_chain(self.chain), payload, self.key.public.key_id, signature)

"""Who signs: bare keys, and a key with a certificate. `identities` has those whom sigstore vouches for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ptsave.sign.bundle import bundle_json, material_of_chain
from ptsave.sign.envelope import encoded, to_json
from ptsave.sign.keys import PrivateKey, short

Document = Mapping[str, Any]


class Party(Protocol):
    """Whoever makes one envelope or bundle of a statement."""

    @property
    def names(self) -> Sequence[str]:
        """Who that is, for a person."""

    def sign(self, payload: bytes) -> Document:
        """The statement, signed, as a record has it."""

    def draft(self, payload: bytes) -> Document:
        """The longest that `sign` could give, with nothing signed."""

    def bundle(self, payload: bytes) -> Document:
        """The statement, signed, in the form that `model_signing` reads."""


@dataclass(frozen=True)
class Keys:
    """Keys that verifiers have, whose signatures stand in one envelope."""

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
    """A key of which a certificate says whose it is."""

    key: PrivateKey
    chain: Sequence[bytes]
    """Certificates in DER, the key's first."""
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

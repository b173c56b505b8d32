"""What a user trusts to tell who has signed: a key, a certificate authority, an instance of sigstore."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ptsave.core.finding import Finding
from ptsave.sign.envelope import Envelope

CHECK = "signature"


@dataclass(frozen=True)
class Signatory:
    """A signer whose signature is valid."""

    name: str
    """As messages show it."""
    id: str
    """As `ptsave.lock` has it."""


Judged = tuple[int, Signatory | Finding]
"""The number of a signature in its envelope, and its signer or the reason why it is refused."""


class Authority(Protocol):
    """Something that a user trusts to tell who has signed."""

    @property
    def name(self) -> str:
        """As messages show it."""

    def judge(self, envelope: Envelope, where: str) -> Iterator[Judged]:
        """Check the signatures in `envelope` that claim this authority; others are passed over."""

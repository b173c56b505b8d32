"""Who vouches for a signature: a key, an authority that issues certificates, an instance of sigstore."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ptsave.core.finding import Finding
from ptsave.sign.envelope import Envelope

CHECK = "signature"


@dataclass(frozen=True)
class Signatory:
    """Who has signed."""

    name: str
    """For a person."""
    id: str
    """For `ptsave.lock`."""


Judged = tuple[int, Signatory | Finding]
"""The number of a signature in its envelope, and who made it, or why it does not count."""


class Authority(Protocol):
    """Whom a user trusts to say who has signed."""

    @property
    def name(self) -> str:
        """For a person."""

    def judge(self, envelope: Envelope, where: str) -> Iterator[Judged]:
        """Judge those signatures that say that they are by it, or under it."""

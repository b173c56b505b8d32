"""The nodes of a program as digests: which of them are those that were exported."""

from __future__ import annotations

from ptsave.core.values.digest import DEFAULT, hasher

Nodes = dict[str, tuple[str, str]]
"""Name of a node → its digest, and its operator and module for a person."""
INTERFACE = "inputs, outputs and operators' versions"
"""What the digests call that part of a program that is no node."""


def digest(data: bytes) -> str:
    """Sixteen hexadecimal digits: they find what was changed, and prove nothing against a forger."""
    return hasher(DEFAULT, data).hexdigest()[:16]

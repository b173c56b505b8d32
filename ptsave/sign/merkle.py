"""Merkle trees: one hash over a list, against which a part can be proved without the rest.

Source: RFC 9162, section 2.1.1: SHA-256 of a leaf after a byte 0, of two children after a byte 1; the left
side of a split has the largest power of two that is less than the number of leaves.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256


def root(leaves: Iterable[bytes]) -> str:
    """The Merkle tree hash of `leaves` in lower-case hexadecimal."""
    level = [sha256(b"\0" + leaf).digest() for leaf in leaves]
    if not level:
        return sha256().hexdigest()
    while len(level) > 1:
        pairs = [
            sha256(b"\1" + left + right).digest()
            for left, right in zip(level[::2], level[1::2], strict=False)
        ]
        level = pairs + level[len(pairs) * 2 :]  # a last one without a partner goes up as it is
    return level[0].hex()

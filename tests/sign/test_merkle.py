"""Merkle roots, held to the definition of RFC 9162 and to a published value."""

from __future__ import annotations

from hashlib import sha256

import pytest

from ptsave.sign.merkle import root


def defined(leaves: list[bytes]) -> bytes:
    """The root as RFC 9162 defines it, by recursion."""
    if len(leaves) <= 1:
        return sha256(b"\0" + leaves[0]).digest() if leaves else sha256().digest()
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\1" + defined(leaves[:half]) + defined(leaves[half:])).digest()


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 31, 33, 100])
def test_it_is_the_definition(number: int) -> None:
    leaves = [str(i).encode() for i in range(number)]
    assert root(leaves) == defined(leaves).hex()


def test_a_published_root() -> None:
    """Source: the test vectors of Certificate Transparency, `merkletree_test.go`."""
    leaves = [bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243")]
    assert root(leaves) == "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef"


def test_a_node_is_no_leaf() -> None:
    one, two = (sha256(b"\0" + leaf).digest() for leaf in (b"a", b"b"))
    assert root([one + two]) != root([b"a", b"b"])

"""Digests: their definition, checked against the libraries themselves."""

from __future__ import annotations

import pytest

from ptsave.core.dtypes import BY_NAME
from ptsave.core.values.digest import HEX_DIGITS, hasher, prefix


def test_the_definition() -> None:
    assert prefix(BY_NAME["float32"], (10, 5)) == b"float32[10,5]\n"
    assert prefix(BY_NAME["bool"], ()) == b"bool[]\n"


@pytest.mark.parametrize("algorithm", HEX_DIGITS)
def test_every_algorithm_has_its_width(algorithm: str) -> None:
    assert len(hasher(algorithm, b"x").hexdigest()) == HEX_DIGITS[algorithm]
    with pytest.raises(KeyError):
        hasher("md5")

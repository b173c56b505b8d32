"""Digests: their definition, held against the libraries themselves."""

from __future__ import annotations

import hashlib

import pytest
import torch
import xxhash

from ptsave.core.dtypes import BY_NAME
from ptsave.core.values.digest import HEX_DIGITS, hasher, prefix, tensor_digest
from tests.formats.write_cases import bits, checkpoint_of


def entry(tensor: torch.Tensor):  # type: ignore[no-untyped-def]
    return checkpoint_of({"t": tensor}).tensors["t"]


def test_the_definition() -> None:
    assert prefix(BY_NAME["float32"], (10, 5)) == b"float32[10,5]\n"
    assert prefix(BY_NAME["bool"], ()) == b"bool[]\n"
    tensor = torch.arange(6, dtype=torch.int16).reshape(2, 3)
    message = b"int16[2,3]\n" + b"".join(bytes([i, 0]) for i in range(6))
    assert tensor_digest(entry(tensor), "sha256") == hashlib.sha256(message).hexdigest()
    assert tensor_digest(entry(tensor)) == xxhash.xxh3_128_hexdigest(message)


@pytest.mark.parametrize("algorithm", HEX_DIGITS)
def test_every_algorithm_has_its_width(algorithm: str) -> None:
    assert len(hasher(algorithm, b"x").hexdigest()) == HEX_DIGITS[algorithm]
    with pytest.raises(KeyError):
        hasher("md5")


def test_bytes_layout_and_not_storage_count() -> None:
    matrix = torch.arange(200_000.0).reshape(500, 400)
    assert tensor_digest(entry(matrix.t())) == tensor_digest(entry(matrix.t().contiguous()))
    assert tensor_digest(entry(matrix[3:5])) == tensor_digest(entry(matrix[3:5].clone()))
    flat = matrix.reshape(-1)
    assert len({tensor_digest(entry(t)) for t in (matrix, flat, matrix.view(torch.int32))}) == 3
    digest = hasher("xxh3_128", prefix(BY_NAME["float32"], (500, 400)))
    digest.update(bits(matrix))
    assert digest.hexdigest() == tensor_digest(entry(matrix))

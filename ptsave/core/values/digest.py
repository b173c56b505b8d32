"""Digests of tensors: what a tensor's bytes are, whatever the file that holds them.

A digest is taken over `DTYPE[SIZE,SIZE,…]\\n` in ASCII (`float32[10,5]\\n`; `float32[]\\n` for a tensor
without dimensions) and then the tensor's elements, contiguous, row-major, little-endian: those of its values,
of a conjugate or negative view as if it were resolved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Protocol

from ptsave.core.dtypes import DType
from ptsave.core.nodes import TensorEntry
from ptsave.core.record import Digests, Record

DEFAULT = "xxh3_128"
HEX_DIGITS = {"xxh3_128": 32, "blake3": 64, "sha256": 64}
"""Algorithm → width of its digest in hexadecimal digits: fixed, so that a header can be laid out first."""


class Hasher(Protocol):
    """A digest in the making."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object: ...
    def hexdigest(self) -> str: ...


def prefix(dtype: DType, shape: tuple[int, ...]) -> bytes:
    """What is digested before the elements, so that the same bytes under another shape differ."""
    return f"{dtype.name}[{','.join(map(str, shape))}]\n".encode("ascii")


def hasher(algorithm: str, start: bytes = b"") -> Hasher:
    """A new digest that has already seen `start`.

    Raises: KeyError for an algorithm that is not in HEX_DIGITS.
    """
    return _factory(algorithm)(start)


@cache
def _factory(algorithm: str) -> Callable[[bytes], Hasher]:
    # Imported only when used: each of them costs milliseconds at start-up.
    if algorithm == "xxh3_128":
        import xxhash

        return xxhash.xxh3_128
    if algorithm == "blake3":
        import blake3

        return blake3.blake3
    if algorithm == "sha256":
        import hashlib

        return hashlib.sha256
    raise KeyError(algorithm)


def cast_since(entries: Iterable[TensorEntry], record: Record | None) -> list[str]:
    """The names of those tensors whose digests are excused: of a dtype that the record says none had."""
    digests = record.digests.tensors if record is not None and record.digests is not None else {}
    return [e.name for e in entries if record is not None and e.name in digests and record.was_cast(e.dtype)]


def recorded_digests(entries: Iterable[TensorEntry], record: Record | None) -> Digests:
    """The digests of `record` that speak for `entries`, by their names in the checkpoint."""
    digests = record.digests if record is not None else None
    if record is None or digests is None or digests.algorithm not in HEX_DIGITS:
        return Digests("")
    known = (e.name for e in entries if e.name in digests.tensors and not record.was_cast(e.dtype))
    return Digests(digests.algorithm, {name: digests.tensors[name] for name in known})

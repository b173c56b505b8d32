"""Numbers that are the same on every platform, Python, NumPy and torch: SplitMix64, read by position.

torch promises no fixed stream between versions or devices, and NumPy promises one for its bit
generators but not for what `Generator` makes of the bits. So both halves are written out here:

- Bits: output `i` of SplitMix64, mix(key + (i + 1) * 0x9E3779B97F4A7C15) modulo 2**64, a function of the
  position alone (counter-based). It is three multiplications of 64-bit integers, which every platform
  computes alike, and passes BigCrush. `key` is the first 8 bytes, little-endian, of the SHA-256 of
  "SEED/STREAM" in UTF-8: two inputs of one seed get numbers that have nothing to do with each other.
- Uniform floats: the upper 53 bits times 2**-53, which is exact; then low + (high - low) * u.
- Normal floats: number `i` is the sum of the twelve 32-bit halves of outputs 6i to 6i + 5, less its mean,
  times 2**-32 (Irwin-Hall). That is integer arithmetic and one exact scaling; no logarithm or cosine,
  which differ between libraries. Mean 0 and variance 1 - 2**-64 are right, values stay within ±6, and
  the tails beyond 3 standard deviations are lighter than a true normal's. Then mean + std * z.
- Integers: low + bits modulo (high - low).

What remains is IEEE-754 double arithmetic, one rounded operation at a time. NumPy does the same operation
on whole arrays, never two fused into one.

Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; the mixing
constants are those of Vigna's splitmix64.c.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

GAMMA = 0x9E3779B97F4A7C15
CHUNK_ELEMENTS = 1 << 13
"""Generated at once: small enough that every step stays in the processor's cache."""
DRAWS_PER_NORMAL = 6
"""64-bit outputs that one normal number takes: twelve halves."""


def key(seed: int, stream: str) -> int:
    """The 64-bit start of the numbers of `seed` for `stream` (an input's name)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], "little")


def bits(start: int, first: int, count: int) -> npt.NDArray[np.uint64]:
    """Outputs `first` to `first + count` of the generator that starts at `start` (see `key`)."""
    import numpy as np

    offset = (start + (first + 1) * GAMMA) % 2**64
    x = np.arange(count, dtype=np.uint64)
    x *= np.uint64(GAMMA)
    x += np.uint64(offset)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def fill_uniform(out: npt.NDArray[Any], low: float, high: float, seed: int, stream: str) -> None:
    """Fill `out` (flat, a float dtype) with numbers evenly from [low, high]; `high` only by rounding."""
    import numpy as np

    start = key(seed, stream)
    for begin, end in _chunks(len(out)):
        unit = (bits(start, begin, end - begin) >> np.uint64(11)) * np.float64(2.0**-53)
        unit *= high - low
        unit += low
        out[begin:end] = unit


def fill_normal(out: npt.NDArray[Any], mean: float, std: float, seed: int, stream: str) -> None:
    """Fill `out` (flat, a float dtype) with numbers of that mean and standard deviation."""
    import numpy as np

    start = key(seed, stream)
    n = DRAWS_PER_NORMAL
    for begin, end in _chunks(len(out)):
        x = bits(start, n * begin, n * (end - begin))
        halves = ((x & np.uint64(2**32 - 1)) + (x >> np.uint64(32))).view(np.int64)
        total = halves[0::n].copy()
        for draw in range(1, n):
            total += halves[draw::n]
        total -= n * (2**32 - 1)
        z = total * np.float64(2.0**-32)
        z *= std
        z += mean
        out[begin:end] = z


def fill_integers(out: npt.NDArray[Any], low: int, high: int, seed: int, stream: str) -> None:
    """Fill `out` (flat, an integer dtype) with numbers of [low, high); each fits the dtype."""
    import numpy as np

    start = key(seed, stream)
    span = high - low
    for begin, end in _chunks(len(out)):
        x = bits(start, begin, end - begin)
        if span < 2**64:
            x %= np.uint64(span)
        x += np.uint64(low % 2**64)  # two's complement: a negative low wraps around to where it belongs
        out[begin:end] = x.astype(out.dtype)


def _chunks(count: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, count, CHUNK_ELEMENTS):
        yield begin, min(begin + CHUNK_ELEMENTS, count)

"""The portable generator: pinned numbers, a second implementation in plain integers, and its statistics."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from ptsave.core.values import random

MASK = 2**64 - 1


def splitmix64(state: int) -> int:
    """The output for a state that was already advanced, as Vigna's splitmix64.c has it."""
    z = state & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def normals(count: int, **kwargs: float) -> npt.NDArray[np.float64]:
    out = np.empty(count)
    random.fill_normal(out, **{"mean": 0.0, "std": 1.0, **kwargs}, seed=0, stream="x")
    return out


def uniforms(count: int, low: float = 0.0, high: float = 1.0, stream: str = "x") -> npt.NDArray[np.float64]:
    out = np.empty(count)
    random.fill_uniform(out, low, high, 0, stream)
    return out


def integers(count: int, low: int, high: int, dtype: str = "int64", seed: int = 0) -> npt.NDArray[np.generic]:
    out = np.empty(count, dtype)
    random.fill_integers(out, low, high, seed, "x")
    return out


def test_published_outputs() -> None:
    """The first outputs of splitmix64.c from the state 1234567, as other libraries test them."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert random.bits(1234567, 0, 4).tolist() == expected


def test_pinned() -> None:
    """What recorded inputs are made of: these numbers may never change."""
    assert random.key(0, "x") == 5154572919779615919
    assert [value.hex() for value in normals(4).tolist()] == [
        "-0x1.b96c220000000p-3",
        "-0x1.e5b6219000000p-2",
        "-0x1.6498cd8000000p-3",
        "0x1.4266988f00000p+0",
    ]
    assert [value.hex() for value in uniforms(3).tolist()] == [
        "0x1.943a92fe044dep-1",
        "0x1.905912d20d7e9p-1",
        "0x1.e44c38b19b185p-1",
    ]
    assert integers(8, -5, 100).tolist() == [84, 53, 63, 73, 24, 52, 77, 69]


def test_against_plain_integers() -> None:
    """Every step again with Python's integers and exact fractions."""
    count = 2 * random.CHUNK_ELEMENTS + 3
    start = int.from_bytes(hashlib.sha256(b"0/x").digest()[:8], "little")
    places = [0, 1, random.CHUNK_ELEMENTS - 1, random.CHUNK_ELEMENTS, count - 1]

    def output(i: int) -> int:
        return splitmix64(start + (i + 1) * random.GAMMA)

    unit, normal = uniforms(count), normals(count)
    small, large = integers(count, -7, 1000), integers(count, 0, 2**64, "uint64")
    for i in places:
        assert Fraction(unit[i]) == Fraction(output(i) >> 11, 2**53)
        halves = [half for j in range(6 * i, 6 * i + 6) for half in divmod(output(j), 2**32)]
        assert Fraction(normal[i]) == Fraction(sum(halves) - 6 * (2**32 - 1), 2**32)
        assert small[i] == -7 + output(i) % 1007
        assert large[i] == output(i)


def test_a_number_does_not_depend_on_how_many_there_are() -> None:
    assert np.array_equal(normals(10), normals(30_000)[:10])
    assert np.array_equal(uniforms(10), uniforms(30_000)[:10])


def test_seeds_and_streams_are_apart() -> None:
    assert len({random.key(seed, stream) for seed in range(-50, 50) for stream in ("", "x", "y", "0")}) == 400
    assert abs(np.corrcoef(uniforms(10_000), uniforms(10_000, stream="y"))[0, 1]) < 0.05


def test_statistics() -> None:
    count = 1_000_000
    z, u = normals(count), uniforms(count)
    sigma = count**-0.5
    assert abs(z.mean()) < 4 * sigma
    assert abs(z.var() - 1) < 6 * sigma
    assert abs((z**3).mean()) < 12 * sigma
    assert (z**4).mean() == pytest.approx(2.9, abs=0.05)
    assert abs(np.corrcoef(z[1:], z[:-1])[0, 1]) < 4 * sigma
    assert 4 < abs(z).max() < 6
    assert abs(u.mean() - 0.5) < 4 * sigma * 12**-0.5
    assert 0 <= u.min() < 1e-4 < 1 - 1e-4 < u.max() < 1
    histogram = np.bincount(integers(count, 0, 10).astype(int), minlength=10)
    assert abs(histogram - count / 10).max() < 5 * (count / 10) ** 0.5


def test_ranges() -> None:
    z = normals(1000, mean=5.0, std=0.0)
    assert set(z) == {5.0}
    u = uniforms(1000, -3.0, -2.0)
    assert u.min() >= -3
    assert u.max() <= -2
    assert set(integers(1000, -2, 1).tolist()) == {-2, -1, 0}
    assert set(integers(100, 255, 256, "uint8").tolist()) == {255}
    extremes = integers(1000, -(2**63), 2**63)
    assert extremes.min() < -(2**62)
    assert extremes.max() > 2**62
    assert integers(1000, 2**63, 2**64, "uint64").min() >= 2**63
    assert integers(0, 0, 1).tolist() == []


def test_float32_is_float64_rounded() -> None:
    out = np.empty(1000, np.float32)
    random.fill_normal(out, 0.0, 1.0, 0, "x")
    assert np.array_equal(out, normals(1000).astype(np.float32))


def test_importing_it_takes_no_numpy() -> None:
    script = "import sys, ptsave.core.values.random; print('numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"

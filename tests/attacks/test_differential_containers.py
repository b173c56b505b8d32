"""Containers that ptsave says yes to, read by the real readers of each: they read the same values."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuzz import containers

SOURCES: dict[str, Callable[[int], Iterator[bytes]]] = {
    "zip": containers.zips,
    "safetensors": containers.safetensors,
}
NUM_FILES = {"zip": 16_000, "safetensors": 40_000}
"""As many as take 20 s of CPU time each."""


def hold(name: str, seed: int, count: int, path: Path) -> int:
    """Returns how many of `count` files ptsave said yes to."""
    accepted = 0
    for number, data in enumerate(itertools.islice(SOURCES[name](seed), count)):
        path.write_bytes(data)
        found = containers.read_by_ptsave(path)
        if found is not None:
            accepted += 1
            try:
                containers.compare(path, found)
            except containers.DifferenceError as error:
                kept = path.with_name(f"{name}-{seed}-{number}")
                kept.write_bytes(data)
                raise AssertionError(f"{kept}: {error}") from error
    return accepted


@pytest.mark.parametrize("name", SOURCES)
def test_a_few(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert hold(name, 0, 150, tmp_path / "file.bin") > 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("name", SOURCES)
def test_many(name: str, seed: int, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert hold(name, seed, NUM_FILES[name] // 4, tmp_path / "file.bin") > 100

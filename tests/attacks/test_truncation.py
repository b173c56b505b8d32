"""A file that ends early is an error wherever it ends, or reads exactly as the whole did."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ptsave.errors import PtsaveError, UnreadableError
from ptsave.formats import open_checkpoint
from tests.support import some

from .samples import BUILT, LIBRARIES, Contents, Sample, contents


def read(path: Path) -> Contents:
    with open_checkpoint(path) as checkpoint:
        return contents(checkpoint)


def assert_helpful(error: PtsaveError) -> None:
    assert error.exit_code in (3, 4)
    assert error.what
    assert error.hint


def assert_truncations_are_noticed(sample: Sample) -> int:
    """Cut each part at each byte, or at some, from its end to its beginning; returns the number of cuts."""
    whole = read(sample.path)
    tries = 0
    for part in sample.parts:
        data = part.read_bytes()
        for length in some(range(len(data) - 1, -1, -1)):
            os.truncate(part, length)
            tries += 1
            try:
                found = read(sample.path)
            except UnreadableError as error:
                assert_helpful(error)
                continue
            assert found == whole, (part.name, length)
        part.write_bytes(data)
    assert read(sample.path) == whole
    return tries


@pytest.mark.parametrize("make", BUILT.values(), ids=BUILT)
def test_every_length_of_a_small_file(make: Callable[[Path], Sample], tmp_path: Path) -> None:
    assert assert_truncations_are_noticed(make(tmp_path)) >= len(some(range(80)))


@pytest.mark.slow
@pytest.mark.parametrize("make", LIBRARIES.values(), ids=LIBRARIES)
def test_every_length_of_what_the_libraries_write(make: Callable[[Path], Sample], tmp_path: Path) -> None:
    assert assert_truncations_are_noticed(make(tmp_path)) >= 80

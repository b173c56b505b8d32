"""One flipped bit, wherever it is, never makes a crash, and never passes where checksums are."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ptsave.core.finding import Finding
from ptsave.errors import PtsaveError
from ptsave.formats import open_checkpoint
from ptsave.verbs.checks.bytes import bytes_
from ptsave.verbs.checks.subject import Subject
from tests.support import some

from .samples import BUILT, LIBRARIES, Contents, Sample, contents, spans
from .test_truncation import assert_helpful

MAX_SECONDS = 2


def flips(part: Path, bits: range) -> Iterator[tuple[int, int]]:
    """Flip each of `bits` of each byte, or of some bytes, one at a time; yields the byte and the bit."""
    fd = os.open(part, os.O_RDWR)
    try:
        for position in some(range(os.fstat(fd).st_size)):
            byte = os.pread(fd, 1, position)[0]
            for bit in bits:
                os.pwrite(fd, bytes([byte ^ 1 << bit]), position)
                yield position, bit
            os.pwrite(fd, bytes([byte]), position)
    finally:
        os.close(fd)


def look(path: Path) -> tuple[Contents, set[Finding]]:
    """What is in the file, and what `verify --checks bytes` finds wrong with it."""
    with open_checkpoint(path) as checkpoint:
        found = bytes_(Subject(checkpoint))
        return contents(checkpoint), {finding for finding in found if finding.level == "fail"}


def assert_flips_are_met(sample: Sample, bits: range = range(8)) -> int:
    """Flip `bits` of every byte of every part; returns the number of flips."""
    whole, known = look(sample.path)
    assert {finding.where for finding in known} == sample.compressed
    with open_checkpoint(sample.path) as checkpoint:
        data = list(spans(checkpoint))
    tries = 0
    for part in sample.parts:
        in_data = {at for path, start, count in data if path == part for at in range(start, start + count)}
        for position, bit in flips(part, bits):
            tries += 1
            started = time.perf_counter()
            try:
                found, wrong = look(sample.path)
            except PtsaveError as error:
                assert_helpful(error)
            else:
                if sample.is_protected:
                    assert not (wrong <= known and position in in_data), (part.name, position, bit)
                    assert found[0] == whole[0] or not wrong <= known, (part.name, position, bit)
            assert time.perf_counter() - started < MAX_SECONDS, (part.name, position, bit)
    assert look(sample.path)[0] == whole
    return tries


@pytest.mark.parametrize("make", BUILT.values(), ids=BUILT)
def test_one_bit_of_every_byte(make: Callable[[Path], Sample], tmp_path: Path) -> None:
    """The quick form: the bit that turns letters' case, which two readers may see differently."""
    assert assert_flips_are_met(make(tmp_path), range(5, 6)) >= len(some(range(80)))


@pytest.mark.slow
@pytest.mark.parametrize("make", [*BUILT.values(), *LIBRARIES.values()], ids=[*BUILT, *LIBRARIES])
def test_every_bit(make: Callable[[Path], Sample], tmp_path: Path) -> None:
    assert assert_flips_are_met(make(tmp_path)) >= 8 * 80

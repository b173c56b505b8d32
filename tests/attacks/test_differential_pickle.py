"""No pickle means something to ptsave and something else to a real reader.

`scripts/fuzz --target differential` does the same for as long as asked.
"""

from __future__ import annotations

from random import Random

import pytest

from .pickle_programs import CASES, program
from .pickle_readers import check

NUM_PROGRAMS = 12_000


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    check(CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_programs(seed: int) -> None:
    random = Random(seed)
    num_accepted = sum(check(program(random)) for _ in range(NUM_PROGRAMS // 4))
    assert num_accepted > NUM_PROGRAMS // 40  # or it compares nothing

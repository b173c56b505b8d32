"""No pickle means something to ptsave and something else to a real reader.

`scripts/fuzz --target differential` does the same for as long as asked.
"""

from __future__ import annotations

from random import Random

import pytest

from ptsave.errors import CorruptError
from ptsave.formats.pickle import inert
from ptsave.formats.torch.objects import torch_shapes

from .pickle_programs import CASES, program
from .pickle_readers import READERS, check, read

NUM_PROGRAMS = 60_000
"""As many as take 20 s of CPU time."""


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    check(CASES[name])


def test_the_frame_that_hides_a_call_is_one() -> None:
    name, reader = "opcode across its frame's end", "C, from a stream"  # as torch.load reads a zip's
    base, open_ = READERS[reader]
    assert (("os", "system"), ("os", "system")) in read(reader, base, CASES[name], open_, None).names
    with pytest.raises(CorruptError, match="crosses the end of its frame"):
        inert.load(CASES[name], 0, torch_shapes(), "test")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_programs(seed: int) -> None:
    random = Random(seed)
    num_accepted = sum(check(program(random)) for _ in range(NUM_PROGRAMS // 4))
    assert num_accepted > NUM_PROGRAMS // 40  # or it compares nothing

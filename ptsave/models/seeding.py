"""Random numbers that code of the user's draws from the generators of the process, and that nobody misses.

torch, NumPy and Python each have one generator for all threads. Its state is put aside meanwhile and put
back; two threads that did so at once would put back each other's, so they take turns.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ptsave.storage.turn import Turn

turn = Turn()
"""To be held while the state of a generator is exchanged."""


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Random numbers of torch, NumPy and Python from `seed`; the states are put back afterwards."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if in_use else ()
    with turn, torch.random.fork_rng(devices=list(devices)):
        python, numpy = random.getstate(), np.random.get_state()
        if seed is not None:
            # Built without devices, torch would still note three stack traces for the day that one appears.
            has_devices = torch.accelerator.current_accelerator() is not None
            (torch if has_devices else torch.default_generator).manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)

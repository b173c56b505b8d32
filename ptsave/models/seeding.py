"""Random numbers that code of the user's draws from the generators of the process, and that nobody misses.

torch, NumPy and Python each have one generator for all threads. Its state is put aside meanwhile and put
back; two threads that did so at once would put back each other's, so they take turns.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from ptsave.storage.turn import Turn

turn = Turn()
"""To be held while the state of a generator is exchanged."""


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Random numbers of torch, NumPy and Python from `seed`; the states are put back afterwards."""
    kind = torch.accelerator.current_accelerator()
    module: Any = torch.get_device_module(kind) if kind is not None else None
    in_use = module is not None and getattr(module, "is_initialized", lambda: True)()  # mps always is
    waiting = nullcontext() if in_use or module is None else first_use_kept(module)
    fork = torch.random.fork_rng(
        devices=list(range(module.device_count())) if in_use else [],
        device_type=kind.type if kind is not None else "cuda",
    )
    with turn, waiting, fork:
        python, numpy = random.getstate(), np.random.get_state()
        if seed is not None:
            # Built without devices, torch would still note three stack traces for the day that one appears.
            (torch if module is not None else torch.default_generator).manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def first_use_kept(module: Any) -> Iterator[None]:
    """What `module` (`torch.cuda`, `torch.xpu`) does at the first use of its devices is what it was before.

    torch notes the last seed that it is given before a device is used, and gives it to the device then: one
    that is given in the block would come in place of the user's. Where the first use is in the block, the
    devices get the state of a first use again after it.

    Source: torch/cuda/__init__.py (`_lazy_call`, `_lazy_init`), torch/_utils.py (`_LazySeedTracker`).
    """
    seeds = vars(module._lazy_seed_tracker)
    kept, calls = dict(seeds), list(module._queued_calls)
    try:
        yield
    finally:
        seeds.update(kept)
        if module.is_initialized():
            module.manual_seed_all(torch.Generator(module.current_device()).initial_seed())
            for call, _ in (*calls, *filter(None, kept["call_order"])):
                call()
        else:
            module._queued_calls[:] = calls

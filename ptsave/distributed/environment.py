"""What torchrun tells a process of itself. Imports no torch, for commands that do not need it."""

from __future__ import annotations

import os
import time
from datetime import timedelta

from ptsave.errors import UsageError

_NAMES = ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Source: torch/distributed/elastic/agent/server/local_elastic_agent.py of torch 2.13 (`worker_env`)."""

FIRST_SECONDS = 30.0
"""How long ranks that are started together may be apart in reading their command line."""


def is_under_torchrun() -> bool:
    """Whether torchrun started this process as one of its ranks."""
    return all(os.environ.get(name) for name in _NAMES)


def is_first_rank() -> bool:
    """Whether this process speaks for all: rank 0, or a process without other ranks."""
    return not is_under_torchrun() or os.environ["RANK"] == "0"


def let_first_speak() -> None:
    """On another rank, wait for rank 0 to say what all have found: torchrun ends all when one has ended.

    Returns after FIRST_SECONDS, when it seems that rank 0 has nothing to say.
    """
    if not is_first_rank():
        time.sleep(FIRST_SECONDS)


def timeout(default_seconds: float) -> timedelta:
    """How long a rank waits for the others in one collective: what PTSAVE_TIMEOUT says, or the default.

    Raises: UsageError.
    """
    text = os.environ.get("PTSAVE_TIMEOUT", "")
    try:
        seconds = float(text) if text else default_seconds
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise UsageError(f"{text!r} is not a number of seconds", "PTSAVE_TIMEOUT", "for example: 600")
    return timedelta(seconds=seconds)

"""What torchrun tells a process of itself. Imports no torch, for commands that do not need it."""

from __future__ import annotations

import os
from datetime import timedelta

from ptsave.errors import UsageError

_NAMES = ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Source: torch/distributed/elastic/agent/server/local_elastic_agent.py of torch 2.13 (`worker_env`)."""


def is_under_torchrun() -> bool:
    """Whether torchrun started this process as one of its ranks."""
    return all(os.environ.get(name) for name in _NAMES)


def is_first_rank() -> bool:
    """Whether this process speaks for all: rank 0, or a process without other ranks."""
    return not is_under_torchrun() or os.environ["RANK"] == "0"


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

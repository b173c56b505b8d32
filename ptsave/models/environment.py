"""Where a checkpoint is written: versions and machine."""

from __future__ import annotations

import platform

import torch

import ptsave


def environment() -> dict[str, str]:
    """Where a checkpoint was written, for its record."""
    return {
        "ptsave": ptsave.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
    }

"""Caps on what a file may ask for: they grow with the file."""

from __future__ import annotations

SMALL_FILE_TENSORS = 75_000
"""Cap on the tensors that a file lists which is no larger than `room` 1 allows.

Real ones have far fewer: torch.save takes some 280 bytes for each beside its values, so that 60,000 fit;
safetensors takes 80, which leaves 140 for the values of each of 75,000. Mixtures of experts with hundreds of
thousands are gigabytes long."""


def room(file_bytes: int) -> int:
    """How many times the usual caps a file may have: they grow with its size, so that a large one is read.

    1 below 16 MiB: what ptsave promises of a small file's cost holds with the caps as they are.
    """
    return 1 + file_bytes // (16 * 1024**2)

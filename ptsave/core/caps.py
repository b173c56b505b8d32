"""Caps on what a file may ask for: they grow with the file."""

from __future__ import annotations


def room(file_bytes: int) -> int:
    """How many times the usual caps a file may have: they grow with its size, so that a large one is read.

    1 below 16 MiB: what ptsave promises of a small file's cost holds with the caps as they are.
    """
    return 1 + file_bytes // (16 * 1024**2)

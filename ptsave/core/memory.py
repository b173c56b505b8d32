"""Giving memory back."""

from __future__ import annotations

import sys


def give_back() -> None:
    """Have the C library give freed memory back to the system, where it is one (glibc) that keeps it.

    Freed weights would otherwise stay beside the next ones: what threads have freed is not found again by
    others.
    """
    if sys.platform == "linux":
        import ctypes  # takes milliseconds that `inspect` has no use for

        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

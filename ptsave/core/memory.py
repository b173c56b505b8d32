"""Making many objects at once, and giving memory back."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Do not look for garbage meanwhile.

    Opening a checkpoint makes millions of objects and no garbage; looking for some, again and again,
    takes a third of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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

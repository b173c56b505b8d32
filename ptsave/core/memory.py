"""Making many objects at once, and giving memory back."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_is_own_process = False


@contextmanager
def own_process() -> Iterator[None]:
    """In the block, this process is a command of ptsave's, so that what is global in it may be set."""
    global _is_own_process
    before, _is_own_process = _is_own_process, True
    try:
        yield
    finally:
        _is_own_process = before


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Do not look for garbage meanwhile, in a process of ptsave's own.

    Opening a checkpoint makes millions of objects and no garbage; looking for some, again and again,
    takes a third of the time. In somebody else's process the collector is for all threads, and stays on.
    """
    if not _is_own_process:
        yield
        return
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

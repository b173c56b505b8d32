"""What is global in a process: set in a command of ptsave's, and left alone in somebody else's.

Streams, filters of warnings and the garbage collector are for all threads. Two that set and restore them at
the same time leave them set for good.
"""

from __future__ import annotations

import gc
import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

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
    takes a third of the time.
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


@contextmanager
def prints_to_stderr() -> Iterator[None]:
    """Let what the user's code prints go to stderr: stdout is for a command's data.

    In somebody's own process it is printed where they print.
    """
    if not _is_own_process:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep what torch says of itself from whoever runs a command.

    In somebody's own process their filters decide about it.
    """
    if not _is_own_process:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def without_messages() -> Iterator[None]:
    """Keep what a library prints, logs and warns of from whoever runs a command.

    In somebody's own process it is their streams and loggers that get it.
    """
    if not _is_own_process:
        yield
        return
    import logging  # few commands need it

    before = logging.root.manager.disable
    nowhere = io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(nowhere), redirect_stderr(nowhere), without_warnings():
            yield
    finally:
        logging.disable(before)

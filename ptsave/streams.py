"""The standard streams of a command: open, able to print every name, and heard out at the end."""

from __future__ import annotations

import codecs
import os
import sys
from typing import TextIO

from ptsave.errors import WriteError

_DESCRIPTORS = 3


def prepare() -> None:
    """Open what the caller has closed, so that no file of ours gets the number of a standard stream."""
    for number in range(_DESCRIPTORS):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number, which is this one
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors=_PLAINLY)  # type: ignore[union-attr]


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """What is printed where the stream's encoding (Windows' cp1252, ASCII) lacks a character."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    known = "".join(_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking)
    return known, error.end


_PLAINLY = "ptsave.plainly"
_ASCII = {"→": "->", "…": "...", "×": "x", "·": ".", "└": "`", "├": "|", "│": "|", "─": "-"}
_ASCII |= dict(zip("▁▂▃▄▅▆▇█", "_.:-=*#@", strict=True))
codecs.register_error(_PLAINLY, _plainly)


def flush() -> None:
    """Print what is still in the buffers.

    Raises: WriteError when the data on stdout was lost. What cannot be said on stderr is not.
    """
    try:
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (`| head`) has what it wanted; a verdict is the same without it
        discard(sys.stdout)
    except OSError as error:
        discard(sys.stdout)
        raise lost(error) from None


def lost(error: OSError) -> WriteError:
    """The error for data that stdout does not take."""
    return WriteError(f"cannot print: {error.strerror}", "stdout", "see where the output goes")


def discard(stream: TextIO) -> None:
    """Let the stream go nowhere, so that what its buffer holds does not fail again when Python exits."""
    fd = os.open(os.devnull, os.O_WRONLY)
    os.dup2(fd, stream.fileno())
    os.close(fd)

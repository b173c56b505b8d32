"""Leaving when told to, at any moment of a command: SIGINT, SIGTERM, and what else ends a process by default.

The first one unwinds the command like an interrupt, and what it has not finished is removed on the way. A
second one, or one where nothing can be unwound, removes it here and ends the process at once. Nothing can
be unwound in an import, since extension modules turn the exception into another one or abort; in a
destructor, which swallows it; and when the command is over.

After SIGINT and SIGTERM the exit code is 128 + the number. After the others the process ends by the signal
itself, as it would have without a handler: whoever waits for it sees so, and SIGQUIT leaves its core file.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

ASKING = (signal.SIGINT, signal.SIGTERM)
"""Those that ask a command to leave."""
_ENDING = (
    "SIGHUP",
    "SIGQUIT",
    "SIGXCPU",
    "SIGALRM",
    "SIGVTALRM",
    "SIGPROF",
    "SIGUSR1",
    "SIGUSR2",
    "SIGBREAK",
)
SIGNALS = (*ASKING, *(number for name in _ENDING if (number := getattr(signal, name, None))))

received = 0
"""The number of the signal that came; 0 when none did."""
_FIRST_FILE, _MANY_FILES = 3, 65_536
"""The first descriptor after the standard streams, and more than a process has."""
unfinished: set[str] = set()
"""Files, and folders of files, that this process has begun and nobody else sees."""

_is_over = False
_process = 0


class Stopped(KeyboardInterrupt):
    """A signal told the command to leave. Code that knows interrupts takes it for one."""


def install() -> None:
    """From here on, leave with 128 + the signal's number. A signal that is ignored stays so: `nohup`, `&`."""
    global received, _is_over, _process
    if not _process:
        atexit.register(_ignore)
    received, _is_over, _process = 0, False, os.getpid()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    sys.unraisablehook = _on_unraisable


def exit_code() -> int:
    """That of a process which the signal ended, as a shell has it."""
    return 128 + received


def leave(code: int) -> NoReturn:
    """End the process as the signal that came has it, else with `code`."""
    die()
    sys.exit(exit_code() if received else code)


def die() -> None:
    """End the process by the signal that came, where that is none which only asks; returns otherwise."""
    if received and received not in ASKING:
        signal.signal(received, signal.SIG_DFL)
        os.kill(os.getpid(), received)


def finish() -> None:
    """Say that the command is over; removes what an interrupted removal has left."""
    global _is_over
    _is_over = True
    _remove_unfinished()


def _on_signal(number: int, frame: FrameType | None) -> None:
    global received
    if os.getpid() != _process:  # a fork: what is unfinished belongs to its parent
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    is_second, received = received != 0, received or number
    if is_second or _is_over or _is_importing(frame):
        _leave()
    raise Stopped


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "_find_and_load" and "importlib" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def _on_unraisable(caught: UnraisableHookArgs) -> None:
    if isinstance(caught.exc_value, Stopped):
        _leave()
    sys.__unraisablehook__(caught)


def _leave() -> NoReturn:
    os.closerange(_FIRST_FILE, _MANY_FILES)  # on Windows no file that is open is removed
    _remove_unfinished()
    die()
    os._exit(exit_code())


def _remove_unfinished() -> None:
    while unfinished:
        path = unfinished.pop()
        with contextlib.suppress(OSError):
            if os.path.isdir(path) and not os.path.islink(path):
                for name in os.listdir(path):
                    os.unlink(os.path.join(path, name))
                os.rmdir(path)
            else:
                os.unlink(path)


def _ignore() -> None:
    """Registered first and so called last: the interpreter is being taken down, and soon gone."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)

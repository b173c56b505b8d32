"""Being told to leave: a signal is noted when it comes, and obeyed when the training is ready to."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from ptsave.errors import UsageError
from ptsave.torch_layer import ranks


class Signals:
    """Signals whose handlers only take down that they came."""

    def __init__(self) -> None:
        self._received = 0
        self._before: dict[int, Any] = {}
        self._process = 0

    def install(self, *numbers: int) -> None:
        """Take these signals over.

        Raises: UsageError outside the main thread, where Python allows it to nobody.
        """
        if threading.current_thread() is not threading.main_thread():
            raise UsageError(
                "signals are handled in the main thread alone", "", "call on_signal in the main thread"
            )
        self._process = os.getpid()
        for number in numbers:
            before = signal.signal(number, self._note)
            self._before.setdefault(number, before)

    def restore(self) -> None:
        """Give the signals back to whoever handled them before."""
        while self._before and threading.current_thread() is threading.main_thread():
            number, before = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if before is None else before)

    @property
    def noted(self) -> int:
        """The signal that came to this process; 0 when none did."""
        return self._received

    @property
    def are_held(self) -> bool:
        """Whether any were taken over."""
        return bool(self._before)

    def received(self) -> int:
        """The signal that came, to any rank; 0 when none did. Where there are ranks, every one calls it."""
        return ranks.largest(self._received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a fork that was made since: the training is its parent's
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif number == signal.SIGINT and self._received:  # someone at a keyboard who will not wait
            raise KeyboardInterrupt
        else:
            self._received = self._received or number

"""Being told to leave: a signal is noted when it comes, and obeyed when the training is ready to."""

from __future__ import annotations

import inspect
import multiprocessing
import multiprocessing.util
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

from ptsave.errors import UsageError
from ptsave.storage.system import processes

PATIENCE_SECONDS = 1.0
"""How long a worker that is signalled waits to see whether its training is."""


class TakenSignals(NamedTuple):
    """What a DataLoader's worker is told of the signals that its training has taken over."""

    numbers: tuple[int, ...]
    is_asked: Any
    """A number that the processes share: not 0 while the training is asked to stop."""


class Signals:
    """Signals whose handlers only take down that they came."""

    def __init__(self) -> None:
        self._received = 0
        self._before: dict[int, Any] = {}
        self._process = 0
        self._is_asked: Any = None

    def install(self, *numbers: int) -> None:
        """Take these signals over.

        Raises: UsageError outside the main thread, where Python allows it to nobody.
        """
        if threading.current_thread() is not threading.main_thread():
            raise UsageError(
                "signals are handled in the main thread alone", "", "call on_signal in the main thread"
            )
        self._process = os.getpid()
        if self._is_asked is None:
            self._is_asked = multiprocessing.RawValue("b", 0)
        for number in numbers:
            before = signal.signal(number, self._note)
            self._before.setdefault(number, before)
        _held[id(self)] = TakenSignals(tuple(self._before), self._is_asked)

    def restore(self) -> None:
        """Give the signals back to whoever handled them before."""
        while self._before and threading.current_thread() is threading.main_thread():
            number, before = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if before is None else before)
        _held.pop(id(self), None)
        if self._is_asked is not None:
            self._is_asked.value = 0

    @property
    def noted(self) -> int:
        """The signal that came to this process; 0 when none did."""
        return self._received

    @property
    def are_held(self) -> bool:
        """Whether any were taken over."""
        return bool(self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a fork that was made since: the training is its parent's
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif number == signal.SIGINT and self._received:  # someone at a keyboard who will not wait
            raise KeyboardInterrupt
        else:
            self._received = self._received or number
            self._is_asked.value = 1


# --- workers ----------------------------------------------------------------------------------------------

_held: dict[int, TakenSignals] = {}
"""Of every `Signals` that holds some."""
_watches = False
"""Whether this process is a worker that lets signals pass."""


class WorkerInit:
    """A DataLoader's `worker_init_fn`: a signal to the whole job leaves the worker at its work.

    Schedulers and torchrun signal all processes of a job. A worker that ended then would take the batch with
    it that the training is about to save after.
    """

    def __init__(self, inner: Callable[[int], Any] | None) -> None:
        """`inner` is called after it."""
        self._inner = inner
        self._told: list[TakenSignals] = []

    def __getstate__(self) -> dict[str, Any]:  # for a worker that is not a fork
        return {"_inner": self._inner, "_told": list(_held.values())}

    def __call__(self, worker_id: int) -> None:
        _outlive([*self._told, *_held.values()])
        if self._inner is not None:
            self._inner(worker_id)


def _outlive(told: list[TakenSignals]) -> None:
    """In a worker, let signals pass while its training is asked to stop; others end it, a little later."""
    global _watches
    if _watches or not told or threading.current_thread() is not threading.main_thread():
        return
    _watches = True
    read_end, write_end = os.pipe()
    processes.set_non_blocking(write_end)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for held in told:
        for number in held.numbers:
            signal.signal(number, _let_pass)
    threading.Thread(target=_watch, args=(read_end, told), name="ptsave-signals", daemon=True).start()


def _let_pass(number: int, frame: FrameType | None) -> None:
    """The thread decides, which a worker that is inside other code cannot keep waiting."""


def _watch(read_end: int, told: list[TakenSignals]) -> None:
    while data := os.read(read_end, 1):
        number = data[0]
        flags = [held.is_asked for held in told if number in held.numbers]
        end = time.monotonic() + PATIENCE_SECONDS
        while flags and not any(flag.value for flag in flags):
            if time.monotonic() > end:
                os._exit(128 + number)
            time.sleep(PATIENCE_SECONDS / 100)


def _reach_forked_worker(_: object) -> None:
    """In a process that multiprocessing has forked: where it is a DataLoader's worker, let it outlive.

    torch sets the worker's own handlers when it begins, and calls the user's function after that.
    """
    process: Any = multiprocessing.current_process()
    target: Any = getattr(process, "_target", None)
    if not _held or getattr(target, "__name__", "") != "_worker_loop":
        return
    bound = inspect.signature(target).bind(*process._args, **process._kwargs)
    inner = bound.arguments.get("init_fn")
    if not isinstance(inner, WorkerInit):
        bound.arguments["init_fn"] = WorkerInit(inner)
        process._args, process._kwargs = bound.args, bound.kwargs


multiprocessing.util.register_after_fork(_reach_forked_worker, _reach_forked_worker)

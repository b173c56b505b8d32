"""Commands as processes of their own, forked from one that has imported everything.

A trial costs a fork in place of a start, so that thousands fit into a test run. What a forked command does to
its files is what a started one does; some tests start real ones.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests import warm

WAIT_SECONDS = 60
"""When a trial that does not end is a failure."""
RESUME_SECONDS = 0.01
PR_SET_PTRACER = 0x59616D61
"""Source: linux/prctl.h; lets a tracer that is no ancestor attach."""


@dataclass(frozen=True)
class Ended:
    """How a trial ended, and what it said."""

    code: int
    """Its exit code; minus the signal where one ended it."""
    stdout: str
    stderr: str


@dataclass
class Trial:
    """A forked process that waits for `go`, so that a tracer can attach first."""

    process: ForkServerProcess
    gate: Connection
    folder: Path
    """Where its output goes."""
    number: int
    is_gone: bool = field(default=False)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def go(self) -> None:
        self.gate.send_bytes(b"go")

    def resume(self) -> Ended:
        """Go on after SIGSTOP, as often as it comes: every thread may be stopped once."""
        while self.process.is_alive():
            with suppress(ProcessLookupError):  # it may have ended since
                os.kill(self.pid, signal.SIGCONT)
            self.process.join(RESUME_SECONDS)
        return self.wait()

    def kill(self) -> None:
        """End the process at once, unless it has ended."""
        if not self.is_gone:
            self.process.kill()
            self.wait()

    def wait(self) -> Ended:
        """Its end.

        Raises: AssertionError when it does not end.
        """
        self.process.join(WAIT_SECONDS)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            raise AssertionError(f"trial {self.number} did not end: {self._said('err')}")
        self.is_gone = True
        self.gate.close()
        self.process.close()
        return Ended(code, self._said("out"), self._said("err"))

    def _said(self, stream: str) -> str:
        path = self.folder / f"{self.number}.{stream}"
        text = path.read_text(errors="replace")
        path.unlink()
        return text


class Trials:
    """Forks trials; made once for a test session."""

    def __init__(self, folder: Path) -> None:
        self.context = warm.context()
        self.folder = folder
        self.number = 0

    def prepare(self, target: Callable[..., None], *arguments: object, cwd: Path) -> Trial:
        """A process that will call `target(*arguments)` in `cwd`."""
        self.number += 1
        gate, childs_end = self.context.Pipe()
        where = str(self.folder / str(self.number))
        process = self.context.Process(
            target=_child, args=(childs_end, str(cwd), where, target, arguments), daemon=True
        )
        process.start()
        childs_end.close()
        gate.recv_bytes()
        return Trial(process, gate, self.folder, self.number)

    def prepare_command(self, arguments: Sequence[object], cwd: Path) -> Trial:
        """A process that will be `ptsave ARGUMENTS` in `cwd`."""
        return self.prepare(ptsave_command, *map(str, arguments), cwd=cwd)

    def run(self, arguments: Sequence[object], cwd: Path) -> Ended:
        """`ptsave ARGUMENTS`, from beginning to end."""
        trial = self.prepare_command(arguments, cwd)
        trial.go()
        return trial.wait()


def _child(
    gate: Connection, cwd: str, where: str, target: Callable[..., None], arguments: Sequence[object]
) -> None:
    warm.settle(cwd, where)
    _let_be_traced()
    gate.send_bytes(b"ready")
    gate.recv_bytes()
    gate.close()
    target(*arguments)


def _let_be_traced() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(-1 & (2**64 - 1)), 0, 0, 0)


def ptsave_command(*arguments: str) -> None:
    """What the console script does."""
    from ptsave.__main__ import main

    sys.argv = ["ptsave", *arguments]
    main()

"""strace as an instrument: what a process asked of the system, and faults in its way.

An injection counts the calls of each thread by itself, from the moment of attaching.
Source: strace(1), "Tampering".
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.crash.trials import Ended, Trial

WRITING = (
    "write",
    "writev",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "copy_file_range",
    "sendfile",
    "ftruncate",
    "fallocate",
    "fsync",
    "fdatasync",
    "sync_file_range",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "rmdir",
    "fchmod",
    "fchown",
)
"""The calls that change what is on a disk."""

STOPPED = "--- stopped by SIGSTOP ---"
"""What strace writes when a process has been stopped."""
POLL_SECONDS = 0.002

_CALL = re.compile(
    r"(?P<thread>\d+) +(?P<name>\w+)\((?P<arguments>.*?)(?:\) += (?P<result>.*)| <unfinished \.\.\.>)"
)


@dataclass(frozen=True)
class Call:
    """One line of a trace."""

    name: str
    number: int
    """It is the thread's n-th call of this name."""
    arguments: str
    result: str
    """As strace prints it, `(INJECTED)` included; empty where it was interrupted by another thread's line."""

    @property
    def is_injected(self) -> bool:
        return "INJECTED" in self.result

    @property
    def changes_files(self) -> bool:
        return self.name in WRITING or (self.name == "openat" and "O_CREAT" in self.arguments)


@cache
def why_not() -> str:
    """Why processes cannot be traced here; empty where they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = [sys.executable, "-c", "pass"]
    done = subprocess.run(["strace", "-o", "/dev/null", *probe], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"strace does not work here: {done.stderr.strip()[:200]}"


def traced(
    trial: Trial, log: Path, *, inject: str | Sequence[str] = (), calls: str = "all", paths: bool = False
) -> tuple[Ended, list[Call]]:
    """Let `trial` run under strace, with injections such as `fsync:error=EIO:when=2`."""
    faults = [inject] if isinstance(inject, str) else inject
    with _attached(trial, log, faults, calls, paths=paths):
        trial.go()
        ended = trial.wait()
    return ended, parse(log.read_text(errors="replace"))


@contextmanager
def stopped_at(trial: Trial, log: Path, call: str, n: int, faults: Sequence[str] = ()) -> Iterator[bool]:
    """Let `trial` run to its n-th call of that name and stop it there; True unless it ended before.

    It goes on when the block ends; a block that does not wait for it must have killed it.
    """
    inject = [*faults, f"{call}:signal=SIGSTOP:when={n}"]
    with _attached(trial, log, inject, call):
        trial.go()
        is_stopped = False
        while not is_stopped and trial.process.is_alive():
            time.sleep(POLL_SECONDS)
            is_stopped = STOPPED in log.read_text(errors="replace")
        yield is_stopped
        trial.kill()


@contextmanager
def _attached(
    trial: Trial, log: Path, faults: Sequence[str], calls: str, *, paths: bool = False
) -> Iterator[None]:
    """strace at work on `trial` until the trial ends."""
    command = ["strace", "-f", "-p", str(trial.pid), "-o", str(log), "-e", f"trace={calls}"]
    for fault in faults:
        command += ["-e", f"inject={fault}"]
    if paths:
        command.append("-y")
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    with tracer:
        line = tracer.stderr.readline()
        assert "attached" in line, line + tracer.stderr.read()
        yield
        tracer.stderr.read()


def parse(log: str) -> list[Call]:
    """The calls of a log that `strace -f -o` wrote."""
    counts: Counter[tuple[str, str]] = Counter()
    calls = []
    for line in log.splitlines():
        if found := _CALL.match(line):
            key = (found["thread"], found["name"])
            counts[key] += 1
            calls.append(Call(found["name"], counts[key], found["arguments"], found["result"] or ""))
    return calls


def first_points(calls: list[Call]) -> dict[str, int]:
    """Name → its first n that is not before the first change of a file; 1 for the calls that make changes.

    A fault before that finds the destination untouched.
    """
    start = next(index for index, call in enumerate(calls) if call.changes_files)
    first = {call.name: call.number + 1 for call in calls[:start]}
    return {call.name: 1 if call.name in WRITING else first.get(call.name, 1) for call in calls[start:]}

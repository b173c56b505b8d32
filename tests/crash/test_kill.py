"""SIGKILL at every system call of every command that writes: the destination is the old file or the new."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.scenes import CONVERSIONS, SLOWER, Scene, name_of
from tests.crash.tally import Tally
from tests.crash.tracing import first_points, traced
from tests.crash.trials import Trials

PASSIVE = {
    "access",
    "brk",
    "exit_group",
    "futex",
    "getcwd",
    "getdents64",
    "geteuid",
    "getpid",
    "getrandom",
    "gettid",
    "lseek",
    "mmap",
    "mprotect",
    "munmap",
    "newfstatat",
    "poll",
    "pread64",
    "preadv2",
    "read",
    "readlink",
    "rt_sigaction",
    "rt_sigprocmask",
    "sched_getaffinity",
    "statfs",
    "statx",
    "uname",
}
"""Calls that change nothing that outlives the process: a kill at one is a kill at the call after it."""


def kill(scene: Scene, trials: Trials, tally: Tally, log: Path, name: str, n: int) -> bool:
    """One trial; False when the command finished before it came to the n-th call."""
    scene.reset()
    trial = trials.prepare_command(scene.arguments, scene.folder)
    ended, _ = traced(trial, log, inject=f"{name}:signal=SIGKILL:when={n}", calls=name)
    assert ended.code in (0, -9), ended
    problems = []
    state = scene.state()
    if state not in (("old", "new") if ended.code else ("new",)):
        problems.append(f"the destination is {state}")
    if strangers := scene.strangers():
        problems.append(f"leaves {strangers}, which nobody recognises")
    tally.count("killed", ended.code != 0)
    if scene.litter():
        tally.count("left litter")
        problems += scene.problems_of_next_write(trials)
    tally.add(f"{name} {n}", problems)
    return ended.code != 0


@pytest.mark.slow
@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("scene", [*CONVERSIONS, *SLOWER], ids=name_of, indirect=True)
def test_kill_at_every_system_call(scene: Scene, trials: Trials, tally: Tally, log: Path) -> None:
    ended, calls = traced(trials.prepare_command(scene.arguments, scene.folder), log)
    assert ended.code == 0, ended
    for name, n in first_points(calls).items():
        while name not in PASSIVE and kill(scene, trials, tally, log, name, n):
            n += 1
    tally.check()


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("scene", [("convert", "safetensors", True)], ids=name_of, indirect=True)
def test_kill_around_the_commit(scene: Scene, trials: Trials, tally: Tally, log: Path) -> None:
    """The few points that decide, in the tests that always run."""
    for name in ("fallocate", "pwrite64", "fsync", "rename"):
        kill(scene, trials, tally, log, name, 1)
    kill(scene, trials, tally, log, "fsync", 2)
    tally.check()

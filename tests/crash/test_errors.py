"""Errors, interruptions and short counts at every system call that writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ptsave.errors import UnreadableError, WriteError
from tests.crash.scenes import CONVERSIONS, SLOWER, Scene, name_of
from tests.crash.tally import Tally
from tests.crash.tracing import WRITING, Call, first_points, traced
from tests.crash.trials import Ended, Trials

ERRORS = ("ENOSPC", "EIO", "EDQUOT")
FAILED = (UnreadableError.exit_code, WriteError.exit_code)
TO_A_PERSON = {"write"}
"""Calls that carry what a command says: when they fail there is nobody to tell."""
CLEANING = {"unlink", "unlinkat", "rmdir"}
"""Calls that remove what is in nobody's way; when they fail, litter stays for the next write to remove."""
COMMITTED = re.compile(r"new file|cannot print")
"""What an error says that comes after the new file is in place."""


def inject(scene: Scene, trials: Trials, log: Path, what: str) -> tuple[Ended, list[Call]]:
    """The command with one fault in its way."""
    scene.reset()
    trial = trials.prepare_command(scene.arguments, scene.folder)
    return traced(trial, log, inject=what, calls=",".join(WRITING), paths=True)


def problems_of_failure(scene: Scene, ended: Ended, calls: list[Call], name: str) -> list[str]:
    """What is wrong with how a command failed."""
    problems = []
    state = scene.state()
    if ended.code == 0:
        if name not in TO_A_PERSON | CLEANING:
            problems.append("reports success")
        if state != "new":
            problems.append(f"reports success, and the destination is {state}")
    else:
        if ended.code not in FAILED:
            problems.append(f"ends with {ended.code}")
        if state not in ("new" if COMMITTED.search(ended.stderr) else "old", scene.seen_old):
            problems.append(f"the destination is {state}")
        if name not in TO_A_PERSON and not re.search(r"^error: .+\nhint: .+", ended.stderr, re.MULTILINE):
            problems.append("does not say what is wrong and what to do")
    if "Traceback" in ended.stderr:
        problems.append("prints a traceback")
    if strangers := scene.strangers() + ([] if name in CLEANING else scene.litter()):
        problems.append(f"leaves {strangers}")
    if again := retried(calls):
        problems.append(f"syncs again what could not be synced: {again}")
    return [f"{problem} ({ended.stderr.strip()})" for problem in problems]


def problems_of_success(scene: Scene, ended: Ended) -> list[str]:
    """What is wrong after a command that nothing should have kept from its work."""
    problems = []
    if ended.code != 0 or scene.state() != "new":
        problems.append(f"ends with {ended.code}, the destination is {scene.state()}: {ended.stderr}")
    if litter := scene.litter() + scene.strangers():
        problems.append(f"leaves {litter}")
    return problems


def retried(calls: list[Call]) -> list[str]:
    """Files that were synced once more after a sync of them had failed."""
    failed: set[str] = set()
    again = []
    for call in calls:
        if call.name in ("fsync", "fdatasync"):
            if call.arguments in failed:
                again.append(call.arguments)
            if call.is_injected and "EINTR" not in call.result:
                failed.add(call.arguments)
    return again


@pytest.mark.slow
@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("scene", [*CONVERSIONS, *SLOWER], ids=name_of, indirect=True)
def test_an_error_at_every_call_that_writes(scene: Scene, trials: Trials, tally: Tally, log: Path) -> None:
    """Every error for `convert`; one after the other for the commands that take longer."""
    ended, calls = traced(trials.prepare_command(scene.arguments, scene.folder), log)
    assert ended.code == 0, ended
    is_slower = "convert" not in scene.arguments
    for name in first_points(calls).keys() & set(WRITING):
        n, is_reached = 1, True
        while is_reached:
            for error in ERRORS[n % len(ERRORS) :][:1] if is_slower else ERRORS:
                ended, calls = inject(scene, trials, log, f"{name}:error={error}:when={n}")
                is_reached = any(call.is_injected for call in calls)
                if not is_reached:
                    break
                tally.add(f"{name} {n} {error}", problems_of_failure(scene, ended, calls, name))
            n += 1
    tally.check()


@pytest.mark.slow
@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("scene", CONVERSIONS, ids=name_of, indirect=True)
def test_an_interrupted_call_is_called_again(scene: Scene, trials: Trials, tally: Tally, log: Path) -> None:
    ended, calls = traced(trials.prepare_command(scene.arguments, scene.folder), log)
    assert ended.code == 0, ended
    for name in first_points(calls).keys() & set(WRITING):
        n, is_reached = 1, True
        while is_reached:
            ended, calls = inject(scene, trials, log, f"{name}:error=EINTR:when={n}")
            is_reached = any(call.is_injected for call in calls)
            if is_reached:
                tally.add(f"{name} {n} EINTR", problems_of_success(scene, ended))
            n += 1
    tally.check()


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("scene", [("convert", "pt", True)], ids=name_of, indirect=True)
def test_errors_around_the_commit(scene: Scene, trials: Trials, tally: Tally, log: Path) -> None:
    """The few points that decide, in the tests that always run."""
    for name, error in (("pwrite64", "ENOSPC"), ("fsync", "EIO"), ("rename", "EDQUOT")):
        ended, calls = inject(scene, trials, log, f"{name}:error={error}:when=1")
        tally.add(f"{name} {error}", problems_of_failure(scene, ended, calls, name))
        ended, calls = inject(scene, trials, log, f"{name}:error=EINTR:when=1")
        tally.add(f"{name} EINTR", problems_of_success(scene, ended))
    tally.check()

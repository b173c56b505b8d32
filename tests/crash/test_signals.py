"""SIGINT and SIGTERM at every moment of every command: exit 130 or 143, and nothing half, left or spilled."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.crash.scenes import CONVERSIONS, Scene, Sources, make_scene, name_of
from tests.crash.tally import Tally
from tests.crash.test_kill import PASSIVE
from tests.crash.tracing import first_points, traced
from tests.crash.trials import Trials

pytestmark = pytest.mark.slow

CODES = {"SIGINT": 130, "SIGTERM": 143}
FINISHED = 0
CASES = [case for case in CONVERSIONS if case[2] or case[1] in ("safetensors", "dcp")]


def problems_of_leaving(scene: Scene, code: int, stderr: str, name: str) -> list[str]:
    """What is wrong after a command was told to leave, or had finished before."""
    problems = []
    if code not in (CODES[name], FINISHED):
        problems.append(f"ends with {code}: {stderr[-500:]}")
    state = scene.state()
    if state not in (("new",) if code == FINISHED else ("old", "new")):
        problems.append(f"ends with {code} and the destination is {state}")
    if litter := scene.litter() + scene.strangers():
        problems.append(f"leaves {litter}")
    if "Traceback" in stderr or "ignored" in stderr:
        problems.append(f"prints {stderr[-500:]}")
    return problems


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("scene", CASES, ids=name_of, indirect=True)
def test_a_signal_at_every_system_call(scene: Scene, trials: Trials, tally: Tally, log: Path) -> None:
    ended, calls = traced(trials.prepare_command(scene.arguments, scene.folder), log)
    assert ended.code == 0
    points = [(name, n) for name, n in first_points(calls).items() if name not in PASSIVE]
    for name, first in points:
        n, is_reached = first, True
        while is_reached:
            signal_name = ("SIGINT", "SIGTERM")[n % 2]
            scene.reset()
            trial = trials.prepare_command(scene.arguments, scene.folder)
            ended, calls = traced(trial, log, inject=f"{name}:signal={signal_name}:when={n}", calls=name)
            is_reached = any(call.number == n for call in calls)
            if is_reached:
                tally.add(
                    f"{signal_name} at {name} {n}",
                    problems_of_leaving(scene, ended.code, ended.stderr, signal_name),
                )
            n += 1
    tally.check()


REAL = {
    "convert": (20, ("convert", "{source}", "{destination}", "--overwrite")),
    "save": (6, ("save", "{config}", "{destination}", "--overwrite")),
    "load": (5, ("load", "{destination}", "-c", "{config}")),
    "inspect": (12, ("inspect", "--stats", "{destination}")),
    "verify": (6, ("verify", "-c", "{config}", "{destination}")),
    "help": (8, ("--help",)),
}
"""Name → how many times it is interrupted, and the command."""


@pytest.mark.parametrize("command", REAL)
def test_a_signal_at_random_moments(
    command: str,
    sources: Sources,
    trials: Trials,
    tally: Tally,
    tmp_path: Path,
    clean_env: dict[str, str],
) -> None:
    """Whole processes, from the start of Python on; what comes before ptsave runs is counted apart."""
    writer = command if command in ("save", "convert") else "save"
    scene = make_scene(tmp_path / "scene", (writer, "safetensors", True), sources, trials)
    times, words = REAL[command]
    arguments = [
        word.format(source=sources.new, config=sources.config, destination=scene.destination)
        for word in words
    ]
    env = {key: value for key, value in clean_env.items() if key != "PYTHONDONTWRITEBYTECODE"}
    whole_seconds = max(run(arguments, scene, env, None)[2] for _ in range(2))
    draw = random.Random(0)
    for i in range(times):
        name = ("SIGINT", "SIGTERM")[i % 2]
        scene.reset()
        delay = draw.uniform(0, whole_seconds)
        code, stderr, _ = run(arguments, scene, env, (getattr(signal, name), delay))
        if code is None:
            tally.count("before Python ran ptsave")
            continue
        if writer != command:
            assert scene.state() == "old"
            code_of_state = CODES[name] if code == FINISHED else code
            problems = problems_of_leaving(scene, code_of_state, stderr, name)
        else:
            problems = problems_of_leaving(scene, code, stderr, name)
        tally.count("finished before", code == FINISHED)
        tally.add(f"{name} after {delay:.3f} s", problems)
    tally.check()


def run(
    arguments: list[str], scene: Scene, env: dict[str, str], told: tuple[signal.Signals, float] | None
) -> tuple[int | None, str, float]:
    """The exit code (None where the signal came before ptsave heard it), stderr, and the seconds it took."""
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "ptsave", *arguments],
        cwd=scene.folder,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    hears = True
    if told is not None:
        number, delay = told
        time.sleep(delay)
        hears = process.poll() is not None or hears_sigterm(process.pid)
        process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    return process.returncode if hears else None, stderr, time.monotonic() - begin


def hears_sigterm(pid: int) -> bool:
    """Whether the process has a handler for SIGTERM by now: ptsave's first act."""
    status = Path(f"/proc/{pid}/status")
    try:
        caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt"))
    except (OSError, StopIteration):
        return True
    return bool(int(caught.split()[1], 16) & 1 << (signal.SIGTERM - 1))

"""Times whole processes side by side: interleaved in random order, medians, peak memory from the system."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

LAUNCH = Path(__file__).with_name("launch.py")

LIMIT_S = 600
"""Whatever takes longer than this hangs."""

Argv = Callable[[Path], list[str]]
"""From an empty scratch folder, where outputs go, to the command."""


class SideError(Exception):
    """A command that is measured has failed; its figures would mean nothing."""


class SkipError(Exception):
    """A row that cannot be measured on this machine, and why."""


@dataclass(frozen=True)
class Command:
    """One side of a comparison: a process."""

    argv: Argv
    reports_itself: bool = False
    """Whether its last line on stdout is JSON with `wall_s` (and `peak_bytes`), measured inside."""


@dataclass
class Samples:
    """What one side took, run by run."""

    wall_s: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)

    @property
    def wall(self) -> float:
        """Median seconds."""
        return statistics.median(self.wall_s)

    @property
    def peak(self) -> int:
        """Median peak resident memory, bytes."""
        return int(statistics.median(self.peak_bytes))


def compare(
    sides: Mapping[str, Command], runs: int, touch_bytes: int, scratch: Path, seed: int = 0
) -> dict[str, Samples]:
    """Run every side `runs` times, and once before that to warm the caches, in random order.

    Raises: SideError with what a command printed.
    """
    order = random.Random(seed)
    samples = {name: Samples() for name in sides}
    for turn in range(runs + 1):
        for name in order.sample(list(sides), len(sides)):
            touch_memory(touch_bytes)
            wall_s, peak_bytes = run(sides[name], scratch)
            if turn:
                samples[name].wall_s.append(wall_s)
                samples[name].peak_bytes.append(peak_bytes)
    return samples


def run(command: Command, scratch: Path) -> tuple[float, int]:
    """Seconds and peak bytes of one process; what it wrote into its scratch folder is removed."""
    folder = scratch / "run"
    folder.mkdir()
    argv = command.argv(folder)
    result = scratch / "result"
    launch = [sys.executable, "-S", "-E", str(LAUNCH), str(result), *argv]
    with subprocess.Popen(
        launch,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=LIMIT_S)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise SideError(f"{' '.join(argv)} did not end within {LIMIT_S} s") from None
    if process.returncode != 0:
        raise SideError(f"{' '.join(argv)} could not be started:\n{errors}")
    code, wall, peak, _ = result.read_text(encoding="ascii").split()
    if code != "0":
        raise SideError(f"{' '.join(argv)} exited with {code}:\n{errors}")
    wall_s, peak_bytes = float(wall), int(peak)
    if command.reports_itself:
        told = json.loads(output.splitlines()[-1])
        wall_s, peak_bytes = told["wall_s"], told.get("peak_bytes", peak_bytes)
    shutil.rmtree(folder)
    return wall_s, peak_bytes


def touch_memory(num_bytes: int) -> None:
    """Touch and free `num_bytes` of memory, in a process of its own.

    Memory that was freed a moment ago can take 1 s/GiB to be touched again in a virtual machine; without
    this, whoever runs first after a large free pays for it, and comparisons swing two to four times.
    """
    if num_bytes:
        code = f"import mmap\nm = mmap.mmap(-1, {num_bytes})\nfor i in range(0, len(m), 4096): m[i] = 1"
        subprocess.run([sys.executable, "-S", "-c", code], check=True)


def environment() -> dict[str, str]:
    """The environment of what is measured. An editable install must find its compiled files."""
    dropped = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONPATH", "PTSAVE_DEBUG")
    return {key: value for key, value in os.environ.items() if key not in dropped}

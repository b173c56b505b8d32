"""What a row of the table is: sides, and the budgets checked against their samples."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Command, Samples

MIB = 2**20


@dataclass(frozen=True)
class Budget:
    """One number drawn from a row's samples, and its limit."""

    what: str
    """The work, as the table's row names it."""
    against: str
    measured: Callable[[Mapping[str, Samples]], float]
    unit: str
    """`×` for ratios, `MiB`, `s`."""
    limit: float | None = None
    """At most this; None for a number that is shown without a budget."""


@dataclass(frozen=True)
class Row:
    """Processes measured in one interleaved run, and what follows from them."""

    sides: Mapping[str, Command]
    budgets: list[Budget]
    touch_bytes: int = 0
    """How much memory is touched and freed before each run: as much as the hungriest side will use."""
    scratch: Path | None = None
    """Where outputs go, when not beside the inputs: on another file system."""
    max_runs: int = 99
    """For what takes long: at most this many runs, never below five."""
    drop_inputs: bool = False
    """Whether its inputs are too large to keep for other rows."""


def wall_ratio(side: str, other: str) -> Callable[[Mapping[str, Samples]], float]:
    """Whole processes."""
    return lambda samples: samples[side].wall / samples[other].wall


def net_ratio(side: str, idle: str, other: str, other_idle: str) -> Callable[[Mapping[str, Samples]], float]:
    """The start-up of each side, measured on a tiny input in the same run, subtracted."""
    return lambda samples: (
        (samples[side].wall - samples[idle].wall) / (samples[other].wall - samples[other_idle].wall)
    )


def peak(side: str) -> Callable[[Mapping[str, Samples]], float]:
    """MiB of resident memory at the highest."""
    return lambda samples: samples[side].peak / MIB


def peak_ratio(side: str, other: str) -> Callable[[Mapping[str, Samples]], float]:
    """Of the two peaks."""
    return lambda samples: samples[side].peak / samples[other].peak


def peak_spread(*sides: str) -> Callable[[Mapping[str, Samples]], float]:
    """MiB between the highest and the lowest peak."""
    return lambda samples: (max(samples[s].peak for s in sides) - min(samples[s].peak for s in sides)) / MIB


def wall(side: str) -> Callable[[Mapping[str, Samples]], float]:
    """Seconds."""
    return lambda samples: samples[side].wall


def python(script: str, *arguments: object) -> list[str]:
    """A process that runs a few lines, as a user's own script would."""
    return [sys.executable, "-c", script, *map(str, arguments)]


def ptsave(*arguments: object) -> list[str]:
    """The console script, as a user starts it."""
    return [str(Path(sys.executable).with_name("ptsave")), *map(str, arguments)]

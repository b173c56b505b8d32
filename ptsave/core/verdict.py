"""What a check finds, and the verdict over many of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that one check found out."""

    check: str
    level: Level
    where: str
    """The tensor, module or file that it is about; empty for the whole."""
    message: str


def places(findings: Iterable[Finding], check: str, level: Level) -> list[str]:
    """Where the findings of one check and level are, each place once."""
    return list(dict.fromkeys(f.where for f in findings if (f.check, f.level) == (check, level)))


@dataclass(frozen=True, slots=True)
class Departure:
    """How far one call of one module is from what was recorded."""

    module: str
    """Its fully qualified name; empty for the model itself."""
    number: int
    """0 for the module's first call in a forward pass, 1 for its second, …"""
    kind: str
    """Its class."""
    relative: float
    """Root mean square of the difference over that of the recorded values; 0 where they are equal."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings, and the answer."""

    findings: tuple[Finding, ...]
    cause: str = ""
    """What happened, in one line, from evidence; empty where there is nothing to explain."""
    growth: tuple[Departure, ...] = ()
    """Every recorded call of a module in order, where a replay differed: how the difference grows."""

    @property
    def is_yes(self) -> bool:
        """No check failed, and at least one passed: nothing but skips proves nothing."""
        levels = {finding.level for finding in self.findings}
        return "fail" not in levels and bool(levels & {"ok", "warn"})

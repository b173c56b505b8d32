"""What a check finds, and the verdict over many of them."""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings, and the answer."""

    findings: tuple[Finding, ...]

    @property
    def is_yes(self) -> bool:
        """No check failed, and at least one passed: nothing but skips proves nothing."""
        levels = {finding.level for finding in self.findings}
        return "fail" not in levels and bool(levels & {"ok", "warn"})

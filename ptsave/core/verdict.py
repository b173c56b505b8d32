"""What a check finds, and the verdict over many of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ptsave.core.global_names import NameKind

Level = Literal["ok", "warn", "fail", "skipped"]
LEVELS: tuple[Level, ...] = ("fail", "warn", "ok", "skipped")
"""From what asks for attention to what does not."""
Kind = Literal[NameKind, "train_mode", "lost_tie", "uninitialised", ""]
"""The causes that a finding can have: for `safe` what a name is, for checks of a model what is wrong."""


class Counted(str):
    """`1 tensor lies …`, `4 tensors lie …`: a message that begins with a number, and can be added up."""

    def __new__(cls, number: int, one: str, many: str) -> Counted:
        message = super().__new__(cls, f"{number} {one if number == 1 else many}")
        message.number, message.one, message.many = number, one, many
        return message

    number: int
    one: str
    """What follows the number 1."""
    many: str

    def __reduce__(self) -> tuple[type[Counted], tuple[int, str, str]]:
        return Counted, (self.number, self.one, self.many)

    def plus(self, other: Counted) -> Counted:
        """The same of the two together."""
        return Counted(self.number + other.number, self.one, self.many)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that one check found out."""

    check: str
    level: Level
    where: str
    """The tensor, module or file that it is about; empty for the whole."""
    message: str
    kind: Kind = ""
    """The cause, as far as the check knows it: what code goes by."""

    def __str__(self) -> str:
        """`encoder.weight: 3 NaN, 0 infinite`."""
        return f"{self.where}: {self.message}" if self.where else self.message


def places(findings: Iterable[Finding], check: str, level: Level) -> list[str]:
    """Where the findings of one check and level are, each place once."""
    return list(dict.fromkeys(f.where for f in findings if (f.check, f.level) == (check, level)))


def failed_of(findings: Iterable[Finding], kind: Kind) -> list[str]:
    """Where the failures of one kind are, each place once."""
    return list(dict.fromkeys(f.where for f in findings if (f.kind, f.level) == (kind, "fail")))


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
    is_strict: bool = False
    """Whether warnings count as failures."""

    @property
    def is_yes(self) -> bool:
        """No check failed, and at least one passed: nothing but skips proves nothing."""
        levels = {finding.level for finding in self.findings}
        passing = {"ok"} if self.is_strict else {"ok", "warn"}
        failing = {"fail", "warn"} - passing
        return not levels & failing and bool(levels & passing)

    @property
    def answer(self) -> Literal["yes", "no"]:
        """The answer as a word."""
        return "yes" if self.is_yes else "no"

    @property
    def by_check(self) -> dict[str, list[Finding]]:
        """The findings of each check, checks in the order in which they ran."""
        checks: dict[str, list[Finding]] = {}
        for finding in self.findings:
            checks.setdefault(finding.check, []).append(finding)
        return checks

    @property
    def outcome(self) -> str:
        """`failed bytes`, `passed bytes; skipped: keys (needs a config)` or `could not be checked`."""
        checks: dict[Level, list[str]] = {level: [] for level in LEVELS}
        for check, findings in sorted(self.by_check.items()):
            checks[level_of(findings)].append(check)
        if self.is_strict and checks["warn"]:
            warned = f"warned of {', '.join(checks['warn'])}, which --strict counts as failed"
            return f"failed {', '.join(checks['fail'])}; {warned}" if checks["fail"] else warned
        if checks["fail"]:
            return f"failed {', '.join(checks['fail'])}"
        passed = sorted(checks["ok"] + checks["warn"])
        if not passed:
            return "could not be checked"
        reasons: dict[str, list[str]] = {}
        for check in checks["skipped"]:
            reasons.setdefault(str(self.by_check[check][0].message), []).append(check)
        why = [f"{', '.join(names)} ({reason})" for reason, names in reasons.items()]
        return f"passed {', '.join(passed)}" + (f"; skipped: {', '.join(why)}" if why else "")


def level_of(findings: Iterable[Finding]) -> Level:
    """What one check came to: the worst that it found, and `skipped` only where it did nothing else."""
    return min((finding.level for finding in findings), key=LEVELS.index)

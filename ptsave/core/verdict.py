"""The verdict over the findings of many checks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ptsave.core.finding import LEVELS, Finding, Level
from ptsave.core.names import escape, html_table
from ptsave.errors import Option, VerdictError


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
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False, repr=False)
    """Check → how long it took; what one check reads for others is a part of its own time."""
    root: str = ""
    """One hash of all tensors, whose digests were found to be those of the record; empty where not."""
    parameters: Collection[str] | None = field(default=None, compare=False, repr=False)
    """Those of the Python function that returns it; None for a command, which spells options as flags."""

    def of(self, parameters: Collection[str] | None) -> Verdict:
        """As a Python function with these parameters says it, or a command."""
        findings = tuple(replace(finding, parameters=parameters) for finding in self.findings)
        return replace(self, findings=findings, parameters=parameters)

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
    def because(self) -> str:
        """Why, in one line: what happened, where that is known, or which checks came to what."""
        return self.cause or self.outcome

    def raise_for_no(self) -> None:
        """Do nothing where the answer is yes.

        Raises: VerdictError with the first finding of those that say no.
        """
        if self.is_yes:
            return
        level: Level = "warn" if self.is_strict and not self._has("fail") else "fail"
        found = next((str(finding) for finding in self.findings if finding.level == level), "")
        raise VerdictError(f"the verdict is no: {self.because}", "", found or "see its findings")

    def __repr__(self) -> str:
        return f"<verdict {self.answer}: {escape(self.because)}>"

    def _repr_html_(self) -> str:
        rows = ((found.check, found.level, found) for found in self.findings)
        title = f"{self.answer}: {self.because}"
        return html_table(title, ("check", "level", "finding"), rows, len(self.findings))

    def _has(self, level: Level) -> bool:
        return any(finding.level == level for finding in self.findings)

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
            strict = Option("strict", True).spelled(self.parameters)
            warned = f"warned of {', '.join(checks['warn'])}, which {strict} counts as failed"
            return f"failed {', '.join(checks['fail'])}; {warned}" if checks["fail"] else warned
        if checks["fail"]:
            return f"failed {', '.join(checks['fail'])}"
        passed = sorted(checks["ok"] + checks["warn"])
        if not passed:
            return "could not be checked"
        reasons: dict[str, list[str]] = {}
        for check in checks["skipped"]:
            reasons.setdefault(self.by_check[check][0].message, []).append(check)
        why = [f"{', '.join(names)} ({reason})" for reason, names in reasons.items()]
        return f"passed {', '.join(passed)}" + (f"; skipped: {', '.join(why)}" if why else "")


def level_of(findings: Iterable[Finding]) -> Level:
    """What one check came to: the worst that it found, and `skipped` only where it did nothing else."""
    return min((finding.level for finding in findings), key=LEVELS.index)

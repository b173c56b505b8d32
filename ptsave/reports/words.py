"""What the reports say in the same words."""

from __future__ import annotations

from collections.abc import Iterable

from ptsave.core.names import escape
from ptsave.core.verdict import Finding, Level, Verdict

LEVELS: tuple[Level, ...] = ("fail", "warn", "ok", "skipped")
"""From what asks for attention to what does not."""

MAX_INT_BITS = 512
"""Larger integers are spelt in hexadecimal: no float holds them, and no reader counts their digits."""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def clean(value: object) -> str:
    """`value` in visible characters that every encoding and markup language can hold."""
    return escape(str(value)).replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")


def line(finding: Finding) -> str:
    """`encoder.weight: 3 NaN, 0 infinite`."""
    return f"{finding.where}: {finding.message}" if finding.where else finding.message


def by_check(verdict: Verdict) -> dict[str, list[Finding]]:
    """The findings of each check, checks in the order in which they ran."""
    checks: dict[str, list[Finding]] = {}
    for finding in verdict.findings:
        checks.setdefault(finding.check, []).append(finding)
    return checks


def level_of(findings: Iterable[Finding]) -> Level:
    """What one check came to: the worst that it found, and `skipped` only where it did nothing else."""
    return min((finding.level for finding in findings), key=LEVELS.index)


def outcome(verdict: Verdict) -> str:
    """`failed bytes, finite`, `passed bytes, finite; skipped keys` or `nothing could be checked`."""
    levels = {check: level_of(findings) for check, findings in by_check(verdict).items()}
    failed = [check for check, level in levels.items() if level == "fail"]
    if failed:
        return f"failed {', '.join(failed)}"
    passed = [check for check, level in levels.items() if level in ("warn", "ok")]
    if not passed:
        return "nothing could be checked"
    skipped = [check for check, level in levels.items() if level == "skipped"]
    return f"passed {', '.join(passed)}" + (f"; skipped {', '.join(skipped)}" if skipped else "")


def fact(name: str, value: object) -> str:
    """One fact's value for a person: sizes with their unit, large numbers with commas."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return clean(value)
    if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
        return hex(value)
    if name == "seconds":
        return f"{value:.1f}"
    if name == "bytes" and value >= 1024:
        scaled, unit = float(value), 0
        while scaled >= 1024 and unit < len(_UNITS) - 1:
            scaled, unit = scaled / 1024, unit + 1
        return f"{scaled:,.1f} {_UNITS[unit]} ({value:,} B)"
    if name == "bytes":
        return f"{value:,} B"
    return f"{value:,}"

"""How many trials were made and how many failed: asserted by each test, printed at the end of the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

MAX_SHOWN = 10
"""Failures that an assertion lists."""


class Tally:
    """The counts of one test."""

    def __init__(self) -> None:
        self.fields: dict[str, int] = {"tried": 0, "failed": 0}
        """Plain data, so that it travels from the process that ran the test to the one that reports."""
        self.failures: list[str] = []

    def add(self, where: str, problems: list[str]) -> None:
        """Count one trial."""
        self.count("tried")
        if problems:
            self.count("failed")
            self.failures.append(f"{where}: {'; '.join(problems)}")

    def count(self, what: str, number: int = 1) -> None:
        self.fields[what] = self.fields.get(what, 0) + number

    def check(self) -> None:
        """Raise AssertionError unless trials were made and none failed."""
        assert self.fields["tried"] > 0, "nothing was tried"
        shown = "\n".join(self.failures[:MAX_SHOWN])
        assert not self.failures, f"{len(self.failures)} of {self.fields['tried']} failed:\n{shown}"


def summary(rows: Iterable[tuple[str, Mapping[str, int]]]) -> list[str]:
    """A line for each test file's counts, from (node id, counts) of every test."""
    totals: dict[str, dict[str, int]] = {}
    for test, fields in rows:
        name = test.partition("[")[0].partition("@")[0].rpartition("/")[2]  # "@": xdist names its groups
        total = totals.setdefault(name, {})
        for what, number in fields.items():
            total[what] = total.get(what, 0) + number
    return [
        f"{name}: {', '.join(f'{number} {what}' for what, number in fields.items())}"
        for name, fields in sorted(totals.items())
    ]

"""What the tests share: types, and how many random examples and places of a file to try."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

T = TypeVar("T")


class Command(Protocol):
    """How a test runs the command line: as a real process.

    `code`: the exit code that it must have; None for any.
    """

    def __call__(
        self,
        *arguments: object,
        code: int | None = 0,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]: ...


is_quick = False
"""Whether only the fast tests run; conftest sets it before it collects."""


def examples(number: int) -> int:
    """Return how many examples hypothesis tries of `number`: a tenth where only the fast tests run."""
    return -(-number // 10) if is_quick else number


def some(cases: Iterable[T], step: int = 5) -> Sequence[T]:
    """Return the cases, or places of a file, to try: one in `step` where only the fast tests run."""
    return [*cases][::step] if is_quick else [*cases]

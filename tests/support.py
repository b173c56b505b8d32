"""What the tests share: types, and how many random examples to try."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Protocol


class Command(Protocol):
    """How a test runs the command line: as a real process."""

    def __call__(
        self, *arguments: object, code: int = 0, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]: ...


is_quick = False
"""Whether only the fast tests run; conftest sets it before it collects."""


def examples(number: int) -> int:
    """Return how many examples hypothesis tries of `number`: a quarter where only the fast tests run."""
    return number // 4 if is_quick else number

"""Types that the tests share."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Protocol


class Command(Protocol):
    """How a test runs the command line: as a real process."""

    def __call__(
        self, *arguments: object, code: int = 0, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]: ...

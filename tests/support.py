"""What the tests share: types, and how many random examples and places of a file to try."""

from __future__ import annotations

import subprocess
import time
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


IDLE_SECONDS = 0.12
"""What the loop of `slowness` takes on an idle core of the machines whose budgets are stated."""


def slowness() -> float:
    """How many times slower Python runs here and now than on that idle core; at least 1.

    Two virtual cores are often one real one: each runs at half the speed while the other is busy, and all CPU
    seconds that are counted are twice as many. The other may be busy by turns: the slowest loop counts.
    """
    return max(1.0, max(_loop_seconds() for _ in range(20)) / IDLE_SECONDS)


def _loop_seconds() -> float:
    """CPU seconds of what readers do most: push, pop, look up."""
    stack: list[int] = []
    seen: dict[int, int] = {}
    begin = time.process_time()
    for number in range(1_000_000):
        stack.append(number)
        seen[number & 1023] = stack.pop()
    return time.process_time() - begin

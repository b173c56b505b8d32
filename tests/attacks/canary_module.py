"""The module that hostile pickles name: importing it, or touching anything in it, makes the canary.

Copied beside each attack, where an import by name would find it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

CANARY = Path("canary-was-here")
CANARY.touch()


def fire(*args: Any, **kwargs: Any) -> None:
    CANARY.touch()


class Class:
    def __new__(cls, *args: Any, **kwargs: Any) -> Class:
        CANARY.touch()
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        CANARY.touch()


registry: dict[Any, Any] = {}
settings = Class()

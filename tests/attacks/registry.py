"""The registry of attacks: each builder states what must happen to the file that it builds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Outcome = Literal["refused", "described", "shown"]

REFUSED: Outcome = "refused"
"""Exit 3 or 4, with one clear error."""
DESCRIBED: Outcome = "described"
"""Exit 0, and what would have run stands in `globals`."""
SHOWN: Outcome = "shown"
"""Exit 0: the file is odd but sound, and nothing of it reaches the terminal raw."""

CANARY = "canary-was-here"
"""The file that every payload makes in its working folder if it runs."""
CANARY_MODULE = "canary_module"
"""A module beside the attack whose mere import makes the canary."""


@dataclass(frozen=True)
class Attack:
    """One hostile file."""

    name: str
    group: str
    build: Callable[[Path], Path]
    """Writes the file (or folder) into an empty folder and returns its path."""
    outcomes: frozenset[Outcome]
    says: str
    """A part of the error's text (`refused`) or of a name in `globals` (`described`)."""
    fires: bool
    """Whether a real unpickler that is given this file makes the canary; a test holds it to that."""
    slow: bool
    """Whether building or reading it takes more than a fraction of a second."""

    @property
    def runs_code(self) -> bool:
        return self.fires or (DESCRIBED in self.outcomes and SHOWN not in self.outcomes)


ATTACKS: dict[str, Attack] = {}


def attack(
    *outcomes: Outcome, says: str = "", fires: bool = False, slow: bool = False, file: str = "attack.bin"
) -> Callable[[Callable[..., bytes | Path]], Callable[..., bytes | Path]]:
    """Register a builder: `def name() -> bytes` for a file, `def name(folder) -> Path` for all else.

    More than one outcome means that each is as good as the other.
    """

    def register(function: Callable[..., bytes | Path]) -> Callable[..., bytes | Path]:
        name = function.__name__
        group = function.__module__.rpartition(".")[2]
        add(name, group, function, *outcomes, says=says, fires=fires, slow=slow, file=file)
        return function

    return register


def add(
    name: str,
    group: str,
    function: Callable[..., bytes | Path],
    *outcomes: Outcome,
    says: str = "",
    fires: bool = False,
    slow: bool = False,
    file: str = "attack.bin",
) -> None:
    """What `attack` does, for builders that a loop makes.

    Raises: ValueError for a name that is taken or a builder without an outcome.
    """
    if name in ATTACKS or not outcomes:
        raise ValueError(name)

    def build(folder: Path) -> Path:
        if function.__code__.co_argcount:
            return Path(function(folder))  # type: ignore[arg-type]
        path = folder / file
        path.write_bytes(function())  # type: ignore[arg-type]
        return path

    ATTACKS[name] = Attack(name, group, build, frozenset(outcomes), says, fires, slow)

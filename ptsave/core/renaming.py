"""Proposing the renaming that would make a state dict fit: a prefix, a renamed module, shifted numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ptsave.core.keys import Expected
from ptsave.core.nodes import TensorEntry

MAX_NAMES = 20_000
"""Names past which nothing is proposed."""
MAX_CHARS = 2_000_000
"""Characters of all names together past which nothing is proposed: each rule is tried on all of them."""
MAX_PARTS = 32
"""How many parts of a name, from its end, are looked at for a common ending."""


@dataclass(frozen=True)
class Proposal:
    """A flag of `convert`, and how far it helps."""

    flag: str
    num_fitting: int
    """Names that are expected, with the expected shape, once it is applied."""
    num_expected: int

    def __str__(self) -> str:
        return f"{self.flag} (then {self.num_fitting} of {self.num_expected} fit)"


def propose(expected: Mapping[str, Expected], found: Mapping[str, TensorEntry]) -> Proposal | None:
    """The one flag that makes the most names fit, or None where none makes more of them fit."""
    wanted = {name: want for name, want in expected.items() if not want.is_recomputed}
    if max(len(wanted), len(found)) > MAX_NAMES or sum(map(len, found)) > MAX_CHARS:
        return None

    def fitting(rename: Callable[[str], str]) -> int:
        names = {rename(name): entry for name, entry in found.items()}
        if len(names) < len(found):
            return -1  # two names would become one
        return sum(name in names and want.shape in (None, names[name].shape) for name, want in wanted.items())

    best = Proposal("", fitting(lambda name: name), len(wanted))
    start = best.num_fitting
    for flag, rename in _candidates(list(wanted), list(found)):
        count = fitting(rename)
        if count > best.num_fitting:
            best = Proposal(flag, count, len(wanted))
    return best if best.num_fitting > start else None


def _strip(prefix: str) -> Callable[[str], str]:
    return lambda name: name.removeprefix(prefix)


def _substitute(pattern: str, to: str) -> Callable[[str], str]:
    return lambda name: re.sub(pattern, to, name)


def _candidates(wanted: list[str], found: list[str]) -> Iterator[tuple[str, Callable[[str], str]]]:
    """Flags worth trying, the simplest first."""
    missing = [name for name in wanted if name not in set(found)]
    strange = [name for name in found if name not in set(wanted)]
    pairs = Counter(_edges(missing, strange))
    for (old, new), _ in pairs.most_common(32):
        if old and not new and all(name.startswith(old) for name in strange):
            yield f"--strip-prefix '{old}'", _strip(old)
        pattern, to = f"^{re.escape(old)}", new.replace("\\", "\\\\")
        yield f"--rename '{pattern}={to}'", _substitute(pattern, to)
    yield from _inner(missing, strange)
    yield from _shifts(wanted, found)


def _edges(missing: list[str], strange: list[str]) -> Iterator[tuple[str, str]]:
    """For names with a common ending: the fronts that differ (`encoder.` and `model.enc.`)."""
    by_end: dict[str, list[str]] = {}
    for name in missing:
        parts = name.rsplit(".", MAX_PARTS)
        for i in range(len(parts)):
            by_end.setdefault(".".join(parts[i:]), []).append(name)
    for name in strange:
        parts = name.rsplit(".", MAX_PARTS)
        for i in range(len(parts)):
            end = ".".join(parts[i:])
            for other in by_end.get(end, ())[:8]:
                yield name.removesuffix(end), other.removesuffix(end)
            if end in by_end:
                break  # the longest common ending


def _inner(missing: list[str], strange: list[str]) -> Iterator[tuple[str, Callable[[str], str]]]:
    """One module renamed anywhere in the names: the parts that only one side has."""
    old_parts = Counter(part for name in strange for part in name.split("."))
    new_parts = Counter(part for name in missing for part in name.split("."))
    gone = [part for part in old_parts if part not in new_parts and not part.isdigit()]
    come = [part for part in new_parts if part not in old_parts and not part.isdigit()]
    for old in sorted(gone, key=lambda part: -old_parts[part])[:8]:
        for new in sorted(come, key=lambda part: abs(new_parts[part] - old_parts[old]))[:8]:
            pattern = rf"(^|\.){re.escape(old)}(?=\.|$)"
            to = rf"\1{new}"
            yield f"--rename '{pattern}={to}'", _substitute(pattern, to)


def _shifts(wanted: list[str], found: list[str]) -> Iterator[tuple[str, Callable[[str], str]]]:
    """Numbers that moved: `layers.1.weight` that is `layers.0.weight` now.

    One regular expression cannot count, so the flag is one --rename for each number, in an order in
    which none runs into the next.
    """
    pattern = re.compile(r"^(.*?\.|)(\d+)(\..*|)$")
    fronts: dict[str, tuple[set[int], set[int]]] = {}
    for side, names in enumerate((found, wanted)):
        for name in names:
            if match := pattern.match(name):
                fronts.setdefault(match[1], (set(), set()))[side].add(int(match[2]))
    for front, (old, new) in fronts.items():
        if old and new and min(new) != min(old):
            yield _shift(front, old, min(new) - min(old))


def _shift(front: str, old: set[int], shift: int) -> tuple[str, Callable[[str], str]]:
    numbers = sorted(range(min(old), max(old) + 1), reverse=shift > 0)
    head = re.escape(front)
    flag = " ".join(rf"--rename '^{head}{n}\.={front}{n + shift}.'" for n in numbers)

    def rename(name: str) -> str:
        for n in numbers:
            name, done = re.subn(rf"^{head}{n}\.", f"{front}{n + shift}.", name)
            if done:
                break
        return name

    return flag, rename

"""Proposing the renaming that would make a state dict fit: a prefix, a renamed module, shifted numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ptsave.core.nodes import TensorEntry
from ptsave.core.parts.keys import Expected, role

MAX_NAMES = 20_000
"""Names past which nothing is proposed."""
MAX_CHARS = 2_000_000
"""Characters of all names together past which nothing is proposed: each rule is tried on all of them."""
MAX_PARTS = 32
"""How many parts of a name, from its end, are looked at for a common ending."""
MAX_MODULES = 32
"""Modules past which no pairs of them are listed."""


@dataclass(frozen=True)
class Proposal:
    """Flags of `convert` that make a state dict fit."""

    flag: str
    num_expected: int
    is_by_order: bool = False
    """Whether names were paired by their order, roles and shapes: nothing in their spelling says so."""

    def __str__(self) -> str:
        what = f"{self.flag} (then all {self.num_expected} fit)"
        return (
            f"{what}: paired by order and shape, which a person should look at" if self.is_by_order else what
        )


def propose(expected: Mapping[str, Expected], found: Mapping[str, TensorEntry]) -> Proposal | None:
    """The simplest flags that make every name fit, in shape and in role, or None where nothing does."""
    wanted = {name: want for name, want in expected.items() if not want.is_recomputed}
    if max(len(wanted), len(found)) > MAX_NAMES or sum(map(len, found)) > MAX_CHARS:
        return None
    for flag, rename in _candidates(list(wanted), list(found)):
        if _fits(wanted, found, rename):
            return Proposal(flag, len(wanted))
    return _by_order(wanted, found)


def _fits(
    wanted: Mapping[str, Expected], found: Mapping[str, TensorEntry], rename: Callable[[str], str]
) -> bool:
    """Whether every name is there once, and none too many, with its shape; a scale stays a scale."""
    names: dict[str, TensorEntry] = {}
    for old, entry in found.items():
        name = rename(old)
        if name in names or name not in wanted or role(name) != role(old):
            return False
        if wanted[name].shape not in (None, entry.shape):
            return False
        names[name] = entry
    there = {wanted[name].tied_to or name for name in names}
    return all((want.tied_to or name) in there for name, want in wanted.items())


def _by_order(wanted: Mapping[str, Expected], found: Mapping[str, TensorEntry]) -> Proposal | None:
    """Modules that were only renamed: as many as before, in the same order, with the same tensors.

    Proposed where no other order would fit, too: no two of the modules have tensors of the same shapes.
    """
    missing = _modules(name for name in wanted if name not in found)
    strange = _modules(name for name in found if name not in wanted)
    if not 0 < len(missing) == len(strange) <= MAX_MODULES:
        return None
    new = {where: _shapes(parts, wanted) for where, parts in missing.items()}
    old = {where: _shapes(parts, found) for where, parts in strange.items()}
    if list(new.values()) != list(old.values()) or len(set(new.values())) < len(new):
        return None
    pairs = list(zip(old, new, strict=True))
    if set(old) & set(new):  # one rename would run into the next
        return None
    renames = [_module_rename(a, b) for a, b in pairs]

    def rename(name: str) -> str:
        for pattern, to in renames:
            name = re.sub(pattern, to, name)
        return name

    if not _fits(wanted, found, rename):
        return None
    return Proposal(" ".join(f"--rename '{a}={b}'" for a, b in renames), len(wanted), is_by_order=True)


def _module_rename(old: str, new: str) -> tuple[str, str]:
    front = f"{new}." if new else ""
    return (rf"^{re.escape(old)}\.(?=[^.]+$)" if old else r"^(?=[^.]+$)"), front.replace("\\", "\\\\")


def _modules(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Module → the last part of each of its names → the name."""
    modules: dict[str, dict[str, str]] = {}
    for name in names:
        where, _, last = name.rpartition(".")
        modules.setdefault(where, {})[last] = name
    return modules


def _shapes(
    parts: Mapping[str, str], tensors: Mapping[str, Expected] | Mapping[str, TensorEntry]
) -> tuple[tuple[str, tuple[int, ...] | None], ...]:
    return tuple(sorted((last, tensors[name].shape) for last, name in parts.items()))


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
    yield from _roles(missing, strange)
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


def _roles(missing: list[str], strange: list[str]) -> Iterator[tuple[str, Callable[[str], str]]]:
    """Other words for the same roles everywhere: `gamma` and `beta` for `weight` and `bias`."""
    new = {role(name): name.rpartition(".")[2] for name in missing}
    old = {role(name): name.rpartition(".")[2] for name in strange}
    if new.keys() != old.keys() or set(new.values()) & set(old.values()):
        return
    renames = [(rf"(^|\.){re.escape(old[one])}$", rf"\1{new[one]}") for one in old]

    def rename(name: str) -> str:
        for pattern, to in renames:
            name = re.sub(pattern, to, name)
        return name

    yield " ".join(f"--rename '{pattern}={to}'" for pattern, to in renames), rename


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

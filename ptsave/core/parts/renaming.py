"""Proposing the renaming that would make a state dict fit: a prefix, a renamed module, shifted numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from ptsave.core.nodes import TensorEntry
from ptsave.core.parts.keys import Expected, role
from ptsave.errors import quoted

MAX_NAMES = 20_000
"""Names past which nothing is proposed."""
MAX_CHARS = 2_000_000
"""Characters of all names together past which nothing is proposed: each rule is tried on all of them."""
MAX_PARTS = 32
"""How many parts of a name, from its end, are looked at for a common ending."""
MAX_RULES = 32
"""Rules past which none are proposed: nobody reads so many."""
Shapes = tuple[tuple[str, tuple[int, ...] | None], ...]
"""The last parts of the names of a module's own tensors, with their shapes."""
Renames = list[tuple[str, str]]
"""Pattern → text, as `re.sub` takes them, in their order."""


@dataclass(frozen=True)
class Proposal:
    """Flags of `convert` that make a state dict fit."""

    flag: str
    num_expected: int
    is_by_order: bool = False
    """Whether names were paired by their order, roles and shapes: nothing in their spelling says so."""

    def __str__(self) -> str:
        how = "; names were paired by order and shape alone, so check them" if self.is_by_order else ""
        return f"{self.flag} (then all {self.num_expected} fit{how})"


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
    """Modules that were only renamed, told apart by the shapes of their tensors and the numbers in names.

    Modules whose names differ in numbers alone (the layers of a stack) are one family, and keep their order.
    Families are paired by shapes, which no two of them may share; at last each module is its own family.
    """
    missing = _modules(name for name in wanted if name not in found)
    strange = _modules(name for name in found if name not in wanted)
    if set(missing) & set(strange):  # one rename would run into the next
        return None
    new = {where: _shapes(parts, wanted) for where, parts in missing.items()}
    old = {where: _shapes(parts, found) for where, parts in strange.items()}
    for family in _FAMILIES:
        renames = _paired(_families(old, family), _families(new, family))
        if not 0 < len(renames) <= MAX_RULES:
            continue

        def rename(name: str, renames: Renames = renames) -> str:
            for pattern, to in renames:
                name = re.sub(pattern, to, name)
            return name

        if _fits(wanted, found, rename):
            flags = _flags(renames)
            return Proposal(flags, len(wanted), is_by_order=True)
    return None


def _families(
    modules: Mapping[str, Shapes], family: Callable[[str], str]
) -> dict[tuple[Shapes, ...], list[str]]:
    """Shapes of a family's modules, in the order of their numbers → the names; empty where two share them."""
    families: dict[str, list[str]] = {}
    for where in sorted(modules, key=_numbers):
        families.setdefault(family(where), []).append(where)
    found = {tuple(modules[where] for where in names): names for names in families.values()}
    return found if len(found) == len(families) else {}


def _paired(
    old: Mapping[tuple[Shapes, ...], list[str]], new: Mapping[tuple[Shapes, ...], list[str]]
) -> Renames:
    """What makes the new names of the old ones; nothing where they do not pair."""
    if old.keys() != new.keys():
        return []
    return [rename for shapes, names in old.items() for rename in _renames(names, new[shapes])]


def _renames(old: list[str], new: list[str]) -> Renames:
    """One rule for a family whose numbers stay what they are, else one for each of its modules."""
    places, to_places = _varying(old), _varying(new)
    stays = all(
        [_numbers(a)[i] for i in places] == [_numbers(b)[i] for i in to_places]
        for a, b in zip(old, new, strict=True)
    )
    if len(old) == 1 or not stays:
        return list(map(_module_rename, old, new))
    pattern = _spelled(old[0], places, lambda _: "([0-9]+)", re.escape)
    to = _spelled(new[0], to_places, r"\g<{}>".format, _as_text)
    return [(rf"^{pattern}\.(?=[^.]+$)", f"{to}.")]


def _varying(names: Sequence[str]) -> list[int]:
    """Which of the numbers in the names of a family are not the same in all."""
    return [i for i, numbers in enumerate(zip(*map(_numbers, names), strict=True)) if len(set(numbers)) > 1]


def _spelled(
    where: str, places: Sequence[int], number: Callable[[int], str], text: Callable[[str], str]
) -> str:
    """`where` with `number(1)`, `number(2)` and so on for its numbers at `places`, and `text` of all else."""
    digits = _DIGITS.findall(where)
    for k, i in enumerate(places, 1):
        digits[i] = number(k)
    parts = zip_longest(map(text, _DIGITS.split(where)), digits, fillvalue="")
    return "".join(part for pair in parts for part in pair)


def _as_text(part: str) -> str:
    return part.replace("\\", "\\\\")


def _module_rename(old: str, new: str) -> tuple[str, str]:
    return (rf"^{re.escape(old)}\.(?=[^.]+$)" if old else r"^(?=[^.]+$)"), _as_text(f"{new}." if new else "")


_DIGITS = re.compile("[0-9]+")
_INDEX = re.compile(r"(?<![^.])[0-9]+(?![^.])")
_FAMILIES: tuple[Callable[[str], str], ...] = (
    lambda where: _INDEX.sub("#", where, count=1),
    lambda where: _INDEX.sub("#", where),
    lambda where: _DIGITS.sub("#", where),
    lambda where: where,
)
"""What the names of a family have in common: all but the first index, the indices, the numbers; all of it."""


def _numbers(where: str) -> list[int]:
    return [int(digits[:9]) for digits in _DIGITS.findall(where)]


def _flags(renames: Renames) -> str:
    """The rules as flags of `convert`, for the shell at hand: names come from a file."""
    return " ".join(f"--rename {quoted(f'{pattern}={to}')}" for pattern, to in renames)


def _modules(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Module → the last part of each of its names → the name."""
    modules: dict[str, dict[str, str]] = {}
    for name in names:
        where, _, last = name.rpartition(".")
        modules.setdefault(where, {})[last] = name
    return modules


def _shapes(parts: Mapping[str, str], tensors: Mapping[str, Expected] | Mapping[str, TensorEntry]) -> Shapes:
    return tuple(sorted((last, tensors[name].shape) for last, name in parts.items()))


def _strip(prefix: str) -> Callable[[str], str]:
    return lambda name: name.removeprefix(prefix)


def _substitute(pattern: str, to: str) -> Callable[[str], str]:
    return lambda name: re.sub(pattern, to, name)


def _candidates(wanted: list[str], found: list[str]) -> Iterator[tuple[str, Callable[[str], str]]]:
    """Flags worth trying, the simplest first."""
    there, asked = set(found), set(wanted)
    missing = [name for name in wanted if name not in there]
    strange = [name for name in found if name not in asked]
    pairs = Counter(_edges(missing, strange))
    for (old, new), _ in pairs.most_common(32):
        if old and not new and all(name.startswith(old) for name in strange):
            yield f"--strip-prefix {quoted(old)}", _strip(old)
        pattern, to = f"^{re.escape(old)}", _as_text(new)
        yield _flags([(pattern, to)]), _substitute(pattern, to)
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
    renames = [(rf"(^|\.){re.escape(old[one])}$", _behind_group(new[one])) for one in old]

    def rename(name: str) -> str:
        for pattern, to in renames:
            name = re.sub(pattern, to, name)
        return name

    yield _flags(renames), rename


def _inner(missing: list[str], strange: list[str]) -> Iterator[tuple[str, Callable[[str], str]]]:
    """One module renamed anywhere in the names: the parts that only one side has."""
    old_parts = Counter(part for name in strange for part in name.split("."))
    new_parts = Counter(part for name in missing for part in name.split("."))
    gone = [part for part in old_parts if part not in new_parts and not part.isdigit()]
    come = [part for part in new_parts if part not in old_parts and not part.isdigit()]
    for old in sorted(gone, key=lambda part: -old_parts[part])[:8]:
        for new in sorted(come, key=lambda part: abs(new_parts[part] - old_parts[old]))[:8]:
            pattern = rf"(^|\.){re.escape(old)}(?=\.|$)"
            to = _behind_group(new)
            yield _flags([(pattern, to)]), _substitute(pattern, to)


def _shifts(wanted: list[str], found: list[str]) -> Iterator[tuple[str, Callable[[str], str]]]:
    """Numbers that moved: `layers.1.weight` that is `layers.0.weight` now.

    One regular expression cannot count, so the flag is one --rename for each number, in an order in
    which none runs into the next.
    """
    pattern = re.compile(r"(.*?\.|)([0-9]{1,9})(?:\.|\Z)", re.DOTALL)  # none has numbers of more digits
    fronts: dict[str, tuple[set[int], set[int]]] = {}
    for side, names in enumerate((found, wanted)):
        for name in names:
            if match := pattern.match(name):
                fronts.setdefault(match[1], (set(), set()))[side].add(int(match[2]))
    for front, (old, new) in fronts.items():
        shift = min(new, default=0) - min(old, default=0)
        if old and shift and {n + shift for n in old} <= new:
            yield _shift(front, old, shift)


def _shift(front: str, old: set[int], shift: int) -> tuple[str, Callable[[str], str]]:
    head = re.escape(front)
    numbers = {str(n): str(n + shift) for n in sorted(old, reverse=shift > 0)}
    number = re.compile(rf"^({head})([0-9]+)(?=\.)")

    def rename(name: str) -> str:
        return number.sub(lambda found: found[1] + numbers.get(found[2], found[2]), name)

    return _flags([(rf"^{head}{n}\.", _as_text(f"{front}{to}.")) for n, to in numbers.items()]), rename


def _behind_group(text: str) -> str:
    """The replacement that is the pattern's only group, and `text` behind it."""
    return (r"\g<1>" if text[:1].isdigit() else r"\1") + _as_text(text)

"""Holding a state dict against what an architecture expects: names, shapes, dtypes."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ptsave.core.accounts import Extras
from ptsave.core.names import hint_for, matches
from ptsave.core.nodes import TensorEntry
from ptsave.core.parts.coverage import Coverage
from ptsave.core.values import compare as values
from ptsave.core.values.numbers import has_values
from ptsave.errors import Option, UsageError

MAX_NEAREST = 1000
"""Names past which no nearest ones are sought (the search is quadratic)."""


@dataclass(frozen=True)
class Expected:
    """What an architecture wants under one name."""

    shape: tuple[int, ...] | None
    """None where any will do (a lazy module takes its shapes from the file)."""
    dtype: str
    tied_to: str | None = None
    """The first name that is the same parameter, where there is one."""
    is_buffer: bool = False
    is_recomputed: bool = False
    """Whether it is a buffer that the model makes by itself and keeps out of its state dict
    (`persistent=False`); files of older code may still hold it."""


@dataclass(frozen=True)
class Mismatch:
    """A name whose shape differs."""

    name: str
    expected: tuple[int, ...]
    found: tuple[int, ...]


class Allowed(NamedTuple):
    """Globs of names that may be absent from a state dict, and of names that may be left in it."""

    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()


class Wanted(NamedTuple):
    """What a user wants of a checkpoint for a model: which state dict, and how far it may not fit."""

    allowed: Allowed = Allowed()
    tie: Sequence[str] = ()
    """Names that win over the other names of the same parameter, where the values differ."""
    select: str | None = None
    """The dotted key of the state dict; None for the one that is found."""
    extras: Extras = "fail"
    """Whether weights of the checkpoint that no state dict has are left out: "drop"."""
    min_coverage: float = 0.5
    """How much of the model's elements have to come from the checkpoint, from 0 to 1."""


EXACT = Wanted()


@dataclass(frozen=True)
class KeyReport:
    """How a state dict fits an architecture."""

    missing: tuple[str, ...]
    """Expected and not there, nor under the name of a parameter that it is tied to."""
    unexpected: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]
    recast: tuple[tuple[str, str, str], ...]
    """Name, expected dtype, found dtype, where they differ."""
    recomputed: tuple[str, ...]
    """Names in the file that the model computes by itself: they are left where they are."""
    nearest: Mapping[str, str]
    """Missing name → the unexpected name that looks most like it."""
    untied: tuple[tuple[str, str], ...] = ()
    """Names of one parameter under which the state dict has different values."""
    refusal: str = ""
    """Why the model's own loading code does not take it, in its words."""
    unasked: str = ""
    """Why the model's own loading code could not be asked, where it might take it."""
    fresh: tuple[str, ...] = ()
    """Missing, as is allowed: the model's own initial values stay."""
    left: tuple[str, ...] = ()
    """Unexpected, as is allowed: left where they are."""
    coverage: Coverage | None = None
    """How much of the model comes from the file."""

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched or self.untied or self.refusal)

    def permit(self, allowed: Allowed) -> KeyReport:
        """The report once `allowed` names may be missing or left over; another shape is both."""

        def is_both(name: str) -> bool:
            return matches(name, allowed.missing) and matches(name, allowed.unexpected)

        fresh = [name for name in self.missing if matches(name, allowed.missing)]
        left = [name for name in self.unexpected if matches(name, allowed.unexpected)]
        reshaped = [m.name for m in self.mismatched if is_both(m.name)]
        return replace(
            self,
            missing=tuple(name for name in self.missing if not matches(name, allowed.missing)),
            unexpected=tuple(name for name in self.unexpected if not matches(name, allowed.unexpected)),
            mismatched=tuple(m for m in self.mismatched if not is_both(m.name)),
            fresh=(*self.fresh, *fresh, *reshaped),
            left=(*self.left, *left, *reshaped),
        )

    def summary(self) -> str:
        """One line: `2 missing (fc1.weight, …), 1 unexpected (…)`."""
        parts = [f"{a!r} and {b!r} are one parameter in the model and differ" for a, b in self.untied[:1]]
        parts += [self.refusal] if self.refusal else []
        for number, word, names in (
            (len(self.missing), "missing", self.missing),
            (len(self.unexpected), "unexpected", self.unexpected),
            (len(self.mismatched), "of another shape", [_shapes(m) for m in self.mismatched]),
        ):
            if number:
                more = ", …" if number > 3 else ""
                parts.append(f"{number} {word} ({', '.join(list(names)[:3])}{more})")
        if self.unasked:
            parts.append(f"and the model's own loading code gives no answer without values: {self.unasked}")
        return ", ".join(parts)


def compare(
    expected: Mapping[str, Expected],
    found: Mapping[str, TensorEntry],
    expected_extra: Iterable[str] = (),
    found_extra: Iterable[str] = (),
) -> KeyReport:
    """Check the tensors `found` against `expected`; a tied parameter may be there under any of its names.

    `expected_extra` and `found_extra` are the names that do not hold tensors (`_extra_state`).
    """
    groups: dict[str, list[str]] = {}
    recomputed = tuple(name for name, want in expected.items() if want.is_recomputed and name in found)
    expected = {name: want for name, want in expected.items() if not want.is_recomputed}
    for name, want in expected.items():
        groups.setdefault(want.tied_to or name, []).append(name)
    missing = [
        name
        for first, names in groups.items()
        for name in names
        if name not in found and not any(other in found for other in groups[first])
    ]
    missing += sorted(set(expected_extra) - set(found_extra))
    unexpected = [name for name in found if name not in expected and name not in recomputed]
    unexpected += sorted(set(found_extra) - set(expected_extra))
    both = [(name, want, found[name]) for name, want in expected.items() if name in found]
    return KeyReport(
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mismatched=tuple(
            Mismatch(name, want.shape, entry.shape)
            for name, want, entry in both
            if want.shape is not None and not takes(want.shape, entry.shape)
        ),
        recast=tuple(
            (name, want.dtype, entry.dtype.name)
            for name, want, entry in both
            if want.dtype != entry.dtype.name
        ),
        recomputed=recomputed,
        nearest=_nearest(missing, unexpected, expected, found),
        untied=tuple(_untied(groups.values(), found)),
    )


def takes(wanted: tuple[int, ...], found: tuple[int, ...]) -> bool:
    """Whether a tensor of the shape `found` goes where one of the shape `wanted` is.

    A scalar may have one dimension of one element, as torch before 0.4 wrote it. torch takes the first of
    several elements too, which would lose the others. Source: torch/nn/modules/module.py,
    `_load_from_state_dict`.
    """
    return wanted == found or (wanted == () and found == (1,))


def choose_tied(
    expected: Mapping[str, Expected], names: Iterable[str], chosen: Iterable[str]
) -> dict[str, str]:
    """Each of `names` that gives way → the one of `chosen` that is the same parameter.

    Raises: UsageError for a chosen name that is not there, or is tied to no other one.
    """
    names = list(names)
    gives_way: dict[str, str] = {}
    for name in chosen:
        if name not in expected or name not in names:
            raise UsageError(f"there is no tensor {name!r}", Option("tie"), hint_for(name, names, "tensors"))
        first = expected[name].tied_to or name
        others = [n for n, want in expected.items() if n != name and (want.tied_to or n) == first]
        if not others:
            raise UsageError(f"{name!r} is not a tied parameter of the model", Option("tie"), "leave it out")
        gives_way |= {other: name for other in others if other in names}
    return gives_way


def _untied(groups: Iterable[Sequence[str]], found: Mapping[str, TensorEntry]) -> Iterator[tuple[str, str]]:
    for group in groups:
        there = [name for name in group if name in found]
        for name in there[1:]:
            if not _has_same_values(found[there[0]], found[name]):
                yield there[0], name


def _has_same_values(a: TensorEntry, b: TensorEntry) -> bool:
    if a.view == b.view:
        return True
    if a.shape != b.shape or not (has_values(a) and has_values(b)):
        return a.shape == b.shape
    found = values.compare(a, b, lambda num_bytes: None)
    return found is None or not found.num_different


def role(name: str) -> str:
    """What the end of a name says that a tensor is for: a scale is not a shift, whatever either is called."""
    last = re.split(r"[._]", name.rpartition(".")[2])[-1].lower()
    return _ROLES.get(last, last)


_ROLES = {
    **dict.fromkeys(("weight", "gamma", "kernel", "w", "weights", "scale", "g"), "weight"),
    **dict.fromkeys(("bias", "beta", "b", "shift", "offset"), "bias"),
    **dict.fromkeys(("var", "variance"), "var"),
}


def _nearest(
    missing: Sequence[str],
    unexpected: Sequence[str],
    expected: Mapping[str, Expected],
    found: Mapping[str, TensorEntry],
) -> dict[str, str]:
    """Missing name → the unexpected name that it can only be: of its shape and role, and the most like it."""
    if len(missing) > MAX_NEAREST or len(unexpected) > MAX_NEAREST:
        return {}

    def can_be(name: str, other: str) -> bool:
        want, entry = expected.get(name), found.get(other)
        if (want is None) != (entry is None) or name == other:
            return False
        fits = want is None or entry is None or want.shape in (None, entry.shape)
        return fits and role(name) == role(other)

    near = {}
    for name in missing[:20]:
        choice = [other for other in unexpected if can_be(name, other)]
        # A wrapper or a moved module changes the front of a name and keeps its end.
        ends = [other for other in choice if other.endswith(f".{name}") or name.endswith(f".{other}")]
        close = ends or difflib.get_close_matches(name, choice, n=2, cutoff=0.6)
        if len(close) == 1 or (close and not ends and _is_nearer(name, close[0], close[1])):
            near[name] = close[0]
    taken = Counter(near.values())
    return {name: other for name, other in near.items() if taken[other] == 1}


def _is_nearer(name: str, one: str, other: str) -> bool:
    """Whether `one` is clearly more like `name` than `other` is."""
    ratios = [difflib.SequenceMatcher(None, near, name).ratio() for near in (one, other)]
    return ratios[0] - ratios[1] > 0.05


def _shapes(m: Mismatch) -> str:
    return f"{m.name} {list(m.found)} where {list(m.expected)} is expected"

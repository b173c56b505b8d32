"""Holding a state dict against what an architecture expects: names, shapes, dtypes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ptsave.core.nodes import TensorEntry

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
    is_recomputed: bool = False
    """Whether it is a buffer that the model makes by itself and keeps out of its state dict
    (`persistent=False`); files of older code may still hold it."""


@dataclass(frozen=True)
class Mismatch:
    """A name whose shape differs."""

    name: str
    expected: tuple[int, ...]
    found: tuple[int, ...]


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

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def summary(self) -> str:
        """One line: `2 missing (fc1.weight, …), 1 unexpected (…)`."""
        parts = []
        for number, word, names in (
            (len(self.missing), "missing", self.missing),
            (len(self.unexpected), "unexpected", self.unexpected),
            (len(self.mismatched), "of another shape", [_shapes(m) for m in self.mismatched]),
        ):
            if number:
                more = ", …" if number > 3 else ""
                parts.append(f"{number} {word} ({', '.join(list(names)[:3])}{more})")
        return ", ".join(parts)


def compare(
    expected: Mapping[str, Expected],
    found: Mapping[str, TensorEntry],
    expected_extra: Iterable[str] = (),
    found_extra: Iterable[str] = (),
) -> KeyReport:
    """Hold the tensors `found` against `expected`; a tied parameter may be there under any of its names.

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
            if want.shape is not None and want.shape != entry.shape
        ),
        recast=tuple(
            (name, want.dtype, entry.dtype.name)
            for name, want, entry in both
            if want.dtype != entry.dtype.name
        ),
        recomputed=recomputed,
        nearest=_nearest(missing, unexpected),
    )


def _nearest(missing: list[str], unexpected: list[str]) -> dict[str, str]:
    if len(missing) > MAX_NEAREST or len(unexpected) > MAX_NEAREST:
        return {}
    near = {}
    for name in missing[:20]:
        # A wrapper or a moved module changes the front of a name and keeps its end.
        ends = [other for other in unexpected if other.endswith(f".{name}") or name.endswith(f".{other}")]
        close = ends or difflib.get_close_matches(name, unexpected, n=1, cutoff=0.6)
        if close:
            near[name] = close[0]
    return near


def _shapes(m: Mismatch) -> str:
    return f"{m.name} {list(m.found)} where {list(m.expected)} is expected"

"""Which parts of which storages a torch zip keeps: ties and views survive, and no more is dragged along."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import lcm

from ptsave.core.gather import GatheredStorage
from ptsave.core.nodes import TensorEntry, contiguous_strides
from ptsave.core.storage import Storage
from ptsave.formats.stored import byte_range

SPARSE = 2
"""A lone view that uses less than one in SPARSE bytes of its range is stored without the gaps."""


@dataclass(slots=True, eq=False)
class Part:
    """A run of a storage that becomes a storage of its own in the new file."""

    source: Storage
    source_offset: int
    """In bytes."""
    num_bytes: int
    views: list[TensorEntry] = field(default_factory=list)
    """The different views of it, in order."""
    key: str = ""
    """The name of its record: `data/KEY`."""

    @property
    def is_untyped(self) -> bool:
        """Whether its tensors must say their dtype themselves: no typed storage class says it for all."""
        first = self.views[0].dtype
        return first.storage_class is None or any(view.dtype != first for view in self.views)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one view lies in its part."""

    part: Part
    offset: int
    """Of the first element, in elements."""
    strides: tuple[int, ...]


View = tuple[int, int, tuple[int, ...], tuple[int, ...], str]


def plan_storages(entries: Iterable[TensorEntry]) -> tuple[list[Part], dict[View, Place]]:
    """The parts, in the order of first use, and each view's place.

    Views of one storage that touch or overlap stay on one part; the bytes between parts are left behind.
    """
    unique: dict[View, TensorEntry] = {}
    for entry in entries:
        unique.setdefault(entry.view, entry)
    by_storage: dict[int, list[TensorEntry]] = {}
    for entry in unique.values():
        by_storage.setdefault(id(entry.storage), []).append(entry)
    places: dict[View, Place] = {}
    for views in by_storage.values():
        for start, end, members in _runs(views):
            _place(start, end, members, places)
    parts: dict[int, Part] = {}
    for view in unique:
        part = places[view].part
        if id(part) not in parts:
            part.key = str(len(parts))
            parts[id(part)] = part
    return list(parts.values()), places


def _runs(views: list[TensorEntry]) -> list[tuple[int, int, list[TensorEntry]]]:
    """The views grouped into runs of bytes (first, end) that touch; one without elements is its own."""
    runs: list[tuple[int, int, list[TensorEntry]]] = []
    ranged = [(*byte_range(view), order, view) for order, view in enumerate(views)]
    for start, end, _, view in sorted(ranged, key=lambda item: item[:3]):
        if start == end:
            runs.append((0, 0, [view]))
        elif runs and runs[-1][1] and start <= runs[-1][1]:
            first, reach, members = runs[-1]
            runs[-1] = (first, max(reach, end), [*members, view])
        else:
            runs.append((start, end, [view]))
    return runs


def _place(start: int, end: int, members: list[TensorEntry], places: dict[View, Place]) -> None:
    lone = members[0]
    if len(members) == 1 and lone.num_bytes * SPARSE < end - start:
        part = Part(GatheredStorage(lone), 0, lone.num_bytes, members)
        places[lone.view] = Place(part, 0, contiguous_strides(lone.shape))
        return
    start -= start % lcm(*(view.dtype.itemsize for view in members))
    part = Part(lone.storage, start, end - start, members)
    for view in members:
        offset = view.offset - start // view.dtype.itemsize if view.num_elements else 0
        places[view.view] = Place(part, offset, view.strides)

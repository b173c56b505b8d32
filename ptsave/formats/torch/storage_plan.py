"""Which parts of which storages a torch zip keeps: ties and views survive, and no more is dragged along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm
from operator import itemgetter

from ptsave.core.nodes import TensorEntry, contiguous_strides
from ptsave.core.storage import Storage
from ptsave.core.values.gather import GatheredStorage

SPARSE = 2
"""A lone view that uses less than one in SPARSE bytes of its range is stored without the gaps."""


View = tuple[int, int, tuple[int, ...], tuple[int, ...], str]
"""`TensorEntry.view`: equal for two entries that are the same elements of the same storage."""


@dataclass(slots=True, eq=False)
class PlannedStorage:
    """A storage of the new file, and the run of the old storage that it has."""

    source: Storage
    source_offset: int
    """In bytes."""
    num_bytes: int
    views: dict[View, TensorEntry]
    """The different views of it."""
    storage_class: str | None
    """Its typed storage class, or None where its tensors must say their dtype themselves."""
    key: str = ""
    """The name of its record: `data/KEY`."""


@dataclass(frozen=True, slots=True)
class PlannedView:
    """Where one view lies in its planned storage."""

    part: PlannedStorage
    offset: int
    """Of the first element, in elements."""
    strides: tuple[int, ...]


def names_by_view(tensors: Mapping[str, TensorEntry]) -> dict[View, list[str]]:
    """The names of each view of a storage, in order: more than one where tensors are tied."""
    names: dict[View, list[str]] = {}
    for name, entry in tensors.items():
        names.setdefault(entry.view, []).append(name)
    return names


def plan_storages(views: Mapping[View, TensorEntry]) -> tuple[list[PlannedStorage], dict[View, PlannedView]]:
    """The parts, in the order of first use, and each view's place.

    Views of one storage that touch or overlap stay on one part; the bytes between parts are left behind.
    """
    by_storage: dict[int, dict[View, TensorEntry]] = {}
    for key, view in views.items():
        by_storage.setdefault(id(view.storage), {})[key] = view
    places: dict[View, PlannedView] = {}
    for members in by_storage.values():
        for start, end, run in _runs(members):
            _place(start, end, run, places)
    parts: list[PlannedStorage] = []
    for key in views:
        part = places[key].part
        if not part.key:
            part.key = str(len(parts))
            parts.append(part)
    return parts, places


def _runs(views: dict[View, TensorEntry]) -> list[tuple[int, int, dict[View, TensorEntry]]]:
    """The views grouped into runs of bytes (first, end) that touch; one without elements is its own."""
    runs: list[tuple[int, int, dict[View, TensorEntry]]] = []
    ranged = [(*view.byte_range, order, key) for order, (key, view) in enumerate(views.items())]
    for start, end, _, key in sorted(ranged, key=itemgetter(0, 1, 2)):
        if start == end:
            runs.append((0, 0, {key: views[key]}))
        elif runs and start <= runs[-1][1]:
            first, reach, members = runs[-1]
            members[key] = views[key]
            runs[-1] = (first, max(reach, end), members)
        else:
            runs.append((start, end, {key: views[key]}))
    return runs


def _place(start: int, end: int, members: dict[View, TensorEntry], places: dict[View, PlannedView]) -> None:
    dtypes = {view.dtype for view in members.values()}
    storage_class = next(iter(dtypes)).storage_class if len(dtypes) == 1 else None
    key, first = next(iter(members.items()))
    if len(members) == 1 and first.num_bytes * SPARSE < end - start:
        part = PlannedStorage(GatheredStorage(first), 0, first.num_bytes, members, storage_class)
        places[key] = PlannedView(part, 0, contiguous_strides(first.shape))
        return
    start -= start % lcm(*(dtype.itemsize for dtype in dtypes))
    part = PlannedStorage(first.storage, start, end - start, members, storage_class)
    for key, view in members.items():
        offset = view.offset - start // view.dtype.itemsize if view.num_elements else 0
        places[key] = PlannedView(part, offset, view.strides)

"""Which tensors share memory: tied ones, and views of one another."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from math import prod

from ptsave.core.nodes import TensorEntry
from ptsave.core.values.numbers import any_order


def sharing_groups(tensors: Mapping[str, TensorEntry]) -> list[tuple[str, ...]]:
    """The names, in order, of each set of two or more tensors that share elements.

    Exact for tensors without gaps, transposed ones included. Of tensors with gaps, two share when they are
    the same view, and one shares with a tensor without gaps when that lies between its ends; slices that
    interleave (the columns of a fused weight) do not.
    """
    by_storage: dict[int, list[str]] = {}
    for name, entry in tensors.items():
        if entry.num_bytes and entry.storage.num_bytes:
            by_storage.setdefault(id(entry.storage), []).append(name)
    parent = {name: name for names in by_storage.values() for name in names}
    for names in by_storage.values():
        if len(names) > 1:
            _join(names, tensors, parent)
    groups: dict[str, list[str]] = {}
    for name in parent:
        groups.setdefault(_root(name, parent), []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def _join(names: list[str], tensors: Mapping[str, TensorEntry], parent: dict[str, str]) -> None:
    """Join those of `names`, all on one storage, that share elements."""
    dense: list[tuple[int, int, str]] = []
    gapped: list[tuple[int, int, str]] = []
    same_view: dict[tuple[object, ...], str] = {}
    for name in names:
        entry, _ = any_order(tensors[name])
        item = entry.dtype.itemsize
        span = 1 + sum((n - 1) * s for n, s in zip(entry.shape, entry.strides, strict=True))
        extent = (entry.offset * item, (entry.offset + span) * item, name)
        (dense if span == prod(entry.shape) else gapped).append(extent)
        first = same_view.setdefault((extent[:2], entry.shape, entry.strides), name)
        parent[_root(name, parent)] = _root(first, parent)
    dense.sort()
    runs: list[tuple[int, int, str]] = []
    for start, end, name in dense:
        if runs and start < runs[-1][1]:
            parent[_root(name, parent)] = _root(runs[-1][2], parent)
            runs[-1] = (runs[-1][0], max(end, runs[-1][1]), runs[-1][2])
        else:
            runs.append((start, end, name))
    starts = [start for start, _, _ in runs]
    for start, end, name in gapped:
        i = max(bisect_right(starts, start) - 1, 0)
        while i < len(runs) and runs[i][0] < end:
            if runs[i][1] > start:
                parent[_root(name, parent)] = _root(runs[i][2], parent)
            i += 1


def _root(name: str, parent: dict[str, str]) -> str:
    while parent[name] != name:
        parent[name] = parent[parent[name]]
        name = parent[name]
    return name

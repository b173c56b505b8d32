"""Walking the tree of a checkpoint: its leaves by path, in bounded time whatever the sharing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.errors import LimitError

MAX_VISITS = 4_000_000
"""Cap on the nodes of one walk. A shared container counts each time it is reached, so that a small
file cannot spell exponentially many leaves."""
MAX_DEPTH = 200
"""Cap on how deep containers nest."""

Path = tuple[Any, ...]

SCALARS = (str, int, float, bool, type(None), bytes, complex, bytearray)


def is_scalar(value: Any) -> bool:
    """Whether `value` is plain data that nothing nests in."""
    return isinstance(value, SCALARS)


def leaves(root: Any) -> Iterator[tuple[Path, Any]]:
    """Every leaf of `root` with its path of keys, in order.

    A leaf is a tensor, a plain value, a Global, an empty container, or a list, tuple or set of plain
    values (`betas`). An Opaque is yielded and then, the first time that it is met, its contents.

    Raises: LimitError past MAX_VISITS nodes or MAX_DEPTH levels.
    """
    seen_opaque: set[int] = set()
    open_ids: set[int] = {id(root)}
    budget = MAX_VISITS
    if (node := _descend(root, seen_opaque)) is None:
        yield (), root
        return
    if isinstance(root, Opaque):
        yield (), root
    stack: list[tuple[Path, Iterator[tuple[Any, Any]], int]] = [((), node, id(root))]
    while stack:
        path, children, container = stack[-1]
        for key, value in children:
            budget -= 1
            if budget < 0:
                raise LimitError("leaves", MAX_VISITS, "more")
            if isinstance(value, TensorEntry):
                yield (*path, key), value
                continue
            inner = None if id(value) in open_ids else _descend(value, seen_opaque)
            if inner is None:
                yield (*path, key), value
                continue
            if isinstance(value, Opaque):
                yield (*path, key), value
            if len(stack) >= MAX_DEPTH:
                raise LimitError("depth", MAX_DEPTH, "more")
            open_ids.add(id(value))
            stack.append(((*path, key), inner, id(value)))
            break
        else:
            stack.pop()
            open_ids.discard(container)


def _descend(value: Any, seen_opaque: set[int]) -> Iterator[tuple[Any, Any]] | None:
    """The children of `value` as (key, child), or None where it is a leaf."""
    if isinstance(value, dict):
        return iter(value.items()) if value else None
    if isinstance(value, (list, tuple)):
        return None if all(map(is_scalar, value)) else iter(enumerate(value))
    if isinstance(value, Opaque) and id(value) not in seen_opaque:
        if not value.shared:
            seen_opaque.add(id(value))
        return None if value.is_call_of_scalars else value.children()
    return None


def map_tensors(root: Any, replace: Callable[[TensorEntry], Any]) -> Any:
    """A copy of `root` with each tensor replaced; containers that hold none are shared, not copied.

    Shared containers stay shared, so that the work is bounded by the file and not by its paths.
    """
    done: dict[int, Any] = {}

    def visit(value: Any, depth: int) -> Any:
        if isinstance(value, TensorEntry):
            return replace(value)
        if not isinstance(value, (dict, list, tuple)) or not value:
            return value
        if id(value) in done:
            return done[id(value)]
        if depth > MAX_DEPTH:
            raise LimitError("depth", MAX_DEPTH, "more")
        if isinstance(value, dict):
            copy: Any = type(value)()
            done[id(value)] = copy
            for key, child in value.items():
                copy[key] = visit(child, depth + 1)
            if hasattr(value, "_metadata"):
                copy._metadata = value._metadata
        elif isinstance(value, list):
            copy = done[id(value)] = []
            copy.extend(visit(child, depth + 1) for child in value)
        else:
            copy = done[id(value)] = tuple(visit(child, depth + 1) for child in value)
        return copy

    return visit(root, 0)

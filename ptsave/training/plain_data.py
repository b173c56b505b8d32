"""Conversion between the values in the state dicts of live objects and plain data, which any reader takes."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ptsave.core.nodes import Global, Opaque
from ptsave.core.tree import MAX_DEPTH
from ptsave.errors import LossyError

SCALARS = (bool, int, float, complex, str, bytes, bytearray, type(None))


def as_plain_data(value: Any, where: str) -> Any:
    """A copy of `value` made of dicts, lists, tuples, tensors and scalars. Tensors are not copied.

    Raises: LossyError, which names a value of another type, or a container that holds itself.
    """
    return _plain(value, where, {}, 0)


def _plain(value: Any, where: str, done: dict[int, Any], depth: int) -> Any:
    if isinstance(value, (torch.Tensor, torch.dtype)) or type(value) in SCALARS:
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value)
    if isinstance(value, (Mapping, list, deque, set, frozenset, tuple)):
        if id(value) not in done:
            if depth > MAX_DEPTH:
                raise LossyError(f"{where[:80]!r} … nests deeper than {MAX_DEPTH}", "", "flatten it")
            done[id(value)] = _OPEN, value
            done[id(value)] = _plain_copy(value, where, done, depth + 1), value
        made = done[id(value)][0]
        if made is _OPEN:
            raise LossyError(
                f"{where!r} is a container that holds itself", "", "keep it out of its own contents"
            )
        return made
    for kind in (int, float, str):  # an IntEnum, a string of some kind
        if isinstance(value, kind):
            return kind(value)
    has_state = callable(getattr(value, "state_dict", None))
    raise LossyError(
        f"{where!r} is a {type(value).__module__}.{type(value).__qualname__}: not a tensor, not plain data",
        "",
        "give its state_dict()" if has_state else "keep plain data and tensors there",
    )


_OPEN = object()
"""Marks a container whose copy is not complete yet."""


def _plain_copy(value: Any, where: str, done: dict[int, Any], depth: int) -> Any:
    """A copy of a container. Containers that are shared in it are shared in the copy."""
    if isinstance(value, Mapping):
        made: Any = OrderedDict() if isinstance(value, OrderedDict) else {}
        for key, item in value.items():
            made[key] = _plain(item, f"{where}.{key}" if where else str(key), done, depth)
        if hasattr(value, "_metadata"):  # a state dict's, with the versions of its modules
            made._metadata = value._metadata
        return made
    items = [_plain(item, f"{where}.{i}", done, depth) for i, item in enumerate(value)]
    return tuple(items) if isinstance(value, tuple) else items


def like(own: Any, saved: Any) -> Any:
    """A copy of `saved` with the container types and number types of `own`, the live state.

    Tensors are not copied. Containers that are shared in both are shared in the copy. `saved` must not hold
    inert nodes.
    """
    return _like(own, saved, {})


def _like(own: Any, saved: Any, done: dict[tuple[int, int], Any]) -> Any:
    if isinstance(own, np.ndarray) and isinstance(saved, torch.Tensor):
        return saved.cpu().numpy().copy()
    if isinstance(own, np.generic) and isinstance(saved, (bool, int, float, complex)):
        return type(own)(saved)
    if not isinstance(saved, (Mapping, list, tuple)):
        return saved if isinstance(saved, torch.Tensor) else copy.copy(saved)
    key = id(own), id(saved)
    if key not in done:
        done[key] = _like_container(own, saved, done), own  # which stays alive, and keeps its identity
    return done[key][0]


def _like_container(own: Any, saved: Any, done: dict[tuple[int, int], Any]) -> Any:
    if isinstance(saved, Mapping):
        inner = own if isinstance(own, Mapping) else {}
        items = {key: _like(inner.get(key), value, done) for key, value in saved.items()}
        if isinstance(own, Counter):
            return Counter(items)
        if isinstance(own, defaultdict):
            return defaultdict(own.default_factory, items)
        return OrderedDict(items) if isinstance(saved, OrderedDict) else items
    pattern = list(own) if isinstance(own, (list, tuple, deque)) else []
    values = [_like(pattern[i] if i < len(pattern) else None, item, done) for i, item in enumerate(saved)]
    if isinstance(own, deque):
        return deque(values, own.maxlen)
    for kind in (list, tuple, set, frozenset):
        if type(own) is kind:
            return kind(values)
    return type(saved)(values) if type(saved) in (list, tuple) else values


def first_inert(value: Any, where: str) -> tuple[str, str] | None:
    """The path and the class of the first node in `value` that cannot become a live value.

    That is a node that a reader left inert, a container that holds itself, or one that nests deeper than
    MAX_DEPTH.
    """
    return _first_inert(value, where, set(), set())


def _first_inert(value: Any, where: str, inside: set[int], done: set[int]) -> tuple[str, str] | None:
    if isinstance(value, (Opaque, Global)):
        return where, value.name
    if isinstance(value, Mapping):
        children = list(value.items())
    elif isinstance(value, (list, tuple)):
        children = list(enumerate(value))
    else:
        return None
    if id(value) in inside:
        return where, "container that holds itself"
    if len(inside) > MAX_DEPTH:
        return where[:80], "container that nests too deeply"
    if id(value) in done:
        return None
    inside.add(id(value))
    for key, child in children:
        if (found := _first_inert(child, f"{where}.{key}", inside, done)) is not None:
            return found
    inside.discard(id(value))
    done.add(id(value))
    return None

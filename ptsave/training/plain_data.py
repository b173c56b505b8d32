"""Conversion between the values in the state dicts of live objects and plain data, which any reader takes."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ptsave.core.nodes import Global, Opaque
from ptsave.core.tree import CYCLE, MAX_DEPTH, dotted, rewrite, walk
from ptsave.errors import LossyError

SCALARS = (bool, int, float, complex, str, bytes, bytearray, type(None))


def as_plain_data(value: Any, where: str) -> Any:
    """A copy of `value` made of dicts, lists, tuples, tensors and scalars. Tensors are not copied.

    Raises: LossyError, which names a value of another type, or a container that holds itself.
    """

    def enter(path: Sequence[Any], node: Any) -> Any:
        if len(path) > MAX_DEPTH and isinstance(node, _CONTAINERS):
            raise LossyError(
                f"{dotted(path, where)[:80]!r} … nests deeper than {MAX_DEPTH}", "", "flatten it"
            )
        return list(node) if isinstance(node, (deque, set, frozenset)) else node

    def leaf(path: Sequence[Any], value: Any) -> Any:
        if isinstance(value, (torch.Tensor, torch.dtype)) or type(value) in SCALARS:
            return value
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            return torch.from_numpy(value)
        for kind in (int, float, str):  # an IntEnum, a string of some kind
            if isinstance(value, kind):
                return kind(value)
        name, kind = dotted(path, where), type(value)
        has_state = callable(getattr(value, "state_dict", None))
        raise LossyError(
            f"{name!r} is a {kind.__module__}.{kind.__qualname__}: not a tensor, not plain data",
            "",
            "give its state_dict()" if has_state else "keep plain data and tensors there",
        )

    return rewrite(value, leaf, enter=enter, keeps_cycles=False, where=where)


_CONTAINERS = (Mapping, list, deque, set, frozenset, tuple)


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
    for path, node in walk(value, max_depth=MAX_DEPTH + 1):
        if node is CYCLE:
            return dotted(path, where), "container that holds itself"
        if isinstance(node, (Opaque, Global)):
            return dotted(path, where), node.name
        if len(path) > MAX_DEPTH and isinstance(node, (Mapping, list, tuple)):
            return dotted(path, where)[:80], "container that nests too deeply"
    return None

"""The leaves of a checkpoint by path, in bounded time.

Every path is spelled, and a container that is shared is paid for again at each path that leads to it.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, TypeVar

from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.core.tree import CYCLE, MAX_DEPTH, SCALARS, TEXTS, are_scalars, as_state_dict, dotted, walk
from ptsave.errors import LimitError

MAX_REPEATS = 500_000
"""Cap on the nodes that a walk reaches again, by another path. Every node is reached once in time that
the file's length bounds, but sharing lets a small file spell exponentially many paths."""
MAX_NAME_CHARS = 32 * 1024 * 1024
"""Cap on the length of all leaves' paths together: a long key stands in the path of each leaf under it."""

_LONG_TEXT = 1024
_CHARS_PER_REPEAT = 16
_LEVELS_PER_REPEAT = 8
_SPELLED_CHARS = 6  # as JSON spells a character beyond ASCII

_PARTS_OF_TENSOR = 3
"""What listing a tensor again costs, in plain values."""

Path = tuple[Any, ...]
_T = TypeVar("_T")


def leaves(root: Any) -> Iterator[tuple[Path, Any]]:
    """Every leaf of `root` with its path of keys, in order.

    A leaf is a tensor, a plain value, a Global, an empty container, or a list, tuple or set of plain
    values (`betas`). An Opaque is yielded and then, the first time that it is met, its contents.

    Raises: LimitError past MAX_REPEATS, 4 * MAX_NAME_CHARS or MAX_DEPTH.
    """
    return _leaves(root, (), lambda path, key, text: (*path, key), 4 * MAX_NAME_CHARS, sys.maxsize)


def named_leaves(
    root: Any, max_name_chars: int = 4 * MAX_NAME_CHARS, max_leaves: int = sys.maxsize
) -> Iterator[tuple[str | None, Any]]:
    """Every leaf of `root` as `leaves` yields it, with its dotted path; None for a root that is a leaf.

    `max_name_chars`: MAX_NAME_CHARS for the first walk, on which the length of all later ones depends; more
    where the file is large. `max_leaves`: a cap on the leaves, of which each container is as many as two.

    Raises: LimitError past MAX_REPEATS, `max_name_chars`, `max_leaves` or MAX_DEPTH.
    """

    def spell(above: str | None, key: Any, text: str) -> str:
        return text if above is None else f"{above}.{text}"

    return _leaves(root, None, spell, max_name_chars, max_leaves)


def _leaves(
    root: Any, top: _T, spell: Callable[[_T, Any, str], _T], max_name_chars: int, max_leaves: int
) -> Iterator[tuple[_T, Any]]:
    """Every leaf of `root` with its place: `top` is that of `root`, and `spell(place, key, text)` that of the
    value under a key, whose text is given, of the container at a place."""
    met = _Met()
    children = met.enter(root)
    if children is None or isinstance(root, Opaque):
        yield top, root
        if children is None:
            return
    open_ids: set[int] = {id(root)}
    chars = num_leaves = 0
    stack: list[tuple[_T, int, Iterator[tuple[Any, Any]], int]] = [(top, 0, children, id(root))]
    while stack:
        place, place_chars, children, container = stack[-1]
        for key, value in children:
            num_leaves += 1
            if num_leaves > max_leaves:
                raise LimitError("leaves", max_leaves, "more")
            text = key if type(key) is str else str(key)
            key_chars = place_chars + 1 + (len(text) if text.isascii() else _SPELLED_CHARS * len(text))
            chars += key_chars
            if chars > max_name_chars:
                raise LimitError("name_chars", max_name_chars, "more")
            here = spell(place, key, text)
            if type(value) is TensorEntry:
                met.meet(value, _PARTS_OF_TENSOR)
                yield here, value
                continue
            if type(value) in SCALARS:
                met.charge_text(value)
                yield here, value
                continue
            num_leaves += 1
            if id(value) in open_ids:
                yield here, CYCLE
                continue
            inner = met.enter(value, len(stack))
            if inner is None or isinstance(value, Opaque):
                yield here, value
            if inner is not None:
                if len(stack) >= MAX_DEPTH:
                    raise LimitError("depth", MAX_DEPTH, "more")
                open_ids.add(id(value))
                stack.append((here, key_chars, inner, id(value)))
                break
        else:
            stack.pop()
            open_ids.discard(container)


def entries_of(root: Opaque, *, beside: bool = False) -> Iterator[tuple[Path, Any]]:
    """What the state dict of a pickled module has: each value with its path, in order, none taken apart.

    With `beside`, what the module holds beside it follows.

    Raises: LimitError past MAX_REPEATS or MAX_DEPTH.
    """

    def entries(node: Any) -> Iterator[tuple[Any, Any]] | tuple[()]:
        if not is_entered(node):
            return ()
        return chain(node.entries(), node.beside()) if beside else node.entries()

    def is_entered(node: Any) -> bool:
        return node is root or (isinstance(node, Opaque) and node.shared)

    met = _Met()
    for path, node in walk(root, entries, once=False):
        if node is CYCLE or (is_entered(node) and len(path) >= MAX_DEPTH):
            raise LimitError("depth", MAX_DEPTH, "more")
        if is_entered(node):
            met.meet(node, node.num_parts + len(path) // _LEVELS_PER_REPEAT)
        else:
            met.meet(node, 1)
            yield tuple(path), node


def state_dict_of(module: Opaque, *, beside: bool = False) -> OrderedDict[str, Any]:
    """The state dict of a pickled module: what `state_dict()` gives, under the same names.

    With `beside`, also what the module holds beside it. Where loading it depends on how a layer is laid out,
    `_metadata` says so as torch's own does.
    """
    state = {dotted(path): value for path, value in entries_of(module, beside=beside)}
    packed = [name.split(".")[:-1] for name in state if f".{name}".endswith("._packed_params")]
    modules = [
        ".".join(path[:depth]) for path in packed for depth in (len(path) - 1, len(path)) if depth >= 0
    ]
    versions = OrderedDict((module, {"version": _PACKED_LINEAR_VERSION}) for module in modules)
    return as_state_dict(state, versions or None)


_PACKED_LINEAR_VERSION = 3
"""The version that torch gives the state dict of a packed linear weight, and expects again.

Source: torch/ao/nn/quantized/modules/linear.py, `LinearPackedParams._load_from_state_dict`."""


class _Met:
    """Which containers a walk has met, and what meeting some of them again has cost."""

    def __init__(self) -> None:
        self.ids: set[int] = set()
        self.repeats = 0

    def enter(self, value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]] | None:
        """The children of `value` as (key, child), or None where it is a leaf.

        `depth` is the length of its path, which is spelled out for each leaf.
        """
        path_cost = depth // _LEVELS_PER_REPEAT
        if isinstance(value, dict):
            self.meet(value, len(value) + path_cost)
            return iter(value.items()) if value else None
        if isinstance(value, (list, tuple)):
            self.meet(value, len(value) + path_cost)
            if not are_scalars(value):
                return iter(enumerate(value))
            if not {*map(type, value)}.isdisjoint(TEXTS):
                for item in value:
                    self.charge_text(item)
            return None
        if isinstance(value, Opaque):
            if id(value) in self.ids and not value.shared:
                return None
            self.meet(value, value.num_parts + path_cost)
            if not value.is_call_of_scalars:
                return value.children()
            for item in value.args:
                self.charge_text(item)
        return None

    def charge_text(self, value: Any) -> None:
        """Charge for a long text that is reached again: it is spelled out each time."""
        if isinstance(value, TEXTS) and len(value) > _LONG_TEXT:
            self.meet(value, len(value) // _CHARS_PER_REPEAT)

    def meet(self, value: Any, num_parts: int) -> None:
        """Pay for `value` and what its children are, unless it is met for the first time."""
        if id(value) in self.ids:
            self.repeats += 1 + num_parts
            if self.repeats > MAX_REPEATS:
                raise LimitError("repeats", MAX_REPEATS, "more")
        else:
            self.ids.add(id(value))

"""The accounting of a checkpoint: every tensor and storage that it holds is listed, or named as left out.

A reader lists what `state_dict()` would give. What else the file holds (attributes of a pickled module,
members of sets, records that nothing names) would be lost without a word; here it gets its name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ptsave.core.names import hint_for
from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.core.storage import Storage
from ptsave.core.tree import are_scalars
from ptsave.errors import LossyError, Option, UsageError

Extras = Literal["fail", "drop", "keep"]
"""What becomes of what is left out or cannot be held: an error, gone, or kept in the record."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a container that tensors may view: a zip's record, a legacy file's storage, a shard."""

    name: str
    storage: Storage


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that a checkpoint holds and no listed tensor has."""

    name: str
    """Its path in the tree, or the name of its record."""
    what: str
    """Why it is not listed, for a person: the end of a sentence that begins with the name."""
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Accounts:
    """What became of everything that a checkpoint, or a part of its tree, holds."""

    left_out: tuple[LeftOut, ...]
    """What would be lost: to leave it out takes a flag."""
    transient: tuple[LeftOut, ...]
    """Buffers that their module makes again: its own `state_dict()` leaves them out."""
    num_parts: int
    """Storages and records that are accounted for."""


def account(
    root: Any,
    listed: Iterable[TensorEntry],
    parts: Iterable[Part] = (),
    dropped: Iterable[str] = (),
) -> Accounts:
    """Check what is reachable from `root`, and the `parts` of the container, against the `listed` tensors.

    `dropped`: what the reader met and could not keep, in its own words.
    """
    seen = _Seen()
    for entry in listed:
        seen.add(entry)
    left = [LeftOut("", text) for text in dropped]
    transient: list[LeftOut] = []
    for place in _everything(root, seen.views):
        value = place.value
        if isinstance(value, TensorEntry):
            if seen.has(value):
                continue
            seen.add(value)
            if place.is_transient:
                transient.append(LeftOut(place.name, "a buffer that its module makes again", value.num_bytes))
            else:
                left.append(LeftOut(place.name, "a tensor that no state dict has", value.num_bytes))
        elif value.is_array:
            array = value.as_tensor()
            if array is not None and array.num_bytes and place.is_hidden and not place.is_transient:
                left.append(LeftOut(place.name, "an array that no state dict has", array.num_bytes))
        else:
            storage: Storage = value.storage
            seen.roots.update(map(id, storage.origins()))
    num_parts = 0
    for part in parts:
        if part.storage.num_bytes and id(part.storage) not in seen.roots:
            left.append(LeftOut(part.name, "a record that no tensor is of", part.storage.num_bytes))
        num_parts += 1
    return Accounts(tuple(left), tuple(transient), num_parts)


class _Seen:
    """The bytes that tensors have been met on."""

    def __init__(self) -> None:
        self.views: set[Any] = set()
        self.roots: set[int] = set()
        """The identities of the storages that lie in the file, and of those that are made of them."""
        self._ranges: dict[int, list[tuple[int, int]]] = {}
        self._added: list[TensorEntry] = []
        """Those whose bytes are not in `_ranges` yet, where only a tensor that is not listed needs them."""

    def add(self, entry: TensorEntry) -> None:
        view = entry.view
        if view in self.views:
            return
        self.views.add(view)
        self._added.append(entry)
        if id(entry.storage) not in self.roots:
            self.roots.update(map(id, entry.storage.origins()))

    def has(self, entry: TensorEntry) -> bool:
        """Whether all the bytes of `entry` lie in tensors that were met."""
        if entry.view in self.views or not entry.num_bytes:
            return True
        for one in self._added:
            self._ranges.setdefault(id(one.storage), []).append(one.byte_range)
        self._added.clear()
        begin, end = entry.byte_range
        ranges = self._ranges.get(id(entry.storage), [])
        return any(first <= begin and end <= last for first, last in ranges[:_MAX_COMPARED])


_MAX_COMPARED = 64
"""Most views of one storage that another view of it is looked for in: past that it counts as its own."""


@dataclass(frozen=True, slots=True)
class _Place:
    value: Any
    """A tensor, an array, or an object that has a `storage`."""
    path: Any
    """A chain of (parent, key): spelled only where it is needed."""
    is_hidden: bool
    """Whether it is reached only through what its holder's `children` does not show."""
    is_transient: bool

    @property
    def name(self) -> str:
        keys = []
        chain = self.path
        while chain is not None:
            chain, key = chain
            if key is not None:
                keys.append(str(key)[:_MAX_KEY_CHARS])
        return ".".join(reversed(keys[:_MAX_KEYS])) or "value"


_MAX_KEYS = 200
_MAX_KEY_CHARS = 1000


def _everything(root: Any, views: Container[Any]) -> Iterator[_Place]:
    """Every tensor whose view is not in `views`, every array and every storage that `root` reaches.

    What is shown comes first: the rest is then what is hidden wherever it is reached from.
    """
    met: set[int] = set()
    pending = [_Place(root, None, False, False)]
    hidden: deque[_Place] = deque()
    while pending or hidden:
        place = pending.pop() if pending else hidden.popleft()
        node = place.value
        if isinstance(node, TensorEntry):
            yield place
            continue
        children = _children(node)
        if children is None or id(node) in met:
            continue
        met.add(id(node))
        if isinstance(node, Opaque) and (node.is_array or getattr(node, "storage", None) is not None):
            yield place
        found: list[_Place] = []
        for key, child, is_hidden, is_shed in children:
            if isinstance(child, TensorEntry) and child.view in views:
                continue
            if isinstance(child, _WALKED):
                path = place.path if key is None else (place.path, key)
                inner = _Place(child, path, place.is_hidden or is_hidden, place.is_transient or is_shed)
                (hidden if is_hidden else found).append(inner)
        pending += reversed(found)


_WALKED = (TensorEntry, dict, list, tuple, set, frozenset, Opaque)


_Child = tuple[Any, Any, bool, bool]
"""(key, child, whether it is hidden, whether it is transient)."""


def _children(node: Any) -> Iterator[_Child] | None:
    """Those of a container, whatever its place: nothing is passed over."""
    if isinstance(node, dict):
        return _of_dict(node)
    if isinstance(node, (list, tuple, set, frozenset)):
        return None if are_scalars(node) else ((i, child, False, False) for i, child in enumerate(node))
    return _of_opaque(node) if isinstance(node, Opaque) else None


def _of_dict(node: Mapping[Any, Any]) -> Iterator[_Child]:
    for key, child in node.items():
        yield key, child, False, False
        if isinstance(key, (tuple, TensorEntry, Opaque, frozenset)):
            yield "key", key, False, False
    for name, value in getattr(node, "__dict__", {}).items():
        yield name, value, False, False


def _of_opaque(node: Opaque) -> Iterator[_Child]:
    yield from ((key, child, False, False) for key, child in node.children())
    yield from ((i, child, False, False) for i, child in enumerate(node.args))
    yield from ((key, child, True, is_transient) for key, child, is_transient in node.hidden())
    yield None, node.state, node.shared, False
    yield None, node.items, node.shared, False


def parse_extras(text: str, *known: Extras) -> Extras:
    """The one of the `known` ways to treat extras that `--extras` names.

    Raises: UsageError with the nearest one.
    """
    for extras in known:
        if text == extras:
            return extras
    raise UsageError(
        f"{text!r} is not a way to treat extras", Option("extras"), hint_for(text, known, "ways")
    )


def settle_left_out(
    left_out: Sequence[LeftOut], extras: Extras, dropped: list[str], notes: list[str], where: str
) -> None:
    """Refuse to leave behind what no listed tensor has, unless `extras` says so: then it is named.

    Raises: LossyError.
    """
    if not left_out:
        return
    names = [left.name or left.what for left in left_out]
    first = left_out[0]
    said = f"{first.name!r} ({first.what})" if first.name else first.what
    others = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
    if extras == "drop":
        dropped.extend(names)
        notes.append(f"left out {said}{others}")
        return
    raise LossyError(
        f"would leave out {said}{others}",
        where,
        ("`ptsave verify --checks whole` names all of it", Option("extras", "drop", "; ", " leaves it out")),
        extras=names[:MAX_EXTRAS],
    )


MAX_EXTRAS = 1000
"""How many names an error carries."""


Accounting = Callable[[], Iterable[Part]]

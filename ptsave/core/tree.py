"""Trees of nested data: walked, rewritten, and the leaves of a checkpoint by path, in bounded time.

`walk` goes through what is there, `rewrite` copies it with changes, and `leaves` spells every path, at the
price that sharing has. What nests may be shared or hold itself, and leaves may be anything.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.errors import LimitError, LossyError

MAX_REPEATS = 500_000
"""Cap on the nodes that a walk reaches again, by another path. Every node is reached once in time that
the file's length bounds, but sharing lets a small file spell exponentially many paths."""
MAX_NAME_CHARS = 32 * 1024 * 1024
"""Cap on the length of all leaves' paths together: a long key stands in the path of each leaf under it."""
MAX_DEPTH = 200
"""Cap on how deep containers nest."""
CYCLE = Opaque("a container that holds itself")
"""The leaf that stands where a container holds itself."""

_LONG_TEXT = 1024
_CHARS_PER_REPEAT = 16
_LEVELS_PER_REPEAT = 8
_SPELLED_CHARS = 6  # as JSON spells a character beyond ASCII

_PARTS_OF_TENSOR = 3
"""What listing a tensor again costs, in plain values."""

Path = tuple[Any, ...]
_T = TypeVar("_T")

_TEXTS = (str, bytes, bytearray)
SCALARS = (*_TEXTS, int, float, bool, type(None), complex)
_SCALAR_TYPES = frozenset(SCALARS)


def is_scalar(value: Any) -> bool:
    """Whether `value` is plain data that nothing nests in."""
    return isinstance(value, SCALARS)


def are_scalars(values: Iterable[Any]) -> bool:
    """Whether all of `values`, of which a file may have millions, are plain data."""
    kinds = {*map(type, values)} - _SCALAR_TYPES
    return not kinds or all(issubclass(kind, SCALARS) for kind in kinds)


def dotted(path: Iterable[Any], under: str = "") -> str:
    """The keys of a path as one name: `model.fc1.weight`, below the name `under` where there is one."""
    return ".".join((under, *map(str, path)) if under else map(str, path))


def items_of(node: Any) -> Iterable[tuple[Any, Any]]:
    """What a mapping, a list or a tuple holds, as (key, value); nothing of all else."""
    if isinstance(node, (list, tuple)):
        return enumerate(node) if node else ()
    return node.items() if isinstance(node, (dict, Mapping)) else ()


def walk(
    root: Any,
    children: Callable[[Any], Iterable[tuple[Any, Any]]] = items_of,
    *,
    once: bool = True,
    max_depth: int | None = None,
) -> Iterator[tuple[Sequence[Any], Any]]:
    """Every node of `root` with its path, in order: a container and then what it holds, however deep.

    What is met again is yielded again, but entered `once`; CYCLE stands where a container holds itself. The
    path is one list, which changes with the next node. `children` gives what a node holds, as `items_of`
    does, and `max_depth` is the length of the paths below which nothing is entered.
    """
    path: list[Any] = []
    met: dict[int, Any] = {}  # which stay alive, and keep their identity
    inside: set[int] = set()
    pending: list[tuple[int, Iterator[tuple[Any, Any]]]] = [(0, iter(((None, root),)))]
    while pending:
        container, items = pending[-1]
        for key, node in items:
            if path:
                path[-1] = key
            if id(node) in inside:
                yield path, CYCLE
                continue
            yield path, node
            if id(node) in met or len(path) == max_depth:
                continue
            if not (below := children(node)):
                if once and isinstance(node, (Mapping, list, tuple)) and node:
                    met[id(node)] = node  # to find nothing in it takes its time, too
                continue
            if once:
                met[id(node)] = node
            inside.add(id(node))
            pending.append((id(node), iter(below)))
            path.append(None)
            break
        else:
            pending.pop()
            inside.discard(container)
            if path:
                path.pop()


GONE: Any = object()
"""What `rewrite` leaves out of the container that it would be in."""


def rewrite(
    root: Any,
    leaf: Callable[[Sequence[Any], Any], Any],
    *,
    enter: Callable[[Sequence[Any], Any], Any] | None = None,
    leave: Callable[[Sequence[Any], Any, Any], Any] | None = None,
    containers: tuple[type, ...] = (dict, list, tuple, Mapping),
    once: bool = True,
    keeps_cycles: bool = True,
    keeps_scalars: bool = False,
    where: str = "",
) -> Any:
    """A copy of `root` with what `leaf(path, value)` returns for each leaf; GONE leaves it out.

    `enter(path, node)` says first what is to stand in the place of a node, `leave(path, node, made)` what to
    take for the copy `made` of a container. A copy is a dict or an OrderedDict with the `_metadata` of its
    original, a list or a tuple. The path is one list, which changes.

    `containers`: what is entered; all else is a leaf. `once`: whether what is shared stays shared, as it
    came out at its first path, so that the work is bounded by the data and not by its paths.
    `keeps_cycles`: whether what holds itself does so in a copy made `once`. `keeps_scalars`: whether a list
    of plain data, which may be long, is copied as it is. `where`: the name of `root` in errors.

    Raises: LimitError past MAX_DEPTH; LossyError for what holds itself where that is refused.
    """
    path: list[Any] = []
    done: dict[int, tuple[Any, Any]] = {}  # with the originals, which stay alive and keep their identity

    def visit(original: Any) -> Any:
        if done and id(original) in done:
            made = done[id(original)][0]
            if made is _OPEN:
                if enter is not None and enter(path, CYCLE) is GONE:
                    return GONE
                hint = "keep it out of its own contents, or drop it"
                raise LossyError(f"{dotted(path, where)!r} is a container that holds itself", "", hint)
            return made
        node = original if enter is None else enter(path, original)
        if not isinstance(node, containers):
            return GONE if node is GONE else leaf(path, node)
        if len(path) > MAX_DEPTH:
            raise LimitError("depth", MAX_DEPTH, "more")
        made = _empty_like(node)
        is_list, is_tuple = isinstance(made, list), isinstance(node, tuple)
        if once and not (keeps_cycles and is_tuple):
            done[id(original)] = made if keeps_cycles else _OPEN, original
        elif not once:
            done[id(original)] = _OPEN, original
        is_plain = keeps_scalars and isinstance(node, (list, tuple)) and are_scalars(node)
        if is_plain:
            made += node
        for key, child in () if is_plain else items_of(node):
            path.append(key)
            value = visit(child)
            path.pop()
            if value is GONE:
                continue
            if is_list:
                made.append(value)
            else:
                made[key] = value
        made = tuple(made) if is_tuple else made
        if leave is not None:
            made = leave(path, node, made)
        if once:
            done[id(original)] = made, original
        else:
            del done[id(original)]
        return made

    return visit(root)


_OPEN = object()
"""Stands for the copy of a container that is being made."""


def _empty_like(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return []
    if not isinstance(node, OrderedDict) and not hasattr(node, "_metadata"):
        return {}
    made: OrderedDict[Any, Any] = OrderedDict()
    if hasattr(node, "_metadata"):  # a state dict's, with the versions of its modules
        made._metadata = node._metadata  # type: ignore[attr-defined]
    return made


def own_kind(path: Sequence[Any], node: Any, made: Any) -> Any:
    """The copy `made` as the kind of list or tuple that `node` is; a tuple of the same items stays.

    It may be what `leave` of `rewrite` is.
    """
    if isinstance(node, tuple) and all(new is old for new, old in zip(made, node, strict=True)):
        return node
    if not isinstance(node, (list, tuple)) or type(node) in (list, tuple):
        return made
    # torch.return_types take one sequence, as tuple itself does.
    return type(node)(*made) if hasattr(node, "_fields") else type(node)(made)


def with_items(node: Mapping[Any, Any], items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dictionary of the kind of `node`, with its `_metadata`, that holds `items`."""
    made: dict[Any, Any] = _empty_like(node)
    made.update(items)
    return made


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
    walk = _Walk()
    children = walk.enter(root)
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
                walk.meet(value, _PARTS_OF_TENSOR)
                yield here, value
                continue
            if type(value) in SCALARS:
                walk.charge_text(value)
                yield here, value
                continue
            num_leaves += 1
            if id(value) in open_ids:
                yield here, CYCLE
                continue
            inner = walk.enter(value, len(stack))
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
    walk = _Walk()
    walk.meet(root, root.num_parts)
    stack: list[tuple[Path, Iterator[tuple[Any, Any]]]] = [((), _entries(root, beside))]
    while stack:
        path, entries = stack[-1]
        for key, value in entries:
            here = (*path, key)
            if isinstance(value, Opaque) and value.shared:
                if len(stack) >= MAX_DEPTH:
                    raise LimitError("depth", MAX_DEPTH, "more")
                walk.meet(value, value.num_parts + len(stack) // _LEVELS_PER_REPEAT)
                stack.append((here, _entries(value, beside)))
                break
            walk.meet(value, 1)
            yield here, value
        else:
            stack.pop()


def state_dict_of(module: Opaque, *, beside: bool = False) -> OrderedDict[str, Any]:
    """The state dict of a pickled module: what `state_dict()` gives, under the same names.

    With `beside`, also what the module holds beside it. Where loading it depends on how a layer is laid out,
    `_metadata` says so as torch's own does.
    """
    state: OrderedDict[str, Any] = OrderedDict(
        (dotted(path), value) for path, value in entries_of(module, beside=beside)
    )
    packed = [name.split(".")[:-1] for name in state if f".{name}".endswith("._packed_params")]
    modules = [
        ".".join(path[:depth]) for path in packed for depth in (len(path) - 1, len(path)) if depth >= 0
    ]
    if versions := {module: {"version": _PACKED_LINEAR_VERSION} for module in modules}:
        state._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
    return state


_PACKED_LINEAR_VERSION = 3
"""The version that torch gives the state dict of a packed linear weight, and expects again.

Source: torch/ao/nn/quantized/modules/linear.py, `LinearPackedParams._load_from_state_dict`."""


def _entries(node: Opaque, beside: bool) -> Iterator[tuple[Any, Any]]:
    return chain(node.entries(), node.beside()) if beside else node.entries()


class _Walk:
    """Which containers a walk has met, and what meeting some of them again has cost."""

    def __init__(self) -> None:
        self.met: set[int] = set()
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
            if not {*map(type, value)}.isdisjoint(_TEXTS):
                for item in value:
                    self.charge_text(item)
            return None
        if isinstance(value, Opaque):
            if id(value) in self.met and not value.shared:
                return None
            self.meet(value, value.num_parts + path_cost)
            if not value.is_call_of_scalars:
                return value.children()
            for item in value.args:
                self.charge_text(item)
        return None

    def charge_text(self, value: Any) -> None:
        """Charge for a long text that is reached again: it is spelled out each time."""
        if isinstance(value, _TEXTS) and len(value) > _LONG_TEXT:
            self.meet(value, len(value) // _CHARS_PER_REPEAT)

    def meet(self, value: Any, num_parts: int) -> None:
        """Pay for `value` and what its children are, unless it is met for the first time."""
        if id(value) in self.met:
            self.repeats += 1 + num_parts
            if self.repeats > MAX_REPEATS:
                raise LimitError("repeats", MAX_REPEATS, "more")
        else:
            self.met.add(id(value))


def with_arrays(root: Any) -> Any:
    """`root` with weights that are arrays of another library as tensors, each by itself as it was.

    An array is a weight where it lies in a container with arrays of floating-point numbers: generators of
    random numbers and counters keep theirs. Where there is no tensor at all, every array is one but those of
    generators. A tree without arrays is `root` itself.
    """

    def arrays_as_tensors(path: Sequence[Any], node: Any) -> Any:
        arrays = {key: tensor for key, item in items_of(node) if (tensor := _array(item)) is not None}
        is_weights = any(tensor.dtype.is_float for tensor in arrays.values())
        if not is_weights and (not arrays or has_tensors or _is_generator(node)):
            return node
        items = ((key, arrays.get(key, item)) for key, item in items_of(node))
        return with_items(node, items) if isinstance(node, dict) else type(node)(item for _, item in items)

    tensor = _array(root)
    if tensor is not None:
        return tensor
    has_arrays, has_tensors = _holds(root)
    if not has_arrays:
        return root
    return rewrite(root, lambda path, leaf: leaf, enter=arrays_as_tensors, keeps_scalars=True)


def _is_generator(node: Any) -> bool:
    """Whether it is the state of a generator of NumPy: `("MT19937", keys, …)`, `{"key": keys, "pos": 3}`."""
    return "pos" in node if isinstance(node, dict) else any(type(item) is str for item in node)


def _holds(root: Any) -> tuple[bool, bool]:
    """Whether an array lies in containers, and whether a tensor or an object that may hold one does.

    A small file may have millions: no paths are spelled.
    """
    met: set[int] = set()
    has_arrays = has_tensors = False
    pending: list[Iterable[Any]] = [(root,)]
    while pending and not (has_arrays and has_tensors):
        for node in pending.pop():
            if type(node) in _SCALAR_TYPES:
                continue
            if isinstance(node, TensorEntry):
                has_tensors = True
            elif isinstance(node, Opaque):
                has_arrays = has_arrays or node.is_array
                has_tensors = has_tensors or not (node.is_array or node.is_call_of_scalars)
            elif isinstance(node, (list, tuple, dict, Mapping)) and node and id(node) not in met:
                met.add(id(node))
                children = node if isinstance(node, (list, tuple)) else node.values()
                if not are_scalars(children):
                    pending.append(children)
    return has_arrays, has_tensors


def _array(value: Any) -> TensorEntry | None:
    return value.as_tensor() if isinstance(value, Opaque) else None


def map_tensors(root: Any, replace: Callable[[TensorEntry], Any]) -> Any:
    """A copy of `root` with each tensor replaced, as `map_leaves` makes it."""

    def leaf(path: Sequence[Any], value: Any) -> Any:
        return replace(value) if isinstance(value, TensorEntry) else value

    return rewrite(root, leaf, keeps_scalars=True)


def map_leaves(root: Any, replace: Callable[[Any], Any]) -> Any:
    """A copy of `root` with each leaf replaced, as `rewrite` makes it.

    Raises: LimitError past MAX_DEPTH.
    """
    return rewrite(root, lambda path, leaf: replace(leaf))

"""Trees of nested data: `walk` goes through what is there, `rewrite` copies it with changes.

What nests may be shared or hold itself, and leaves may be anything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.errors import LimitError, LossyError

MAX_DEPTH = 200
"""Cap on how deep containers nest."""
CYCLE = Opaque("a container that holds itself")
"""The leaf that stands where a container holds itself."""


TEXTS = (str, bytes, bytearray)
SCALARS = (*TEXTS, int, float, bool, type(None), complex)
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
    return as_state_dict((), getattr(node, "_metadata", None))


def as_state_dict(
    items: Mapping[Any, Any] | Iterable[tuple[Any, Any]], metadata: Any
) -> OrderedDict[Any, Any]:
    """An ordered dictionary of `items`, with the `_metadata` in which state dicts carry the versions of their
    modules; without it where that is None."""
    made: OrderedDict[Any, Any] = OrderedDict(items)
    if metadata is not None:
        vars(made)["_metadata"] = metadata
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

"""Walking the tree of a checkpoint: its leaves by path, in bounded time whatever the sharing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.errors import LimitError

MAX_REPEATS = 500_000
"""Cap on the nodes that a walk reaches again, by another path. Every node is reached once in time that
the file's length bounds, but sharing lets a small file spell exponentially many paths."""
MAX_NAME_CHARS = 32 * 1024 * 1024
"""Cap on the length of all leaves' paths together: a long key stands in the path of each leaf under it."""
MAX_DEPTH = 200
"""Cap on how deep containers nest."""
CYCLE = Opaque("a container that this one is in")
"""The leaf that stands where a container holds itself."""

_LONG_TEXT = 1024
_CHARS_PER_REPEAT = 16
_LEVELS_PER_REPEAT = 8
_SPELLED_CHARS = 6  # as JSON spells a character beyond ASCII

_PARTS_OF_TENSOR = 3
"""What listing a tensor again costs, in plain values."""

Path = tuple[Any, ...]

SCALARS = (str, int, float, bool, type(None), bytes, complex, bytearray)


def is_scalar(value: Any) -> bool:
    """Whether `value` is plain data that nothing nests in."""
    return isinstance(value, SCALARS)


def leaves(root: Any, max_name_chars: int = 4 * MAX_NAME_CHARS) -> Iterator[tuple[Path, Any]]:
    """Every leaf of `root` with its path of keys, in order.

    A leaf is a tensor, a plain value, a Global, an empty container, or a list, tuple or set of plain
    values (`betas`). An Opaque is yielded and then, the first time that it is met, its contents.

    `max_name_chars`: MAX_NAME_CHARS for the first walk, on which the length of all later ones depends; more
    where the file is large.

    Raises: LimitError past MAX_REPEATS, `max_name_chars` or MAX_DEPTH.
    """
    walk = _Walk()
    children = walk.enter(root)
    if children is None or isinstance(root, Opaque):
        yield (), root
        if children is None:
            return
    open_ids: set[int] = {id(root)}
    chars = 0
    stack: list[tuple[Path, int, Iterator[tuple[Any, Any]], int]] = [((), 0, children, id(root))]
    while stack:
        path, path_chars, children, container = stack[-1]
        for key, value in children:
            text = key if type(key) is str else str(key)
            key_chars = path_chars + 1 + (len(text) if text.isascii() else _SPELLED_CHARS * len(text))
            chars += key_chars
            if chars > max_name_chars:
                raise LimitError("name_chars", max_name_chars, "more")
            here = (*path, key)
            if type(value) is TensorEntry:
                walk.meet(value, _PARTS_OF_TENSOR)
                yield here, value
                continue
            if type(value) in SCALARS:
                walk.charge_text(value)
                yield here, value
                continue
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
        (".".join(map(str, path)), value) for path, value in entries_of(module, beside=beside)
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
            if not all(map(is_scalar, value)):
                return iter(enumerate(value))
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
        if isinstance(value, (str, bytes, bytearray)) and len(value) > _LONG_TEXT:
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
    random numbers and counters keep theirs. Containers without arrays are shared, not copied.
    """
    done: dict[int, Any] = {}

    def visit(value: Any, depth: int) -> Any:
        if not isinstance(value, (dict, list, tuple)) or not value:
            return value
        if id(value) in done:
            return done[id(value)]
        if depth > MAX_DEPTH:
            raise LimitError("depth", MAX_DEPTH, "more")
        done[id(value)] = value  # what holds itself stays as it is
        items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
        arrays = {key: tensor for key, item in items if (tensor := _array(item)) is not None}
        if not any(tensor.dtype.is_float for tensor in arrays.values()):
            arrays = {}
        made = {key: arrays.get(key) or visit(item, depth + 1) for key, item in items}
        if all(made[key] is item for key, item in items):
            return value
        if isinstance(value, dict):
            copy: Any = OrderedDict() if isinstance(value, OrderedDict) else {}
            copy.update(made)
            if hasattr(value, "_metadata"):
                copy._metadata = value._metadata
        else:
            copy = list(made.values()) if isinstance(value, list) else tuple(made.values())
        done[id(value)] = copy
        return copy

    tensor = _array(root)
    if tensor is not None:
        return tensor
    return visit(root, 0) if _holds_arrays(root) else root


def _holds_arrays(root: Any) -> bool:
    """Whether an object that may be an array lies in the containers of `root`."""
    met: set[int] = set()
    pending = [root]
    while pending:
        node = pending.pop()
        if id(node) in met:
            continue
        met.add(id(node))
        for child in (
            node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ()
        ):
            if type(child) is TensorEntry:
                continue
            if isinstance(child, Opaque):
                if child.is_array:
                    return True
            elif isinstance(child, (dict, list, tuple)):
                pending.append(child)
    return False


def _array(value: Any) -> TensorEntry | None:
    return value.as_tensor() if isinstance(value, Opaque) else None


def map_tensors(root: Any, replace: Callable[[TensorEntry], Any]) -> Any:
    """A copy of `root` with each tensor replaced, as `map_leaves` makes it."""
    return map_leaves(root, lambda leaf: replace(leaf) if isinstance(leaf, TensorEntry) else leaf)


def map_leaves(root: Any, replace: Callable[[Any], Any]) -> Any:
    """A copy of `root` with each leaf replaced: what is no dict, list or tuple.

    Shared containers stay shared, and one that holds itself does so in the copy: the work is bounded by the
    file and not by its paths.

    Raises: LimitError past MAX_DEPTH.
    """
    done: dict[int, Any] = {}

    def visit(value: Any, depth: int) -> Any:
        if not isinstance(value, (dict, list, tuple)):
            return replace(value)
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

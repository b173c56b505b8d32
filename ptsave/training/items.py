"""A training's state as items: path → tensor or plain value, as torch.distributed.checkpoint keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ptsave.core.leaves import leaves
from ptsave.core.tree import dotted, rewrite, with_items
from ptsave.errors import LossyError
from ptsave.models.weights.sharded import has_sharded
from ptsave.training.optimizers.names import by_name, is_optimizer, nested
from ptsave.training.plain_data import as_plain_data

Path = tuple[str | int, ...]
"""A text is a dictionary's key, an integer a place in a list."""
MISSING: Any = object()
"""What `value_at` returns where there is nothing."""


def flatten(tree: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """The items of a state: tensors (live ones, detached) and plain data, optimizers by name.

    A dictionary that would lose something, since it is empty or has keys that are no text, is one value.

    Raises: LossyError for what is neither, or what holds itself; LimitError where sharing makes too many.
    """
    tree = as_plain_data(tree, "")
    for _ in leaves(tree):
        pass  # which bounds the paths
    for key, value in tree.items():
        yield from _flatten((key,), value)


def _flatten(path: Path, value: Any) -> Iterator[tuple[Path, Any]]:
    value = by_name(value) if is_optimizer(value) else value
    if isinstance(value, Mapping) and (has_sharded(value) or _is_kept_by_key(value)):
        for key, item in value.items():
            yield from _flatten((*path, str(key)), item)
    elif isinstance(value, list) and any(isinstance(item, (Mapping, torch.Tensor, list)) for item in value):
        for number, item in enumerate(value):
            yield from _flatten((*path, number), item)
    elif isinstance(value, torch.Tensor):
        yield path, value.detach()
    elif has_sharded(value):
        raise LossyError(f"{dotted(path)!r} has parts of tensors in a tuple", "", "make it a list")
    else:
        yield path, value


def _is_kept_by_key(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(key, str) for key in value)


def named(node: Any) -> Any:
    """A copy of nested data with the states of optimizers under the names of their parameters, where it has
    the names: the form that paths go by. Tensors are the same ones, and tuples as they are."""

    def enter(path: Sequence[Any], node: Any) -> Any:
        return nested(node) if isinstance(node, dict) else node

    def leave(path: Sequence[Any], node: Any, made: Any) -> Any:
        return with_items(node, by_name(made).items()) if is_optimizer(made) else made

    return rewrite(node, lambda path, leaf: leaf, enter=enter, leave=leave, containers=(dict, list))


def value_at(tree: Any, path: Path) -> Any:
    """What is at `path`, or MISSING."""
    for key in path:
        if isinstance(tree, Mapping):
            tree = tree.get(key, MISSING)
        elif isinstance(tree, list) and isinstance(key, int) and key < len(tree):
            tree = tree[key]
        else:
            return MISSING
    return tree


def put(tree: dict[str, Any], path: Path, value: Any) -> None:
    """Let `value` be at `path` of nested data, which is changed; containers that lack on the way are made."""
    node: Any = tree
    for key, following in zip(path, (*path[1:], None), strict=True):
        made = value if following is None else [] if isinstance(following, int) else {}
        if isinstance(node, list):
            assert isinstance(key, int)
            node += [None] * (key + 1 - len(node))
            is_there = following is not None and isinstance(node[key], (dict, list))
        else:
            is_there = following is not None and isinstance(node.get(key), (dict, list))
        if not is_there:
            node[key] = made
        node = node[key]


def remove(tree: dict[str, Any], path: Path) -> None:
    """Let nothing be at `path` of a dictionary; a place in a list stays as it is."""
    node = value_at(tree, path[:-1])
    if isinstance(node, dict):
        node.pop(path[-1], None)

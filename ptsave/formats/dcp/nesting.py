"""A nested state dict, rebuilt from the flat one that torch.distributed.checkpoint made of it.

Source: torch/distributed/checkpoint/_traverse.py (`traverse_state_dict`, `set_element`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ptsave.core.tree import MAX_DEPTH, dotted, walk
from ptsave.errors import CorruptError, LimitError

Path = tuple[str | int, ...]


def nest(items: Iterable[tuple[Path, Any]], where: str) -> dict[str, Any]:
    """The tree that has each value at its path: a text is a dict's key, an int a place in a list.

    A list's places that no path names hold None, as in torch: what was there was an empty container.

    Raises: CorruptError when a path leads through a value, or two are equal; LimitError.
    """
    root: dict[str | int, Any] = {}
    containers: list[dict[str | int, Any]] = []  # those that are lists so far have int keys
    branches: set[int] = {id(root)}
    num_items = 0
    for path, value in items:
        num_items += 1
        if len(path) > MAX_DEPTH:
            raise LimitError("depth", MAX_DEPTH, len(path), where)
        node = root
        for key in path[:-1]:
            if key not in node:
                child: dict[str | int, Any] = {}
                node[key] = child
                branches.add(id(child))
                containers.append(child)
            elif id(node[key]) not in branches:
                raise CorruptError(f"an item lies inside a value: {_spelled(path)}", where, _HINT)
            node = node[key]
        if path[-1] in node:
            raise CorruptError(f"two items have the path {_spelled(path)}", where, _HINT)
        node[path[-1]] = value
    # the innermost first, so that a list is final when it is put into its container
    made: dict[int, Any] = {}
    for node in reversed(containers):
        for key, child in node.items():
            if id(child) in made:
                node[key] = made[id(child)]
        made[id(node)] = _finished(node, num_items, where)
    return {str(key): made.get(id(child), child) for key, child in root.items()}


_HINT = "the checkpoint's metadata is damaged; copy the folder again"


def _spelled(path: Path) -> str:
    return repr(dotted(path)[:200])


def _finished(node: dict[str | int, Any], num_items: int, where: str) -> Any:
    """`node`, as a list when its keys are places."""
    places = [key for key in node if type(key) is int]
    if not places:
        return node
    if len(places) < len(node) or min(places) < 0:
        raise CorruptError("a container is a list and a dict at once", where, _HINT)
    if max(places) > num_items + MAX_HOLES:
        raise LimitError("list_places", num_items + MAX_HOLES, max(places), where)
    return [node.get(place) for place in range(max(places) + 1)]


MAX_HOLES = 1000
"""Cap on the places of lists that nothing fills."""


def restore_parameter_numbers(root: Any) -> bool:
    """Make an optimizer's `state` keys numbers again where its `param_groups` number the parameters.

    DCP turns all keys into text, and an optimizer silently attaches nothing to them. Returns whether any
    were turned back.
    """
    found = False
    for _, node in walk(root):
        if not isinstance(node, dict):
            continue
        state, groups = node.get("state"), node.get("param_groups")
        if isinstance(state, dict) and state and isinstance(groups, list) and _are_numbered(groups):
            numbers = [int(key) if isinstance(key, str) and _is_number(key) else None for key in state]
            if None not in numbers:
                node["state"] = dict(zip(numbers, state.values(), strict=True))
                found = True
    return found


def _are_numbered(groups: list[Any]) -> bool:
    return all(
        isinstance(group, dict)
        and isinstance(group.get("params"), list)
        and all(type(number) is int for number in group["params"])
        for group in groups
    )


def _is_number(key: str) -> bool:
    return key.isascii() and key.isdigit() and len(key) < 10 and str(int(key)) == key

"""Tensors that stand in for others: what a file holds where its own list of shapes says something else.

DeepSpeed's ZeRO-3 spreads each weight over the optimizer's files, and leaves an empty tensor of its name in
the model's. Source: deepspeed/runtime/engine.py (`_save_checkpoint`, `_get_zero_param_shapes`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ptsave.core.leaves import named_leaves
from ptsave.core.nodes import TensorEntry
from ptsave.errors import LossyError, Option

SHAPE_KEYS = ("param_shapes", "frozen_param_shapes")
"""Keys at the root of what shapes the weights have: dictionaries by name, or lists of some."""


MAX_PREFIXES = 8
"""How many keys may be in front of a weight's name."""


def placeholders(root: Any, part: Any = None) -> dict[str, str]:
    """Name in `part` of `root` (all of it) → why the tensor there is not the weight that it is called.

    Raises: LimitError as every walk does.
    """
    shapes = _recorded(root)
    found: dict[str, str] = {}
    for name, leaf in named_leaves(root if part is None else part) if shapes else ():
        if name is None or not isinstance(leaf, TensorEntry):
            continue
        if (shape := _of(name, shapes)) not in (None, leaf.shape):
            found[name] = (
                f"has the shape {list(leaf.shape)}, and the file says that it has {list(shape or ())}"
            )
    return found


def refuse(found: Mapping[str, str], dropped: Collection[str], where: str) -> None:
    """Raise LossyError where any of `found`, and none of what is `dropped`, stands in for a weight."""
    left = [name for name in found if name not in dropped]
    if left:
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        raise LossyError(
            f"{left[0]!r} {found[left[0]]}{more}: the weights are in other files",
            where,
            (
                "DeepSpeed's zero_to_fp32.py puts them together",
                Option("drop", lead="; ", tail=" leaves these out"),
            ),
            placeholders=left,
        )


def _recorded(root: Any) -> dict[str, tuple[int, ...]]:
    """The shapes that the file gives for weights, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for key in SHAPE_KEYS if isinstance(root, dict) else ():
        listed = root.get(key)
        for table in listed if isinstance(listed, (list, tuple)) else (listed,):
            for name, shape in table.items() if isinstance(table, dict) else ():
                if isinstance(shape, (list, tuple)) and all(type(size) is int for size in shape):
                    shapes[str(name)] = tuple(shape)
    return shapes


def _of(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape given for `name`, whatever keys are in front of it."""
    for _ in range(MAX_PREFIXES):
        if name in shapes:
            return shapes[name]
        name = name.partition(".")[2]
    return None

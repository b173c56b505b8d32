"""The options of a parameter group, when parameters may have been grouped otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ptsave.errors import LossyError

NAMES_KEY = "param_names"
"""Under which torch (since 2.6) and ptsave keep the names in each parameter group."""
NOT_OPTIONS = frozenset({"params", NAMES_KEY})


def options_of(
    index: int,
    group: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    sources: list[int],
    notes: list[str],
    label: str,
) -> dict[str, Any]:
    """The options of a group: those of the saved group that its parameters were in.

    Raises: LossyError when they were in several that differ.
    """
    own = {key: value for key, value in group.items() if key not in NOT_OPTIONS}
    if not sources:
        notes.append(f"{label}: group {index} is new and keeps its own options")
        result = own
    else:
        result = own | {key: value for key, value in groups[sources[0]].items() if key not in NOT_OPTIONS}
        for other in sources[1:]:
            for key in result:
                value = groups[other].get(key)
                if not _equal(result[key], value):
                    raise LossyError(
                        f"group {index} has parameters of the saved groups {sources[0]} and {other}, whose "
                        f"{key} differ: {result[key]} and {value}",
                        label,
                        "keep the groups apart as they were when it was saved",
                    )
        for key, value in result.items():
            if key in own and not _equal(own[key], value):
                notes.append(f"{label}: group {index} takes {key} = {value} of the saved group {sources[0]}")
    if NAMES_KEY in group:
        result = {**result, NAMES_KEY: list(group[NAMES_KEY])}
    return result


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return bool(torch.equal(torch.as_tensor(a).cpu(), torch.as_tensor(b).cpu()))
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)

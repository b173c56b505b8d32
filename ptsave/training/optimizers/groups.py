"""The options of a parameter group, when parameters may have been grouped otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ptsave.errors import LossyError
from ptsave.training.optimizers.settings import Settings, differences, group_keys, is_equal

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
    settings: Settings,
    *,
    is_one_of_several: bool,
    is_lr_moved: bool,
) -> dict[str, Any]:
    """The options of a group: its own (`settings` "given"), or those of the saved group that its parameters
    were in. Each that differs is noted, but for an lr that a scheduler moves (`is_lr_moved`).

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
                if not is_equal(result[key], value):
                    raise LossyError(
                        f"group {index} has parameters of the saved groups {sources[0]} and {other}, whose "
                        f"{key} differ: {result[key]} and {value}",
                        label,
                        "keep the groups apart as they were when it was saved",
                    )
        where = f"{label}: group {index}" if is_one_of_several else label
        notes.extend(differences(own, result, group_keys(own, result, is_lr_moved), where, settings))
        if settings == "given":
            result = own
    if NAMES_KEY in group:
        result = {**result, NAMES_KEY: list(group[NAMES_KEY])}
    return result

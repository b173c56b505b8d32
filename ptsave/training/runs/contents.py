"""The values of a run's checkpoint beside the training state: checked before they are saved."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch

from ptsave.core.parts.training import STEPS_DONE
from ptsave.errors import UsageError
from ptsave.formats.run_folder import EPOCH, MAX_STEP, METRICS, STEP
from ptsave.training.keys import RANK_VALUES, RANKS, WORLD_SIZE

OWN_KEYS = (STEP, STEPS_DONE, EPOCH, METRICS, WORLD_SIZE, RANKS, RANK_VALUES)
"""Keys that are the checkpoint's own, and no part of the state."""


def tree_of(
    state: Mapping[str, Any], step: int, epoch: float | None, metrics: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The dictionary that a file holds.

    Raises: UsageError.
    """
    tree: dict[str, Any] = {STEP: step, STEPS_DONE: step + 1}
    if epoch is not None:
        tree[EPOCH] = int(epoch) if isinstance(epoch, int) else _number("epoch", epoch)
    tree[METRICS] = {str(name): _number(name, value) for name, value in (metrics or {}).items()}
    for key, value in state.items():
        if key in OWN_KEYS:
            raise UsageError(f"the state has a key {key!r}", "save", "that key is the checkpoint's own")
        tree[key] = value
    return tree


def step_of(step: Any) -> int:
    """`step` as a plain number.

    Raises: UsageError.
    """
    try:
        number = operator.index(step)
    except TypeError:
        raise UsageError(
            f"step={step!r} is not an integer", "save", "count the steps in whole numbers"
        ) from None
    if not 0 <= number <= MAX_STEP:
        raise UsageError(f"step={number} is out of range", "save", f"from 0 to {MAX_STEP}")
    return number


def _number(name: Any, value: Any) -> float:
    """A plain number of Python's.

    Raises: UsageError.
    """
    try:
        return float(value.detach() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise UsageError(
            f"{name!r} is not a number: a {type(value).__name__}", "save", "give a number, or leave it out"
        ) from None

"""What goes into a checkpoint of a run beside the training state, checked on the way in."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch

from ptsave.core.training import STEPS_DONE
from ptsave.errors import UsageError
from ptsave.formats.run_folder import EPOCH, MAX_STEP, METRICS, STEP
from ptsave.torch_layer import ranks
from ptsave.torch_layer.training_keys import RANKS, WORLD_SIZE

OWN_KEYS = (STEP, STEPS_DONE, EPOCH, METRICS, WORLD_SIZE, RANKS)
"""Keys that are the checkpoint's own, and no part of the state."""
RNG, DATA = "rng_state", "data_state_dict"
OF_A_RANK = (RNG, DATA)
"""What every rank has for itself."""


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


def with_other_ranks(tree: dict[str, Any], group: Any) -> dict[str, Any]:
    """`tree` with what is other on other ranks, under `ranks` and their numbers. Every rank calls it."""
    own = {key: tree[key] for key in OF_A_RANK if key in tree}
    first, *others = ranks.gather(own, group)
    if not others:
        return tree
    different = {
        str(rank): {key: value for key, value in state.items() if not _is_same(value, first.get(key))}
        for rank, state in enumerate(others, 1)
    }
    return {**tree, WORLD_SIZE: 1 + len(others), RANKS: different}


def state_of(tree: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The state in `tree` as this rank had it, less what is not the state's; in words what it cannot have."""
    state = {key: value for key, value in tree.items() if key not in OWN_KEYS}
    then, now, rank = tree.get(WORLD_SIZE, 1), ranks.size(), ranks.number()
    found = tree.get(RANKS)
    items = found.items() if isinstance(found, Mapping) else ()
    others = {number: own for number, own in items if isinstance(own, Mapping)}
    state |= others.get(str(rank), {})
    if then == now:
        return state, []
    notes = [f"{RNG}: saved by {then} ranks and resumed by {now}: other ranks draw other random numbers"]
    if rank and str(rank) not in others:
        state.pop(RNG, None)  # rank 0's
    if any(DATA in other for other in others.values()):
        state.pop(DATA, None)
        notes.append(f"{DATA}: each of the {then} ranks had its own, and now they are {now}: it begins anew")
    return state, notes


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_is_same(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_is_same, a, b))
    return bool(a == b)


def step_of(step: Any) -> int:
    """`step` as a plain number.

    Raises: UsageError.
    """
    try:
        number = operator.index(step)
    except TypeError:
        raise UsageError(f"step={step!r} is no integer", "save", "count the steps in whole numbers") from None
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
            f"{name!r} is no number: a {type(value).__name__}", "save", "give a number, or leave it out"
        ) from None

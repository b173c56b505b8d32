"""Settings (lr, T_max, milestones, …) that a checkpoint has other than the caller gave: which one wins."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

import torch
from torch.optim import lr_scheduler

Settings = Literal["saved", "given"]
"""Whose settings count after a resume: the checkpoint's, or those of the objects that are resumed."""

PROGRESS = frozenset(
    {
        *("last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "_is_initial"),
        *("best", "num_bad_epochs", "cooldown_counter", "T_cur", "T_i"),
    }
)
"""What a scheduler counts. All else that it keeps is how it was made.
Source: torch/optim/lr_scheduler.py of torch 2.13."""
INNER = "_schedulers"
"""The states of schedulers in a scheduler (SequentialLR, ChainedScheduler)."""
_CLOSED = (
    lr_scheduler.LambdaLR,
    lr_scheduler.OneCycleLR,
    lr_scheduler.CyclicLR,
    lr_scheduler.CosineAnnealingWarmRestarts,
)
"""Schedulers whose `get_lr` goes by what they count, and not by the lr of before."""


def differences(
    own: Mapping[str, Any], saved: Mapping[str, Any], keys: Collection[str], label: str, settings: Settings
) -> Iterator[str]:
    """In words, each of `keys` that both have with other values, and which of the two wins."""
    for key in keys:
        if key in own and key in saved and not is_equal(own[key], saved[key]):
            was, now = _shown(saved[key]), _shown(own[key])
            if settings == "saved":
                yield f"{label}: {key} = {was} of the checkpoint wins over {now} given here"
            else:
                yield f"{label}: {key} = {now} given here wins over {was} of the checkpoint"


def group_keys(own: Mapping[str, Any], saved: Mapping[str, Any], is_lr_moved: bool) -> list[str]:
    """The options of a parameter group that no scheduler moves; `is_lr_moved`: whether one moves the lr that
    leaves no `initial_lr` in the group."""
    both = own.keys() & saved.keys()
    moved = {"lr"} if "initial_lr" in both or is_lr_moved else set()
    if {"max_momentum", "base_momentum"} & both:
        moved |= {"momentum", "betas"}
    return [key for key in own if key not in moved]


def is_scheduler(state: Any) -> bool:
    """Whether it is a scheduler's state dict."""
    return isinstance(state, Mapping) and "last_epoch" in state


def scheduler_differences(
    own: Mapping[str, Any], saved: Mapping[str, Any], label: str, settings: Settings
) -> Iterator[str]:
    """`differences` of a scheduler and of the schedulers in it."""
    keys = [key for key in own if key not in PROGRESS and (key == "_milestones" or not key.startswith("_"))]
    yield from differences(own, saved, keys, label, settings)
    for i, (inner, was) in enumerate(_pairs(own, saved)):
        yield from scheduler_differences(inner, was, f"{label}.{i}", settings)


def with_own_settings(own: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a scheduler that was made as `own` was, and has come as far as `saved`."""
    state = {**own, **{key: value for key, value in saved.items() if key in PROGRESS and key in own}}
    if pairs := _pairs(own, saved):
        state[INNER] = [with_own_settings(inner, was) for inner, was in pairs]
    return state


def _pairs(own: Mapping[str, Any], saved: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    inner, was = own.get(INNER), saved.get(INNER)
    if not isinstance(inner, (list, tuple)) or not isinstance(was, (list, tuple)) or len(inner) != len(was):
        return []
    pairs = list(zip(inner, was, strict=True))
    return pairs if all(isinstance(one, Mapping) for pair in pairs for one in pair) else []


def follow(scheduler: Any, state: Mapping[str, Any]) -> None:
    """Give the optimizer the lr that `scheduler` has where it is now.

    One that only knows how to go on from the lr of before goes on from that of its saved `state`.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)  # accelerate's
    rates = _rates(scheduler) or [float(rate) for rate in state.get("_last_lr", ())]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=False):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    scheduler._last_lr = list(rates)


def _rates(scheduler: Any) -> list[float] | None:
    """The lr of each group by what the scheduler has counted; None where it goes by the lr of before."""
    if isinstance(scheduler, lr_scheduler.SequentialLR):
        reached = sum(scheduler.last_epoch >= milestone for milestone in scheduler._milestones)
        return _rates(scheduler._schedulers[reached])
    if callable(closed := getattr(scheduler, "_get_closed_form_lr", None)):
        return list(map(float, closed()))
    if not isinstance(scheduler, _CLOSED):
        return None
    if isinstance(scheduler, lr_scheduler.CosineAnnealingWarmRestarts):
        _restart(scheduler)
    with lr_scheduler._enable_get_lr_call(scheduler):
        return list(map(float, scheduler.get_lr()))


def _restart(scheduler: Any) -> None:
    """Count the restarts of a period that may be another than that of before."""
    period, left = scheduler.T_0, scheduler.last_epoch
    if scheduler.T_mult == 1:
        left %= period
    while left >= period:
        left -= period
        period *= scheduler.T_mult
    scheduler.T_cur, scheduler.T_i = left, period


def is_equal(a: Any, b: Any) -> bool:
    """Whether two options are equal, tensors by their values; NaN is NaN."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        one, other = torch.as_tensor(a).cpu(), torch.as_tensor(b).cpu()
        return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(is_equal, a, b))
    return bool(a == b) or (isinstance(a, float) and isinstance(b, float) and a != a and b != b)


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    return str(dict(value) if isinstance(value, Mapping) else value)[:80]

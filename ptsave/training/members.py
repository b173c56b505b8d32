"""What a part of a training may be: one object or several, each with a state to take and to give back."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from ptsave.core.tree import map_leaves
from ptsave.errors import LossyError, UsageError
from ptsave.training.rng import numpy_state, python_state

BASE_RATES = "base_lrs"
"""Under which schedulers keep the lr that each parameter group had before they moved it."""
FSDP1 = "FullyShardedDataParallel"
Members = dict[str, Any]
"""Label (`model`, `model.generator`, `optimizer.0`) → object."""


class Generator:
    """A random number generator of one's own, with the two methods that it lacks."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def state_dict(self) -> dict[str, Any]:
        """Its state as plain data."""
        own = self._generator
        if isinstance(own, torch.Generator):
            return {"torch": own.get_state()}
        if isinstance(own, np.random.Generator):
            return {"bit_generator": dict(own.bit_generator.state)}
        if isinstance(own, np.random.RandomState):
            name, words, *rest = own.get_state()
            return {"numpy": (str(name), [int(word) for word in words], *rest)}
        return {"python": own.getstate()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give it back."""
        own = self._generator
        if isinstance(own, torch.Generator):
            own.set_state(state["torch"].cpu())
        elif isinstance(own, np.random.Generator):
            own.bit_generator.state = map_leaves(state["bit_generator"], _array)
        elif isinstance(own, np.random.RandomState):
            own.set_state(numpy_state(state["numpy"]))
        else:
            own.setstate(python_state(state["python"]))


class Plateau:
    """ReduceLROnPlateau, with what it lacks: the lr that each group had before the scheduler moved it.

    The other schedulers of torch keep theirs as `base_lrs`. Without it no one can tell an lr that was reduced
    from one that the caller has changed.
    """

    def __init__(self, scheduler: ReduceLROnPlateau) -> None:
        self.scheduler = scheduler
        self.optimizer = scheduler.optimizer
        rates = [float(group["lr"]) for group in scheduler.optimizer.param_groups]
        self._base = list(getattr(scheduler, BASE_RATES, rates))  # there where torch itself has resumed it

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's own, with `base_lrs`."""
        return {**self.scheduler.state_dict(), BASE_RATES: list(self._base)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give the scheduler its own, and keep the rest."""
        self._base = list(state.get(BASE_RATES, self._base))
        self.scheduler.load_state_dict({key: value for key, value in state.items() if key != BASE_RATES})


def _array(leaf: Any) -> Any:
    """What a bit generator's state has in the place of a tensor."""
    return leaf.numpy() if isinstance(leaf, torch.Tensor) else leaf


def stateful(member: Any) -> Any:
    """`member`, or what stands for it where it is a generator of random numbers, or does not keep all."""
    kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    scheduler = getattr(member, "scheduler", member)  # accelerate's
    if isinstance(scheduler, ReduceLROnPlateau):
        return Plateau(scheduler)
    return Generator(member) if isinstance(member, kinds) else member


def map_members(name: str, part: Any, take: Callable[[str, Any], Any]) -> Any:
    """`part` with each member replaced by what `take` returns for its label and it."""
    if isinstance(part, Mapping) and not hasattr(part, "state_dict"):
        return {key: take(f"{name}.{key}", member) for key, member in part.items()}
    if isinstance(part, (list, tuple)):
        return [take(f"{name}.{i}", member) for i, member in enumerate(part)]
    return take(name, part)


def members(name: str, part: Any) -> Members:
    """The objects of a part by label: itself, or those in the dict or list that it is."""
    found: Members = {}
    map_members(name, part, found.__setitem__)
    return found


def pairs(name: str, part: Any, saved: Any) -> dict[str, tuple[Any, Any]]:
    """Label → (object, its saved state).

    Raises: LossyError when the checkpoint has another number of them, or others.
    """
    own = members(name, part)
    if list(own) == [name]:
        if isinstance(saved, (list, tuple)) and len(saved) == 1:  # Lightning keeps lists
            saved = saved[0]
        if isinstance(saved, (list, tuple)):
            raise LossyError(
                f"there are {len(saved)} in the checkpoint, one here", name, "give a list of them"
            )
        return {name: (part, saved)}
    if isinstance(part, Mapping):
        found = saved if isinstance(saved, Mapping) else {}
        if set(map(str, found)) != set(map(str, part)):
            there = ", ".join(map(str, found)) or "none by name"
            raise LossyError(f"there are {there} in the checkpoint, here {', '.join(map(str, part))}", name)
        by_text = {str(key): value for key, value in found.items()}
        return {f"{name}.{key}": (member, by_text[str(key)]) for key, member in part.items()}
    listed = list(saved) if isinstance(saved, (list, tuple)) else [saved]
    if len(listed) != len(own):
        raise LossyError(f"there are {len(listed)} in the checkpoint, {len(own)} here", name)
    return {label: (member, value) for (label, member), value in zip(own.items(), listed, strict=True)}


def check_member(label: str, member: Any, *, is_model: bool) -> None:
    """Raise UsageError for what has no state to keep."""
    has_both = all(callable(getattr(member, method, None)) for method in ("state_dict", "load_state_dict"))
    if isinstance(member, DataLoader) and not has_both:
        raise UsageError(
            "torch's DataLoader does not know how far it came",
            f"TrainingState, {label}",
            "make it a ptsave.ResumableDataLoader, which takes the same arguments",
        )
    if isinstance(member, nn.Module) and any(type(m).__name__ == FSDP1 for m in member.modules()):
        raise UsageError(
            f"{FSDP1} keeps its parameters in flat pieces that have no names",
            f"TrainingState, {label}",
            "shard the model with torch.distributed.fsdp.fully_shard (FSDP2)",
        )
    if is_model and not isinstance(member, nn.Module):
        raise UsageError(f"a {type(member).__name__} is not a torch.nn.Module", f"TrainingState, {label}")
    if not has_both:
        raise UsageError(
            f"a {type(member).__name__} has no state_dict and load_state_dict",
            f"TrainingState, {label}",
            "leave it out, or give it these two methods",
        )

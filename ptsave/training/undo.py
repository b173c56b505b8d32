"""Giving a training its state back as a whole, or not at all."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ptsave.errors import LossyError
from ptsave.models.weights.loading_code import has_no_code
from ptsave.training import rng as training_rng
from ptsave.training.optimizers.state import has_groups, state_of_part

MAX_ITEMS = 100_000
"""Longest container that is copied: longer ones are data, not state."""
MAX_DEPTH = 6
"""How deep plain containers are looked into."""


_ARRAYS = (torch.Tensor, np.ndarray)


class Step(NamedTuple):
    """One thing that is given its state."""

    label: str
    member: Any
    give: Callable[[], None]


def apply_all(steps: Sequence[Step], modules: Sequence[nn.Module]) -> None:
    """Take every step; when one fails, everything is as it was before the first.

    `modules`: all modules of the training, whose gradients are put back as well. What runs code of its own as
    it loads is copied first, and a module that does holds its tensors twice meanwhile.

    Raises: LossyError naming the one that refused.
    """
    ordered = sorted(steps, key=lambda step: isinstance(step.member, nn.Module) and _only_copies(step.member))
    memories = [_Memory(step.label, step.member) for step in ordered if _may_fail(step.member)]
    gradients = [(p, p.grad) for module in modules for p in module.parameters()]
    rng = training_rng.capture()
    step = ordered[0]
    try:
        for step in ordered:
            step.give()
    except BaseException as error:
        stuck = [memory.label for memory in reversed(memories) if not memory.put_back()]
        for parameter, gradient in gradients:
            parameter.grad = gradient
        training_rng.restore(training_rng.check(rng)[0])
        if not isinstance(error, Exception):
            raise
        if isinstance(error, LossyError) and not stuck:
            raise
        raise LossyError(
            f"refuses its saved state: {type(error).__name__}: {error}",
            step.label,
            f"{', '.join(stuck)} may be half restored: begin anew" if stuck else "resume with the same class",
        ) from error


def _may_fail(member: Any) -> bool:
    return member is not None and not (isinstance(member, nn.Module) and _only_copies(member))


def _only_copies(module: nn.Module) -> bool:
    """Whether loading does nothing but copy tensors whose shapes fit: that does not fail half-way."""
    return type(module).load_state_dict is nn.Module.load_state_dict and all(
        has_no_code(inner) and type(inner).set_extra_state is nn.Module.set_extra_state
        for inner in module.modules()
    )


class _Memory:
    """What an object was: its attributes, the containers, tensors and arrays in them, and its own state."""

    def __init__(self, label: str, member: Any) -> None:
        self.label = label
        self._member = member
        inner = list(member.modules()) if isinstance(member, nn.Module) else [member]
        if has_groups(member) and hasattr(member, "optimizer"):  # accelerate's, around another
            inner.append(member.optimizer)
        self._attributes = [(one, dict(vars(one))) for one in inner if hasattr(one, "__dict__")]
        values = list(chain.from_iterable(attributes.values() for _, attributes in self._attributes))
        found = list(_plain_parts(values))
        self._containers = [(one, copy.copy(one)) for one in found if not isinstance(one, _ARRAYS)]
        self._arrays = [(one, one.copy()) for one in found if isinstance(one, np.ndarray)]
        # An optimizer takes other tensors, and does not write to those that it has.
        tensors = [one for one in found if isinstance(one, torch.Tensor) and not has_groups(member)]
        self._lazy = [(one, type(one)) for one in tensors if nn.parameter.is_lazy(one)]
        self._tensors = [(one, one.detach().clone()) for one in tensors if not nn.parameter.is_lazy(one)]
        self._state = None if isinstance(member, nn.Module) else self._own_state()

    def _own_state(self) -> Any:
        state = state_of_part(self._member)
        return state if has_groups(self._member) else copy.deepcopy(state)

    def put_back(self) -> bool:
        """Make it what it was; whether it is, as far as it says itself."""
        self._restore()
        if self._state is None or self._is_as_it_was():
            return True
        try:  # something in an object of its own, which its state reaches
            self._member.load_state_dict(self._state)
        except Exception:  # whatever it raises, its attributes are those of before
            self._restore()
        return self._is_as_it_was()

    def _is_as_it_was(self) -> bool:
        try:
            return _is_same(state_of_part(self._member), self._state)
        except Exception:  # the object's own, or of a comparison: nothing says that it is
            return False

    def _restore(self) -> None:
        for one, attributes in self._attributes:
            vars(one).clear()
            vars(one).update(attributes)
        for container, was in self._containers:
            if isinstance(container, list):
                container[:] = was
            else:
                container.clear()
                (container.extend if isinstance(container, deque) else container.update)(was)
        for array, was in self._arrays:
            array[...] = was
        for lazy, kind in self._lazy:  # which becomes another class with its shape
            lazy.__class__ = kind
        with torch.no_grad():
            for tensor, was in self._tensors:
                tensor.copy_(was)


def _plain_parts(values: Sequence[Any]) -> Iterator[Any]:
    """What can change in `values`, each once: containers, tensors, arrays; not what is in other objects."""
    seen: set[int] = set()
    level = list(values)
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.flags.writeable):
                yield value
            elif isinstance(value, (dict, list, set, deque)) and len(value) <= MAX_ITEMS:
                yield value
                below += value.values() if isinstance(value, dict) else value
            elif isinstance(value, tuple) and len(value) <= MAX_ITEMS:
                below += value
        level = below


def _is_same(a: Any, b: Any) -> bool:
    """Whether two states are equal, tensor by tensor."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        has_nan = a.dtype.kind in "fc"
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=has_nan)
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        if a is b or not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
            return a is b
        return torch.equal(a, b) or (a.is_floating_point() and torch.equal(a.nan_to_num(), b.nan_to_num()))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_is_same(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_is_same, a, b))
    return type(a) is type(b) and (a is b or bool(a == b) or bool(a != a and b != b))

"""Modules held one by one to what was recorded of them, each on exactly the inputs that were recorded.

An ill-conditioned model makes much of any rounding, and what it makes of it must not excuse a fault in one of
its modules. A module whose inputs are today what they were, bit by bit, is run again alone: what it returned
may be as far off as rounding inside that module goes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import nn

from ptsave.core.behaviour import Call
from ptsave.errors import UsageError
from ptsave.models.behaviour.judge import Excess, Judge, output_key
from ptsave.models.behaviour.trace import Trace, cloned, output_digests, watch
from ptsave.models.inputs import Arguments, output_tensors

MAX_CALLS = 32
"""How many calls are looked at, the first that differ."""
MAX_BYTES = 256 * 1024 * 1024
"""How much of their inputs is held at once; what is beyond is judged with the whole."""

Key = tuple[str, int]
MakeJudge = Callable[[nn.Module, Arguments, Call, Trace], Judge]


def hold_apart(
    model: nn.Module,
    arguments: Arguments,
    pairs: Sequence[tuple[Call, Call]],
    hidden: Collection[Key],
    make_judge: MakeJudge,
) -> dict[Key, Excess]:
    """For each call that can be run alone, how far its outputs are off and how far rounding in it goes.

    `pairs` are the recorded call and today's, both with the same inputs and other outputs. In those of
    `hidden` today's code computes more coarsely than the recorded one, so today's outputs are judged, too. A
    module that does not give the same alone as in its model (its parent sets something) is left out.
    """
    pairs = [pair for pair in pairs if pair[1].module][:MAX_CALLS]
    modules = dict(model.named_modules())
    given = _given(model, modules, arguments, {new.key for _, new in pairs})
    found: dict[Key, Excess] = {}
    for old, new in pairs:
        if new.key not in given:
            continue
        module, own = modules[new.module], given[new.key]
        try:
            alone = watch(module, own)
        except UsageError:
            continue  # it needs what its parent does around it
        digests = alone.digests()
        if any(digests.get(path) != sample.digest for path, sample in new.outputs.items()):
            continue
        judge = make_judge(module, own, old, alone)
        excesses = [
            judge.excess(sample, output_key(path))
            for side in ((old, new) if new.key in hidden else (old,))
            for path, sample in side.outputs.items()
            if path in new.outputs and path in old.outputs
        ]
        if excesses:
            found[new.key] = max(excesses, key=lambda excess: (not excess.is_explained, excess.relative))
    return found


def _given(
    model: nn.Module, modules: dict[str, nn.Module], arguments: Arguments, keys: Collection[Key]
) -> dict[Key, Arguments]:
    """What each call of `keys` is given, as it is given it."""
    given: dict[Key, Arguments] = {}
    counts: dict[str, int] = {}
    room = [MAX_BYTES]

    def look(name: str) -> Callable[..., None]:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            number = counts[name] = counts.get(name, -1) + 1
            if (name, number) not in keys:
                return
            room[0] -= sum(t.nbytes for t in output_tensors((args, kwargs)).values())
            if room[0] >= 0:
                given[name, number] = Arguments(cloned(args), cloned(kwargs))

        return before

    handles = []
    try:
        for name in {name for name, _ in keys}:
            handles.append(modules[name].register_forward_pre_hook(look(name), with_kwargs=True))
        output_digests(model, arguments)
    finally:
        for handle in handles:
            handle.remove()
    return given

"""The check `finite`: no NaN and no infinity among the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Finding, Kind
from ptsave.core.names import matches
from ptsave.core.tree import dotted
from ptsave.formats.kinds.quantized import is_quantized
from ptsave.verbs.checks.subject import Subject
from ptsave.verbs.stats import non_finite


def finite(subject: Subject) -> Iterator[Finding]:
    """No NaN and no infinity in any floating-point tensor but a training's numbers and a program's masks."""
    looked = bad = 0
    spared = []
    judged = _holders_of_weights(subject.whole)
    for name, nans, infinities in non_finite(subject.checkpoint, subject.progress, subject.counts):
        is_constant = name in subject.whole.constants
        is_allowed = not nans and (is_constant or matches(name, subject.asked.infinite))
        is_number = not subject.checkpoint.tensors[name].shape and not name.startswith(judged)
        if (nans or infinities) and (is_allowed or is_number):
            spared.append(name)
            continue
        looked += 1
        if nans or infinities:
            bad += 1
            numbers = {"nans": nans, "infinities": infinities}
            yield Finding("finite", "fail", name, Kind.NOT_FINITE, facts=numbers)
    for name, leaf in subject.checkpoint.data.items():
        scale = leaf.state.get("scale", 1.0) if is_quantized(leaf) else 1.0
        if not math.isfinite(scale):
            bad += 1
            yield Finding("finite", "fail", name, Kind.SCALE_NOT_FINITE, facts={"scale": scale})
    for name in spared:
        if matches(name, subject.asked.infinite):
            yield Finding("finite", "ok", name, Kind.INFINITE_ALLOWED)
        elif name in subject.whole.constants:  # only the file says so
            yield Finding("finite", "warn", name, Kind.INFINITE_CONSTANT)
        else:
            yield Finding("finite", "ok", name, Kind.NO_WEIGHT)
    if not looked and not bad:
        yield Finding("finite", "skipped", "", Kind.NO_FLOATS)
    elif not bad:
        yield Finding("finite", "ok", "", Kind.ALL_FINITE, looked)


def _holders_of_weights(checkpoint: Checkpoint) -> tuple[str, ...]:
    """How the names of weights and of optimizers' states begin; all names where no part is one of these."""
    if checkpoint.training_root is not checkpoint.root:  # a flat file: all tensors are at the top
        return ("",)
    parts = checkpoint.training_parts
    places = [*parts.models, *parts.optimizers]
    return tuple(f"{dotted(place)}." if place else "" for place in places) or ("",)

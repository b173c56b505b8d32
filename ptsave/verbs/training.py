"""What a checkpoint says of the training that it interrupts: epoch, optimizers, schedulers, scaler, RNG."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.nodes import TensorEntry
from ptsave.core.parts.candidates import MODEL_KEYS, is_average
from ptsave.core.parts.select import select_model
from ptsave.core.parts.training import PROGRESS_KEYS, STEPS_DONE, find_model
from ptsave.core.tree import dotted
from ptsave.errors import AmbiguousError, UsageError
from ptsave.verbs.training_parts import (
    MAX_SHOWN,
    OptimizerState,
    ScalerState,
    SchedulerState,
    in_words,
    optimizer_in,
    scaler_in,
    scheduler_in,
)


@dataclass(frozen=True)
class Training:
    """The state of a training."""

    progress: Mapping[str, int | float]
    """Path → how far it came: epoch, step, iteration."""
    metrics: Mapping[str, int | float]
    """Path → a loss, an accuracy, the best score."""
    optimizers: tuple[OptimizerState, ...] = ()
    schedulers: tuple[SchedulerState, ...] = ()
    scalers: tuple[ScalerState, ...] = ()
    rng: tuple[str, ...] = ()
    """Paths of the states of random number generators."""
    model_key: str | None = None
    """The path that the model's state dict lies under; None when there is none."""

    @property
    def sentences(self) -> list[str]:
        """The state in words, a line each."""
        lines = [
            ", ".join(f"{path} {in_words(value)}" for path, value in numbers.items())
            for numbers in (self.progress, self.metrics)
            if numbers
        ]
        lines += [optimizer.sentence for optimizer in self.optimizers]
        lines += [scheduler.sentence for scheduler in self.schedulers]
        lines += [scaler.sentence for scaler in self.scalers]
        if self.rng:
            lines.append("states of random number generators: " + ", ".join(self.rng))
        if self.model_key:
            lines.append(f"the model's state dict is under {self.model_key!r}")
        return lines


def describe_training(checkpoint: Checkpoint) -> Training | None:
    """What `checkpoint` says of a training, or None when it says nothing (a model's weights alone).

    Reads single numbers (an optimizer's `step`, a metric that is a tensor), nothing else.
    """
    parts = checkpoint.training_parts
    progress = {dotted(place): value for place, value in parts.progress.items() if place[-1] != STEPS_DONE}
    for key, text in checkpoint.metadata.items():
        if key in PROGRESS_KEYS and text.isascii() and text.isdecimal() and len(text) < 20:
            progress.setdefault(key, int(text))
    found = Training(
        dict(islice(progress.items(), MAX_SHOWN)),
        {dotted(place): value for place, value in islice(parts.metrics.items(), MAX_SHOWN)},
        tuple(optimizer_in(dotted(place), node) for place, node in parts.optimizers.items()),
        tuple(scheduler_in(dotted(place), node) for place, node in parts.schedulers.items()),
        tuple(scaler_in(dotted(place), node) for place, node in parts.scalers.items()),
        tuple(map(dotted, parts.rng[:MAX_SHOWN])),
    )
    if found == Training({}, {}):
        return None
    try:
        return replace(found, model_key=select_model(checkpoint).where)
    except (UsageError, AmbiguousError):
        return found


def optimizer_nodes(checkpoint: Checkpoint) -> dict[str, Any]:
    """Path → state dict of each optimizer in `checkpoint`, as it nests."""
    return {dotted(place): node for place, node in checkpoint.training_parts.optimizers.items()}


def state_dict_nodes(checkpoint: Checkpoint) -> dict[str, Any]:
    """Path → state dict (or pickled module) of each model in `checkpoint`: that which is resumed comes first,
    and averages last.

    Of a flat file, they are the tensors that are no optimizer's.
    """
    root = checkpoint.training_root
    found = {dotted(place): node for place, node in checkpoint.training_parts.models.items()}
    if root is not checkpoint.root:
        found = _flat_models({name: leaf for name, leaf in root.items() if isinstance(leaf, TensorEntry)})
    try:
        model = find_model(checkpoint.root)
    except AmbiguousError:
        model = None
    first = model.where if model is not None else None
    return {
        where: found[where] for where in sorted(found, key=lambda where: (where != first, is_average(where)))
    }


def _flat_models(tensors: Mapping[str, TensorEntry]) -> dict[str, Any]:
    """Those under each of the well-known keys, where all weights are under one; else all together."""
    models: dict[str, Any] = {}
    for name, entry in tensors.items():
        key, _, rest = name.partition(".")
        if rest and key in MODEL_KEYS:
            models.setdefault(key, {})[rest] = entry
        elif entry.dtype.is_float:
            return {"": tensors}
    return models

"""Ranks that read different files must not make one model of them, nor one output of different parts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import torch

from ptsave.config.toml import Config
from ptsave.core.checkpoint import Checkpoint
from ptsave.distributed.group import Group
from ptsave.distributed.plan import PlanError
from ptsave.models.behaviour.differences import distance
from ptsave.models.behaviour.sketch import measure


def check_same_config(group: Group, config: Config) -> None:
    """Insist that all ranks have the same config, overrides included; where the file lies is no matter.

    Raises: RankError.
    """
    parts = (
        config.model.to_json(),
        config.inputs.to_json() if config.inputs is not None else None,
        config.tolerance,
        config.parallel,
    )
    group.agree("configs", _digest(repr(parts)), "give every rank the same TOML and the same --set")


def check_same_folder(group: Group, checkpoint: Checkpoint) -> None:
    """Insist that all ranks see the same checkpoint, as far as its table of contents and record say.

    Raises: RankError.
    """
    record = checkpoint.record.to_json() if checkpoint.record is not None else ""
    names = [(name, entry.dtype.name, entry.shape) for name, entry in checkpoint.tensors.items()]
    text = repr((checkpoint.format, names)) + record
    group.agree("checkpoints", _digest(text), f"give every rank the same {checkpoint.path}")


MAX_APART = 0.1
"""What ranks compute of one tensor differs by rounding at most; the parts of one are not alike at all."""


class Look(NamedTuple):
    """Enough of a tensor to tell it from another one."""

    shape: tuple[int, ...]
    norm: float
    sketch: tuple[float, ...]


def look(tensor: torch.Tensor) -> Look:
    """What there is to see of a plain tensor."""
    measured = measure(tensor.flatten())
    return Look(tuple(tensor.shape), measured.norm, measured.sketch)


def check_same_outputs(group: Group, outputs: Mapping[str, Look], where: str) -> None:
    """Insist that the outputs of a model are the same on all ranks; where it returns parts, they are not.

    Raises: PlanError, on every rank.
    """
    everyone = group.gather(dict(outputs))
    for rank, theirs in enumerate(everyone):
        for name, other in theirs.items():
            first = everyone[0].get(name, other)
            apart = distance(first.sketch, other.sketch)
            if first.shape != other.shape or apart > MAX_APART * (first.norm + other.norm):
                what = f"rank {rank} has another {name!r} than rank 0: the model returns parts of it"
                raise PlanError(what, where, 'let its last layer gather them: "colwise_gather_output"')


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

"""Ranks that read different files must not make one model of them."""

from __future__ import annotations

import hashlib

from ptsave.config import Config
from ptsave.core.checkpoint import Checkpoint
from ptsave.torch_layer.parallel.group import Group


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


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

"""A config's own model, as `verify --against CONFIG` compares with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ptsave.config.toml import Config, load_config
from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.errors import UsageError
from ptsave.models.build import build_model
from ptsave.models.inputs import make_inputs
from ptsave.models.weights.lazy import lazy_names, settle
from ptsave.models.weights.live import checkpoint_of


@dataclass
class Fresh:
    """The model that a config makes: its factory's, or one with fresh weights of seed 0."""

    config: Config
    model: nn.Module
    checkpoint: Checkpoint
    """Its state dict, where it lies in memory."""


def fresh_model(path: Location, overrides: Sequence[str], device: str, app_dir: Path | None) -> Fresh:
    """Build the model of the config at `path`.

    Raises: UsageError for the config; LossyError when the state dict holds what no format does.
    """
    config = load_config(path, overrides)
    model = build_model(config.model, device=device, app_dir=app_dir, seed=0)
    if lazy_names(model):
        if config.inputs is None:
            raise UsageError(
                "the model has lazy modules, and there is nothing to run it on",
                str(path),
                "add an [inputs] table",
            )
        settle(model, make_inputs(config.inputs, model, device), seed=0)
    return Fresh(config, model.eval(), checkpoint_of(model.state_dict(), path))

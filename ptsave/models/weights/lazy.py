"""Lazy modules: parameters that have no shape until the first forward pass."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ptsave.errors import UsageError
from ptsave.models.inputs import Arguments
from ptsave.models.seeding import seeded


def lazy_names(model: nn.Module) -> list[str]:
    """The names of the parameters and buffers that have no shape yet."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in named if is_lazy(tensor)]


def settle(model: nn.Module, arguments: Arguments, seed: int | None = None) -> None:
    """Give lazy modules their shapes, and fresh weights from `seed`, by one forward pass.

    The pass is in eval mode, so that running statistics stay as they were; the mode is put back.

    Raises: UsageError when the forward pass fails, or leaves a parameter without a shape.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), seeded(seed):
            arguments.call(model)
    except Exception as error:
        raise UsageError(
            f"the forward pass that gives lazy modules their shapes failed: {type(error).__name__}: {error}",
            type(model).__qualname__,
            "check the inputs ([inputs], or --inputs): names, shapes, dtypes and integer ranges",
        ) from error
    finally:
        for module in model.modules():
            module.training = modes.get(module, module.training)
    if names := lazy_names(model):
        raise UsageError(
            f"{names[0]!r} has no shape after a forward pass",
            type(model).__qualname__,
            "give [inputs] that reach every lazy module",
        )

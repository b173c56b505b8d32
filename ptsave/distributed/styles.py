"""The styles of `[parallel.tensor]`, from those of torch: each takes and returns tensors, not DTensors.

torch leaves it to the caller to know which tensors are parts. Here `colwise` alone returns a part (the last
dimension, split) and `rowwise` alone takes one: the two go together, and all others fit in anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from ptsave.models.weights.own_shard import gathered


def _rowwise(module: nn.Module) -> ParallelStyle:
    if isinstance(module, nn.Embedding):
        return RowwiseParallel(input_layouts=Replicate())  # token numbers, of which every rank has all
    return RowwiseParallel()


STYLES: dict[str, Callable[[nn.Module], ParallelStyle]] = {
    "colwise": lambda module: ColwiseParallel(),
    "colwise_gather_output": lambda module: ColwiseParallel(output_layouts=Replicate()),
    "rowwise": _rowwise,
    "rowwise_split_input": lambda module: RowwiseParallel(input_layouts=Replicate()),
    "sequence": lambda module: SequenceParallel(),
}
"""Named as in the plans of transformers, where those have the same."""


def split(module: nn.Module, style: str, mesh: DeviceMesh) -> None:
    """Make DTensors of the module's parameters, and let its forward compute with them.

    Raises: NotImplementedError for a kind of module that torch does not split.
    """
    if style == "sequence":  # torch would take its input for one rank's part of the sequence
        module.register_forward_pre_hook(partial(_replicated, mesh))
    logging.getLogger("torch._subclasses.fake_tensor").disabled = True  # prints what is raised all the same
    parallelize_module(module, mesh, STYLES[style](module))
    module.register_forward_hook(_whole)


def _replicated(mesh: DeviceMesh, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        DTensor.from_local(value, mesh, [Replicate()], run_check=False)
        if isinstance(value, torch.Tensor) and not isinstance(value, DTensor)
        else value
        for value in args
    )


def _whole(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    return gathered(output)

"""Watching one forward pass: what went into and came out of every module, in the order they finished."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptsave.core.behaviour import Call, Sample
from ptsave.core.digest import tensor_digest
from ptsave.torch_layer.inputs import output_tensors
from ptsave.torch_layer.live import checkpoint_of

MODULE_VALUES = 16
"""How many values of a module's inputs and outputs are kept."""
OUTPUT_VALUES = 4096
"""How many values of each of the model's outputs are kept: all of them up to this many."""
MAX_TENSORS = 4
"""How many tensors of one module's inputs, and of its outputs, are looked at."""
_STEP = 2_654_435_761
"""A prime, so that multiples of it visit every place of a tensor once before any twice."""


@dataclass
class Trace:
    """One forward pass as it was seen."""

    calls: list[Call] = field(default_factory=list)
    outputs: list[Sample] = field(default_factory=list)

    def digests(self) -> dict[str, str]:
        """Output path → digest."""
        return {sample.path: sample.digest for sample in self.outputs}


def trace(model: nn.Module, run: Callable[[], Any]) -> Trace:
    """Watch every module of `model` while `run()` makes it compute; memory is that of two activations.

    A module that is called twice has two entries.
    """
    seen = Trace()
    counts: dict[str, int] = {}
    open_inputs: list[tuple[Sample, ...]] = []
    recent: deque[tuple[torch.Tensor, int, Sample]] = deque(maxlen=2)

    def look(value: Any) -> tuple[Sample, ...]:
        tensors = list(output_tensors(value).items())[:MAX_TENSORS]
        return tuple(_remembered(path, tensor, recent) for path, tensor in tensors)

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        open_inputs.append(look((*args, *kwargs.values())))

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            number = counts[name] = counts.get(name, -1) + 1
            kind = f"{type(module).__module__}.{type(module).__qualname__}"
            seen.calls.append(Call(name, number, kind, open_inputs.pop(), look(output)))

        return hook

    handles = []
    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after(name), with_kwargs=True))
        output = run()
    finally:
        for handle in handles:
            handle.remove()
    seen.outputs = [sample_of(path, tensor, OUTPUT_VALUES) for path, tensor in output_tensors(output).items()]
    return seen


def _remembered(path: str, tensor: torch.Tensor, recent: deque[tuple[torch.Tensor, int, Sample]]) -> Sample:
    """`sample_of`, but what one module returned is not digested again when the next one gets it."""
    for known, version, sample in recent:
        if known is tensor and known._version == version:
            return Sample(path, sample.dtype, sample.shape, sample.digest, sample.norm, sample.values)
    sample = sample_of(path, tensor, MODULE_VALUES)
    recent.append((tensor, tensor._version, sample))
    return sample


def sample_of(path: str, tensor: torch.Tensor, count: int) -> Sample:
    """What is kept of a tensor: digest, norm, and up to `count` of its values at fixed places."""
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    (entry,) = checkpoint_of({path: tensor}, Path()).tensors.values()
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    size = tensor.numel()
    places = torch.arange(min(count, size), device="cpu") * _STEP % max(size, 1)
    values = tensor.reshape(-1)[places.to(tensor.device)].cpu().to(wide)
    if tensor.is_complex():
        values = torch.view_as_real(values).reshape(-1)
    norm = float(
        torch.linalg.vector_norm(tensor.to(wide) if not tensor.is_floating_point() else tensor, dtype=wide)
    )
    return Sample(path, entry.dtype.name, entry.shape, tensor_digest(entry), norm, tuple(values.tolist()))

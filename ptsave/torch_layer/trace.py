"""Watching one forward pass: what went into and came out of every module, in the order they finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from ptsave.core.behaviour import CALL_VALUES, OUTPUT_VALUES, Call, Sample
from ptsave.core.digest import tensor_digest
from ptsave.torch_layer.build import seeded
from ptsave.torch_layer.inputs import Arguments, output_tensors
from ptsave.torch_layer.live import checkpoint_of, is_plain
from ptsave.torch_layer.load import run
from ptsave.torch_layer.sketch import measure

MAX_TENSORS = 4
"""How many tensors of one module's inputs, and of its outputs, are looked at."""
MAX_OUTPUTS = 1000
"""How many of the model's own outputs are."""
_STEP = 2_654_435_761
"""A prime, so that multiples of it visit every place of a tensor once before any twice."""


@dataclass
class Trace:
    """One forward pass as it was seen."""

    calls: list[Call] = field(default_factory=list)
    outputs: dict[str, Sample] = field(default_factory=dict)
    training: list[str] = field(default_factory=list)
    """Modules that were in training mode all the same."""

    def digests(self) -> dict[str, str]:
        """Output path → digest."""
        return {path: sample.digest for path, sample in self.outputs.items()}


def watch(
    model: nn.Module,
    arguments: Arguments,
    mode: AbstractContextManager[Any] | None = None,
    *,
    seed: int = 0,
) -> Trace:
    """One eval-mode, no-grad forward pass with every module watched, under `mode` if there is one.

    Arguments and buffers are afterwards as they were. A module that is called twice has two entries. Nothing
    that the modules compute is kept alive.

    Raises: UsageError when the model's own code raises.
    """
    seen = Trace()
    with buffers_restored(model):
        with _watching(model, seen), seeded(seed), mode or nullcontext():
            output = run(model, cloned(arguments))
        tensors = _visible(output, MAX_OUTPUTS)
        seen.outputs = {path: sample_of(tensor, OUTPUT_VALUES) for path, tensor in tensors}
        seen.training = [name for name, module in model.named_modules() if module.training]
    return seen


def output_digests(model: nn.Module, arguments: Arguments, seed: int = 0) -> dict[str, str]:
    """Output path → digest of the same pass, with nothing watched."""
    with buffers_restored(model):
        with seeded(seed):
            output = run(model, cloned(arguments))
        return {path: digest_of(tensor) for path, tensor in _visible(output, MAX_OUTPUTS)}


def cloned(value: Any) -> Any:
    """Arguments, or a part of them, with tensors of their own: a model may change what it is given."""
    if isinstance(value, Arguments):
        return Arguments(cloned(value.args), cloned(dict(value.kwargs)))
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: cloned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(cloned(item) for item in value)
    return value


@contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    """Undo afterwards what happens to buffers inside: a model may count its calls, or learn in batch norm."""
    before = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    yield
    for buffer, version, values in before:
        if buffer._version != version and buffer.shape == values.shape:
            with torch.no_grad():
                buffer.copy_(values)


@contextmanager
def _watching(model: nn.Module, seen: Trace) -> Iterator[None]:
    counts: dict[str, int] = {}
    open_inputs: list[dict[str, Sample]] = []
    known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def look(value: Any) -> dict[str, Sample]:
        return {path: _sampled_once(tensor, known) for path, tensor in _visible(value, MAX_TENSORS)}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        with torch._C.DisableTorchFunction():
            open_inputs.append(look({**dict(enumerate(args)), **kwargs}))

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            number = counts[name] = counts.get(name, -1) + 1
            kind = f"{type(module).__module__}.{type(module).__qualname__}"
            with torch._C.DisableTorchFunction():
                seen.calls.append(Call(name, number, kind, open_inputs.pop(), look(output)))

        return hook

    handles = []
    try:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after(name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _sampled_once(tensor: torch.Tensor, known: WeakTensorKeyDictionary) -> Sample:
    """`sample_of`, but what one module returned is not looked at again when the next ones get it."""
    version, sample = known.get(tensor, (None, None))  # type: ignore[no-untyped-call]
    if sample is None or version != tensor._version:
        sample = sample_of(tensor, CALL_VALUES)
        known[tensor] = tensor._version, sample
    assert isinstance(sample, Sample)
    return sample


def _visible(value: Any, limit: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The first tensors in `value` that have plain bytes (nested tensors and the like have none), by path."""
    named = output_tensors(value).items()
    plain = ((path, _dense(tensor.detach())) for path, tensor in named if not tensor.is_nested)
    return islice(((path, tensor) for path, tensor in plain if is_plain(tensor)), limit)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def digest_of(tensor: torch.Tensor) -> str:
    """XXH3-128 of a plain tensor, as `core.digest` takes it."""
    (entry,) = checkpoint_of({"output": tensor}, Path()).tensors.values()
    return tensor_digest(entry)


def sample_of(tensor: torch.Tensor, count: int) -> Sample:
    """What is kept of a plain tensor: digest, norm, sketch, and up to `count` of its values."""
    size = tensor.numel()
    places = torch.arange(min(count, size)) * _STEP % max(size, 1)
    index = torch.unravel_index(places.to(tensor.device), tensor.shape) if tensor.dim() else ()
    values = tensor[index].cpu().to(torch.complex128 if tensor.is_complex() else torch.float64)
    if tensor.is_complex():
        values = torch.view_as_real(values)
    return Sample(
        str(tensor.dtype).removeprefix("torch."),
        tuple(tensor.shape),
        digest_of(tensor),
        *measure(tensor),
        tuple(values.reshape(-1).tolist()),
    )

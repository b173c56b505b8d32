"""Recording a model's behaviour: what it computes from the config's inputs, here and now."""

from __future__ import annotations

import platform
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptsave.core.behaviour import Behaviour
from ptsave.core.digest import tensor_digest
from ptsave.errors import LossyError
from ptsave.input_specs import InputsSpec
from ptsave.torch_layer.inputs import Arguments, inline_inputs, make_inputs
from ptsave.torch_layer.live import checkpoint_of
from ptsave.torch_layer.load import run
from ptsave.torch_layer.trace import Trace, trace


def observe(model: nn.Module, inputs: InputsSpec, device: str) -> Behaviour:
    """Run `model` (on `device`, in eval mode) twice on its inputs, and keep what is worth keeping.

    Raises: UsageError when the inputs cannot be made or the model's code raises.
    """
    arguments = make_inputs(inputs, model, device)
    first = watch(model, arguments)
    again = watch(model, arguments)
    return Behaviour(
        inputs=inline_inputs(inputs, arguments).to_json(),
        environment=environment(device),
        is_deterministic=first.digests() == again.digests(),
        outputs=first.outputs,
        calls=first.calls,
        buffers=buffer_digests(model),
        dtypes=dtypes_of(model),
        training=in_training(model),
    )


def watch(model: nn.Module, arguments: Arguments) -> Trace:
    """One eval-mode, no-grad forward pass with every module watched."""
    return trace(model, lambda: run(model, arguments))


def environment(device: str) -> dict[str, Any]:
    """What else the numbers depend on: versions, device, and the settings that change kernels."""
    kind = torch.device(device).type
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if kind == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "tf32": bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }


def _processor() -> str:
    """What kernels the processor gets; its name would say less."""
    return str(torch.backends.cpu.get_cpu_capability())


def dtypes_of(model: nn.Module) -> dict[str, int]:
    """Number of tensors of the state dict by dtype."""
    values = model.state_dict(keep_vars=True).values()
    names = (str(v.dtype).removeprefix("torch.") for v in values if isinstance(v, torch.Tensor))
    return dict(Counter(names))


def in_training(model: nn.Module) -> list[str]:
    """Modules that stay in training mode after `eval()`: dropout drops, batch norm learns."""
    model.eval()
    return [name for name, module in model.named_modules() if module.training]


def buffer_digests(model: nn.Module) -> dict[str, str]:
    """Digest of each buffer that the state dict leaves out."""
    kept = model.state_dict(keep_vars=True).keys()
    digests = {}
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name in kept:
            continue
        try:
            (entry,) = checkpoint_of({name: buffer}, Path()).tensors.values()
        except LossyError:
            continue
        digests[name] = tensor_digest(entry)
    return digests

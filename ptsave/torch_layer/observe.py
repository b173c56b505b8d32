"""Recording a model's behaviour: what it computes from the config's inputs, here and now."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptsave.core.behaviour import Behaviour, Determinism
from ptsave.core.digest import tensor_digest
from ptsave.errors import LossyError
from ptsave.input_specs import InputsSpec
from ptsave.torch_layer.inputs import Arguments, inline_inputs, make_inputs
from ptsave.torch_layer.live import checkpoint_of
from ptsave.torch_layer.trace import Trace, watch


def observe(
    model: nn.Module, inputs: InputsSpec, device: str, dtypes: Mapping[str, int] | None = None
) -> Behaviour:
    """Run `model` (on `device`, in eval mode) on its inputs, twice or more, and keep what is worth keeping.

    `dtypes` counts the tensors of the checkpoint by dtype, where they are not the model's own.

    Raises: UsageError when the inputs cannot be made or the model's code raises.
    """
    arguments = make_inputs(inputs, model, device)
    buffers = buffer_digests(model)
    first = watch(model, arguments)
    return Behaviour(
        inputs=inline_inputs(inputs, arguments).to_json(),
        environment=environment(device),
        determinism=_determinism(model, arguments, first),
        outputs=first.outputs,
        calls=first.calls,
        buffers=buffers,
        dtypes=dtypes_of(model) if dtypes is None else dtypes,
        training=first.training,
    )


def _determinism(model: nn.Module, arguments: Arguments, first: Trace) -> Determinism:
    if watch(model, arguments, seed=1).digests() == first.digests():
        return "exact"
    return "seeded" if watch(model, arguments).digests() == first.digests() else "none"


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


def buffer_digests(model: nn.Module) -> dict[str, str]:
    """Digest of each buffer that the state dict leaves out."""
    kept = model.state_dict(keep_vars=True).keys()
    named = model.named_buffers(remove_duplicate=False)
    return digests_of({name: buffer for name, buffer in named if name not in kept})


def digests_of(state: Mapping[str, Any]) -> dict[str, str]:
    """Name → digest of each tensor; what is no tensor (`_extra_state`) goes by its text.

    Tensors of another device are copied one at a time.
    """
    digests: dict[str, str] = {}
    for name, value in state.items():
        try:
            checkpoint = checkpoint_of({name: value}, Path())
        except LossyError:
            continue
        digests.update((key, tensor_digest(entry)) for key, entry in checkpoint.tensors.items())
        digests.update((key, repr(leaf)) for key, leaf in checkpoint.data.items())
    return digests

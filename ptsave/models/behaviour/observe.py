"""Recording a model's behaviour: what it computes from the config's inputs, here and now."""

from __future__ import annotations

import contextlib
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ptsave.config.inputs import InputsSpec
from ptsave.core.behaviour import Behaviour, Determinism
from ptsave.core.tree import dotted, items_of, walk
from ptsave.core.values.digest import DEFAULT, hasher
from ptsave.errors import LossyError
from ptsave.models.behaviour.trace import Trace, watch, watch_precisions, with_precisions
from ptsave.models.inputs import Arguments, inline_inputs, make_inputs
from ptsave.models.weights.live import checkpoint_of, is_plain
from ptsave.storage.scan import tensor_digest


def observe(
    model: nn.Module,
    inputs: InputsSpec,
    device: str,
    dtypes: Mapping[str, int] | None = None,
    first: Trace | None = None,
) -> Behaviour:
    """Run `model` (on `device`, in eval mode) on its inputs, twice or more, and keep what is worth keeping.

    `dtypes` counts the tensors of the checkpoint by dtype, where they are not the model's own. `first` is a
    run of the model on these inputs, where there is one already.

    Raises: UsageError when the inputs cannot be made or the model's code raises.
    """
    arguments = make_inputs(inputs, model, device)
    buffers, outside = buffer_digests(model), outside_digests(model)
    first = first or watch(model, arguments)
    again = watch_precisions(model, arguments, first, seed=1)
    return Behaviour(
        inputs=inline_inputs(inputs, arguments).to_json(),
        environment=environment(device, model),
        determinism=_determinism(model, arguments, first, again),
        outputs=first.outputs,
        calls=first.calls if again is None else with_precisions(first.calls, again),
        knows_inside=again is not None,
        buffers=buffers,
        outside=outside,
        dtypes=dtypes_of(model) if dtypes is None else dtypes,
        training=first.training,
    )


def _determinism(model: nn.Module, arguments: Arguments, first: Trace, again: Trace | None) -> Determinism:
    """`again`: a pass with another seed, while functions are looked at, where there is one.

    A model may compute otherwise while they are, so that only equal bits tell something.
    """
    if again is not None and again.digests() == first.digests():
        return "exact"
    if watch(model, arguments, seed=1).digests() == first.digests():
        return "exact"
    return "seeded" if watch(model, arguments).digests() == first.digests() else "none"


def environment(device: str, model: nn.Module) -> dict[str, Any]:
    """What else the numbers depend on: versions, device, and the settings that change kernels.

    Where all of it is equal, a deterministic model gives the same bits. It holds plain values, none of them
    of the moment or the host.
    """
    kind = torch.device(device).type
    return {
        "torch": torch.__version__,
        "torch_build": hasher(DEFAULT, torch.__config__.show().encode()).hexdigest(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if kind == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "tf32": bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        **{name: bool(is_on()) for name, is_on in _SETTINGS.items()},
        **{name: os.environ.get(name, "") for name in _VARIABLES},
        **_packages(model),
    }


_SETTINGS: Mapping[str, Callable[[], bool]] = {
    "mkldnn": torch._C._get_mkldnn_enabled,
    "mkldnn_deterministic": lambda: bool(getattr(torch.backends.mkldnn, "deterministic", False)),
    "nnpack": torch._C._get_nnpack_enabled,
    "flash_sdp": torch.backends.cuda.flash_sdp_enabled,
    "mem_efficient_sdp": torch.backends.cuda.mem_efficient_sdp_enabled,
    "math_sdp": torch.backends.cuda.math_sdp_enabled,
    "fastpath": torch.backends.mha.get_fastpath_enabled,
    "cudnn": lambda: torch.backends.cudnn.enabled,
    "cudnn_benchmark": lambda: torch.backends.cudnn.benchmark,
    "cudnn_deterministic": lambda: torch.backends.cudnn.deterministic,
    "fp16_reduced_sums": lambda: torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
    "bf16_reduced_sums": lambda: torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
}
"""Switches of torch that choose between kernels."""
_VARIABLES = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "CUBLAS_WORKSPACE_CONFIG")
"""Variables by which the libraries under torch choose theirs."""


def _packages(model: nn.Module) -> dict[str, str]:
    """Versions of the installed packages whose classes the model is made of, torch aside."""
    names = {type(module).__module__.split(".")[0] for module in model.modules()} - {"torch", "ptsave"}
    versions = {}
    for name in sorted(names):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[f"package {name}"] = metadata.version(name)
    return versions


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


MAX_OUTSIDE = 100
"""How many values outside the state dict are looked at, tensors and arrays before numbers; and how many
items of each container."""
MAX_OUTSIDE_DEPTH = 3
"""How deep in containers."""


def outside_digests(model: nn.Module) -> dict[str, str]:
    """Digest of each tensor, array and float that the model's code uses and no state dict knows.

    They are attributes of modules, and globals of the code that defines them, or lie in their containers:
    whatever draws them anew makes another model of the same weights. Whole numbers count and size things.
    """
    known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    found = {name: value for name, value in _outside(model) if id(value) not in known}
    ordered = sorted(found, key=lambda name: isinstance(found[name], float))
    state = {name: _as_tensor(found[name]) for name in ordered[:MAX_OUTSIDE]}
    return digests_of({name: tensor for name, tensor in state.items() if is_plain(tensor)})


def _outside(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Path and value; torch's own modules have their numbers from who makes them."""
    for name, module in model.named_modules():
        is_torchs = type(module).__module__.startswith("torch.")
        for key, value in vars(module).items():
            if key in _OF_EVERY_MODULE:
                continue
            for path, leaf in _leaves(f"{name}.{key}" if name else key, value):
                if not (is_torchs and isinstance(leaf, float)):
                    yield path, leaf
    for kind in dict.fromkeys(type(module) for module in model.modules()):
        if kind.__module__.startswith("torch."):
            continue
        for function in vars(kind).values():
            code, names = getattr(function, "__code__", None), getattr(function, "__globals__", {})
            for key in code.co_names if code is not None else ():
                for path, leaf in _leaves(f"{names.get('__name__', '')}.{key}", names.get(key)):
                    if not isinstance(leaf, float):  # the source digest has the plain data that code uses
                        yield path, leaf


_OF_EVERY_MODULE = vars(nn.Module()).keys()


def _leaves(where: str, value: Any) -> Iterator[tuple[str, Any]]:
    for path, node in walk(value, _first_items, once=False, max_depth=MAX_OUTSIDE_DEPTH):
        if isinstance(node, (torch.Tensor, float)) or (
            isinstance(node, np.ndarray) and node.dtype.kind in "biufc"
        ):
            yield dotted(path, where), node


def _first_items(node: Any) -> Iterable[tuple[Any, Any]]:
    return islice(items_of(node), MAX_OUTSIDE) if isinstance(node, (dict, list, tuple)) else ()


def _as_tensor(value: Any) -> torch.Tensor:
    is_number = isinstance(value, float)
    return torch.tensor(value, dtype=torch.float64) if is_number else torch.as_tensor(value).detach()


def digests_of(state: Mapping[str, Any]) -> dict[str, str]:
    """Name → digest of each tensor; what is not a tensor (`_extra_state`) is represented by its text.

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

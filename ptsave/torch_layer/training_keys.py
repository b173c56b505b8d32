"""What others call the parts of a training: their dictionaries under the names of ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ptsave.core.candidates import MODEL_KEYS
from ptsave.core.nodes import Global, Opaque

ALIASES: dict[str, tuple[str, ...]] = {
    "model": ("model_state_dict", *MODEL_KEYS),
    "optimizer": (
        *(
            "optimizer_state_dict",
            "optimizer",
            "optimizer_states",
            "optimizers",
            "optim",
            "opt",
            "optimizer_state",
        ),
        *("optim_state_dict", "opt_state_dict", "optimizers_state_dict"),
    ),
    "scheduler": (
        *("scheduler_state_dict", "lr_scheduler_state_dict", "scheduler", "lr_scheduler", "lr_schedulers"),
        *("schedulers", "lr_sched", "scheduler_state", "lr_scheduler_state", "schedulers_state_dict"),
    ),
    "scaler": (
        *(
            "scaler_state_dict",
            "scaler",
            "grad_scaler",
            "amp_scaler",
            "grad_scaler_state_dict",
            "loss_scaler",
        ),
        *("MixedPrecision", "MixedPrecisionPlugin", "NativeMixedPrecisionPlugin", "amp"),
    ),
    "data": (
        *("data_state_dict", "sampler_state_dict", "dataloader_state_dict", "loader_state_dict"),
        *("dataloader", "train_dataloader", "data_loader"),
    ),
}
"""Part → the keys that training code keeps it under, ours first.

Source: PyTorch's tutorial (`epoch`, `model_state_dict`, …); lightning.pytorch's checkpoint_connector.py
(`optimizer_states`, `lr_schedulers`, the precision plugin's class); timm, detectron2, fairseq, ultralytics.
"""
STEP_KEYS = ("step", "global_step", "iteration", "iter", "it", "n_iter", "num_updates", "global_steps")
"""Keys of the number of steps, the likeliest first."""
WORLD_SIZE, RANKS = "world_size", "ranks"
"""Keys of how many ranks saved it, and of what each had for itself."""
PROGRESS = frozenset({"epoch", "metrics", "loss", "best", WORLD_SIZE, RANKS, *STEP_KEYS})
"""Keys that are the caller's: how far it came, and with how many."""
MAX_LISTED = 8
"""How many keys a sentence lists."""
RNG_KEYS = ("rng_state", "rng_states", "rng", "random_state", "random_states", "rng_state_dict")
GENERATORS: dict[str, tuple[str, ...]] = {
    "python": ("python", "random_state", "python_rng_state", "random", "python_state", "py"),
    "numpy": ("numpy", "numpy_random_seed", "numpy_rng_state", "np", "np_rng_state", "numpy_state"),
    "torch": (
        "torch",
        "cpu",
        "torch_manual_seed",
        "torch_rng_state",
        "cpu_rng_state",
        "torch_cpu",
        "torch_state",
    ),
    "cuda": (
        "cuda",
        "torch_cuda_manual_seed",
        "cuda_rng_state",
        "torch_cuda",
        "gpu_rng_state",
        "cuda_rng_state_all",
    ),
    "mps": ("mps", "torch_mps_manual_seed", "mps_rng_state"),
}
"""Generator → the keys of its state. Source: accelerate's checkpointing.py, transformers' trainer.py."""


def canonical(state: Mapping[str, Any], wanted: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Part (`model`, …, `rng`, `gradients`) → its saved state; and what is not used, in words."""
    used: set[str] = set()
    parts: dict[str, Any] = {}
    for name in wanted:
        for key in ALIASES.get(name, (f"{name}_state_dict", name)):
            if key in state and key not in used and isinstance(state[key], (Mapping, list, tuple)):
                if name != "model" and not state[key]:
                    used.add(key)
                    continue
                parts[name] = state[key]
                used.add(key)
                break
    if "model" not in parts and state and all(isinstance(value, torch.Tensor) for value in state.values()):
        return {"model": state}, []
    generators = _generators(state, used)
    if generators:
        parts["rng"] = generators
    if isinstance(state.get("gradients"), Mapping):
        parts["gradients"] = state["gradients"]
        used.add("gradients")
    left = [_in_words(key, state[key]) for key in state if key not in used and key not in PROGRESS]
    more = ", …" if len(left) > MAX_LISTED else ""
    return parts, [f"not used of the checkpoint: {', '.join(left[:MAX_LISTED])}{more}"] if left else []


def is_count(value: Any) -> bool:
    """Whether `value` is a whole number that counts something."""
    return type(value) is int and value >= 0


def _in_words(key: Any, value: Any) -> str:
    return f"{key} (a {value.name})" if isinstance(value, (Opaque, Global)) else str(key)


def _generators(state: Mapping[str, Any], used: set[str]) -> dict[str, Any]:
    """The states of the generators, whether in a dictionary of their own or beside the other parts."""
    found: dict[str, Any] = {}
    for key in RNG_KEYS:
        value = state.get(key)
        if isinstance(value, Mapping):
            for generator, names in GENERATORS.items():
                for name in names:
                    if value.get(name) is not None:
                        found.setdefault(generator, value[name])
                        used.add(key)
        elif isinstance(value, torch.Tensor) and value.dtype is torch.uint8:
            found.setdefault("torch", value)
            used.add(key)
    for generator, names in GENERATORS.items():
        for name in names:
            if name.endswith(("_rng_state", "_rng_state_all")) and state.get(name) is not None:
                found.setdefault(generator, state[name])
                used.add(name)
    return found

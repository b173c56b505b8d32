"""What others call the parts of a training: their dictionaries under the names of ours."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ptsave.core.dtypes import BY_NAME
from ptsave.core.nodes import Global, Opaque, TensorEntry, contiguous_strides
from ptsave.core.parts.candidates import MODEL_KEYS, is_average
from ptsave.core.parts.training import (
    ALIASES,
    AVERAGING,
    MAX_DEPTH,
    RAW,
    STEP_KEYS,
    Parts,
    Place,
    at,
    find_model,
    find_part,
    find_parts,
)
from ptsave.core.storage import MemoryStorage
from ptsave.core.tree import rewrite
from ptsave.errors import AmbiguousError, LossyError

WORLD_SIZE, RANKS, RANK_VALUES = "world_size", "ranks", "rank_values"
"""Keys of how many ranks saved it, of what each had for itself, and of which rank has which of that."""
PROGRESS = frozenset({"epoch", "metrics", "loss", "best", WORLD_SIZE, RANKS, RANK_VALUES, *STEP_KEYS})
"""Keys that are the caller's: how far it came, and with how many."""
UNSYNCHRONISED = "unsynchronised_gradients"
"""Key of the gradients that each rank has accumulated for itself, of parameters that are sharded."""
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


def canonical(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Part (`model`, …, `rng`, `gradients`) → its saved state; and what is not used, in words.

    `wanted`: the caller's own parts by name.

    Raises: LossyError where nothing says which of several is meant, or where the weights are averages.
    """
    if state and all(isinstance(value, torch.Tensor) for value in state.values()):
        return {"model": state}, []
    root = headers(state)
    found = find_parts(root)
    used: set[Place] = set()
    parts: dict[str, Any] = {}
    try:
        for name in sorted(wanted, key=lambda name: (name == "model", name in ALIASES)):
            if (value := _part(state, root, found, name, wanted[name], used)) is not None:
                parts[name] = value
    except AmbiguousError as error:
        raise LossyError(error.what, error.where or "model", _name_them(error)) from error
    used.update((k,) for name in wanted for k in ALIASES.get(name, ()) if k in state and not state[k])
    averages = [str(key) for key in root if is_average(str(key)) and isinstance(root[key], dict)]
    if "model" in wanted and "model" not in parts and averages:
        raise LossyError(
            "the checkpoint holds no trained weights, only averages of them: "
            f"{', '.join(averages[:MAX_LISTED])}",
            "model_state_dict",
            f"to begin with these, ptsave.load(path, model, select={averages[0]!r}) and a new optimizer",
        )
    keys = {place[0] for place in used}
    generators = _generators(state, keys)
    if generators:
        parts["rng"] = generators
    for key in ("gradients", UNSYNCHRONISED):
        if isinstance(state.get(key), Mapping):
            parts[key] = state[key]
            keys.add(key)
    unused = [key for key in state if key not in keys and key not in PROGRESS and not is_nothing(state[key])]
    left = [_in_words(key, state[key]) for key in unused]
    more = ", …" if len(left) > MAX_LISTED else ""
    return parts, [f"not used of the checkpoint: {', '.join(left[:MAX_LISTED])}{more}"] if left else []


def _part(state: Mapping[str, Any], root: Any, found: Parts, name: str, part: Any, used: set[Any]) -> Any:
    """The saved state of the part `name`, whose keys go into `used`; None where there is none.

    Raises: AmbiguousError.
    """
    own = f"{name}_state_dict"
    if isinstance(part, Mapping) and own not in root:  # by the keys that the caller gave
        keys = list(part)
        if keys and all(isinstance(root.get(key), (dict, list, tuple)) for key in keys):
            used.update((key,) for key in keys)
            return {key: state[key] for key in keys}
    if name == "model":
        return _weights(state, root, isinstance(part, (Mapping, list, tuple)), used)
    if name not in ALIASES and is_average(name) and {RAW, AVERAGING, "state_dict"} <= root.keys():
        used |= {(AVERAGING,), ("state_dict",)}
        average = {f"module.{key}": value for key, value in state["state_dict"].items()}
        return average | dict(state[AVERAGING])
    place = find_part(root, found, name, used)
    if place is None:
        return None
    used.add(place)
    return at(state, place)


def _weights(state: Mapping[str, Any], root: Any, are_several: bool, used: set[Place]) -> Any:
    """The state dict of the model, or (`are_several`) those of the models; None where there is none.

    Raises: AmbiguousError.
    """
    place: Place | None = None
    is_own = False
    if isinstance(root.get("model_state_dict"), (dict, list, tuple)):
        place = ("model_state_dict",)
    elif not are_several and (candidate := find_model(root, {place[0] for place in used})) is not None:
        where, is_own = candidate.where, candidate.is_own
        place = (where,) if where in root else tuple(where.split(".")) if where else ()
    else:
        keys = (key for key in MODEL_KEYS if (key,) not in used and not is_average(key))
        place = next(((key,) for key in keys if isinstance(root.get(key), (dict, list, tuple))), None)
    if place is None:
        return None
    value: Any = at(state, place)
    used.update([place] if place else ())
    if is_own:  # the tensors that lie there, without what lies beside them
        value = OrderedDict((key, item) for key, item in value.items() if isinstance(item, torch.Tensor))
        used.update((*place, key) for key in value)
    return value


def _name_them(error: AmbiguousError) -> str:
    keys: Any = error.details.get("candidates")
    return f"give each under its key: model={{{keys[0]!r}: …}}" if keys else error.hint


def headers(state: Any) -> Any:
    """`state` as a file's tree has it, with an entry for each tensor, down to where parts may lie."""
    storages: dict[int, MemoryStorage] = {}

    def leaf(path: Sequence[Any], value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return header("", value, storages.setdefault(id(value), MemoryStorage(memoryview(b""))))

    def enter(path: Sequence[Any], node: Any) -> Any:
        return None if len(path) > 2 * MAX_DEPTH and isinstance(node, (Mapping, list, tuple)) else node

    return rewrite(state, leaf, enter=enter)


def header(name: str, value: torch.Tensor, storage: MemoryStorage) -> TensorEntry:
    """What there is to say of a tensor without its values."""
    shape = tuple(value.shape)
    dtype = BY_NAME[str(value.dtype).removeprefix("torch.")]
    return TensorEntry(name, dtype, shape, contiguous_strides(shape), storage, 0)


def is_nothing(value: Any) -> bool:
    """Whether `value` is an empty container."""
    return isinstance(value, (Mapping, list, tuple)) and not value


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

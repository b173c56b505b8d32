"""Reading a training that was saved, by ptsave or by others, as the dictionary that TrainingState takes.

Files are read by ptsave's own readers, so nothing in them runs. What is not plain data stays inert, and
TrainingState says so where it would have been wanted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ptsave.core.address import Location, located
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import DType
from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.core.parts.candidates import MODEL_KEYS, is_state_dict
from ptsave.core.parts.kinds import STATE_KEYS
from ptsave.core.parts.placeholders import placeholders, refuse
from ptsave.core.parts.select import select_model
from ptsave.core.parts.training import ALIASES, Parts, at, fields_of, find_parts, steps_done
from ptsave.core.strict_json import parse_object
from ptsave.core.tree import map_leaves, walk
from ptsave.core.values.digest import recorded_digests
from ptsave.errors import LimitError, LossyError, UsageError
from ptsave.formats import open_checkpoint
from ptsave.formats.pickle.shapes import Payload
from ptsave.models.weights.tensors import read_tensors, refused_part, to_torch
from ptsave.storage.files import InputFolder
from ptsave.storage.opening import open_file, open_input
from ptsave.training.keys import headers, is_count

FOLDER_FILES: dict[str, tuple[re.Pattern[str], ...]] = {
    part: tuple(re.compile(pattern) for pattern in patterns)
    for part, patterns in {
        "model_state_dict": (
            r"model(_(?P<n>\d+))?\.safetensors",
            r"model(_(?P<n>\d+))?\.safetensors\.index\.json",
            r"pytorch_model(_(?P<n>\d+))?\.bin",
            r"pytorch_model(_(?P<n>\d+))?\.bin\.index\.json",
        ),
        "optimizer_state_dict": (r"optimizer(_(?P<n>\d+))?\.(bin|pt)",),
        "scheduler_state_dict": (r"scheduler(_(?P<n>\d+))?\.(bin|pt)",),
        "scaler_state_dict": (r"scaler\.pt",),
        "data_state_dict": (r"dl_state_dict(_(?P<n>\d+))?\.bin",),
        "rng_state": (r"rng_state(_0)?\.pth", r"random_states_0\.pkl"),
    }.items()
}
"""Part → the names of its files in a folder; the first pattern that fits any is taken.

Source: accelerate's checkpointing.py and utils/constants.py; transformers' trainer.py (`_save_checkpoint`).
"""
_TRAINING_FILE = re.compile(
    r"(optimizer|scheduler)(_\d+)?\.(bin|pt)|rng_state(_0)?\.pth|random_states_0\.pkl"
)
MAX_JSON_BYTES = 64 * 1024 * 1024
"""Cap on a `trainer_state.json`, which logs every step."""


def read_training(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The training at `path` as nested plain data with torch tensors on the CPU.

    `path` is a file (ptsave's, the tutorial's dictionary, a Lightning `.ckpt`, weights alone) or a folder of
    accelerate's or transformers' Trainer. `step` is how many steps of the optimizer were done (after ten, it
    is 10, whoever saved it), and `epoch` what the training says, where it says them.
    Checksums and recorded digests are held on the way.

    Raises: MissingFileError, UnknownFormatError, CorruptError, LimitError; UsageError where no weights are;
    LossyError where tensors only stand in for them, or a training was flattened into names (`convert` of one
    to safetensors).
    """
    target = located(path)
    with open_input(target) as found:
        names = sorted(found.names) if isinstance(found, InputFolder) else []
    state = _folder(target, names) if any(map(_TRAINING_FILE.fullmatch, names)) else _file(target)
    parts = find_parts(headers(state))
    if (step := steps_done(parts, _steps_of_optimizers(state, parts))) is not None:
        state["step"] = step
    return state


def _steps_of_optimizers(state: Mapping[str, Any], parts: Parts) -> set[int]:
    """How many steps each optimizer has counted, where it counts them."""
    counted = set()
    for place in parts.optimizers:
        kept = fields_of(fields_of(at(state, place)).get("state")).values()
        if steps := [n for one in kept if (n := _count(fields_of(one).get("step"))) is not None]:
            counted.add(max(steps))
    return counted


def _count(step: Any) -> int | None:
    """A whole number, which Adam keeps as a tensor."""
    if torch.is_tensor(step) and step.numel() == 1 and not step.is_complex():
        step = step.item()
        step = int(step) if isinstance(step, float) and step.is_integer() else step
    return step if is_count(step) else None


def _file(path: Location) -> dict[str, Any]:
    """A dictionary as it nests; weights alone, and a pickled module, as `model_state_dict`."""
    with open_checkpoint(path) as checkpoint:
        root = checkpoint.root
        refuse(placeholders(root), (), str(path))
        if not isinstance(root, dict) or is_state_dict(root):
            _refuse_flattened(checkpoint)
            return {"model_state_dict": as_torch(checkpoint, select_model(checkpoint).state_dict())}
        if not find_parts(root).models:
            select_model(checkpoint)  # says what is missing
        modules = {key for key, value in root.items() if isinstance(value, Opaque) and value.shared}
        tree = {
            key: select_model(checkpoint, str(key)).state_dict() if key in modules else value
            for key, value in root.items()
        }
        return dict(as_torch(checkpoint, tree))


def _refuse_flattened(checkpoint: Checkpoint) -> None:
    """Raise LossyError where the tensors of a training have become one state dict by their paths.

    Which part of a name was a key, and of what type, is not there any more.
    """
    for name in checkpoint.tensors:
        head, _, rest = name.partition(".state.")
        if rest.rpartition(".")[2] in STATE_KEYS and any(
            key in ALIASES["optimizer"] for key in head.split(".")
        ):
            key = name.partition(".")[0]
            others = (one.partition(".")[0] for one in checkpoint.tensors)
            models = [one for one in dict.fromkeys(others) if one in MODEL_KEYS and one != key]
            select = f", select={models[0]!r}" if models else ""
            raise LossyError(
                f"the file holds a training flattened into names such as {name!r}",
                str(checkpoint.path),
                "resume from the file that it was converted from; the weights alone are "
                f"ptsave.load(path, model{select})",
            )


def as_torch(checkpoint: Checkpoint, root: Any) -> Any:
    """`root`, a part of `checkpoint`'s tree, with torch tensors; what is shared there is shared here."""
    names = {entry.view: name for name, entry in checkpoint.tensors.items()}
    wanted = {entry.view: entry.named(names.get(entry.view, entry.name)) for entry in _tensors(root)}
    by_view = {names.get(view, str(i)): (view, entry) for i, (view, entry) in enumerate(wanted.items())}
    digests = recorded_digests(wanted.values(), checkpoint.record)
    read = dict(
        read_tensors(
            {name: entry for name, (_, entry) in by_view.items()},
            digests=digests.tensors,
            algorithm=digests.algorithm,
        )
    )
    tensors = {view: read[name] for name, (view, _) in by_view.items()}
    return with_tensors(root, tensors)


def _tensors(root: Any) -> list[TensorEntry]:
    """Every tensor below `root`, but for those in objects."""
    return [node for _, node in walk(root) if isinstance(node, TensorEntry)]


def with_tensors(root: Any, tensors: Mapping[Any, torch.Tensor]) -> Any:
    """A copy of `root` with each entry as the tensor of its view, and NumPy's values as torch's and Python's.

    Raises: LimitError as `map_leaves` does.
    """

    def replace(leaf: Any) -> Any:
        if isinstance(leaf, TensorEntry):
            return tensors.get(leaf.view, leaf)
        if isinstance(leaf, DType):
            return getattr(torch, leaf.name, leaf)
        if isinstance(leaf, Opaque) and leaf.name.startswith("numpy."):
            return _numpy(leaf)
        return leaf if refused_part(leaf) else to_torch(leaf, "")

    return map_leaves(root, replace)


def _numpy(value: Opaque) -> Any:
    """A NumPy array as a tensor, a NumPy number as Python's; anything else as it is."""
    if value.name.startswith("numpy.") and value.is_call_of_scalars and len(value.args) == 1:
        return value.args[0] if value.name != "numpy.dtype" else value
    state = value.state
    if (
        value.name != "numpy.ndarray"
        or not isinstance(state, dict)
        or not isinstance(state.get("dtype"), str)
    ):
        return value
    values = state.get("values")
    if values is None:
        data = state.get("data")
        if isinstance(data, Payload):
            buffer = bytearray(data.storage.num_bytes)
            data.storage.read_into(0, memoryview(buffer))
        elif isinstance(data, (bytes, bytearray)):
            buffer = bytearray(data)
        else:
            return value
        array = np.frombuffer(buffer, dtype=np.dtype(state["dtype"]).newbyteorder("<"))
    else:
        array = np.array(values, dtype=state["dtype"])
    return torch.from_numpy(array.reshape(state["shape"], order=state["order"]).copy())


# --- folders ----------------------------------------------------------------------------------------------


def _folder(path: Location, names: list[str]) -> dict[str, Any]:
    """A folder of accelerate's or of transformers' Trainer."""
    state: dict[str, Any] = {}
    used: set[str] = set()
    for part, patterns in FOLDER_FILES.items():
        for pattern in patterns:
            matches = sorted(
                (int(match.groupdict().get("n") or 0), name)
                for name in names
                if (match := pattern.fullmatch(name)) is not None
            )
            if matches:
                parts = [_part(path / name) for _, name in matches]
                state[part] = parts[0] if len(parts) == 1 else parts
                used.update(name for _, name in matches)
                break
    if "model_state_dict" not in state:
        hint = "model.safetensors or pytorch_model.bin is expected"
        raise UsageError("the file holds no model's weights", str(path), hint)
    if "trainer_state.json" in names:
        used.add("trainer_state.json")
        trainer = _json(path / "trainer_state.json")
        if is_count(trainer.get("global_step")):
            state["step"] = trainer["global_step"]
        if isinstance(trainer.get("epoch"), (int, float)):
            state["epoch"] = trainer["epoch"]
    state.update({name: None for name in names if name not in used and _is_state(name)})
    return state


def _is_state(name: str) -> bool:
    """Whether a file of a folder is a part of a training that TrainingState has no place for."""
    return name.startswith(("sampler", "custom_checkpoint")) and name.endswith((".bin", ".pkl"))


def _part(path: Location) -> Any:
    with open_checkpoint(path) as checkpoint:
        return as_torch(checkpoint, checkpoint.root)


def _json(path: Location) -> dict[str, Any]:
    """A JSON object.

    Raises: MissingFileError, LimitError, CorruptError.
    """
    with open_file(path) as file:
        if file.size_bytes > MAX_JSON_BYTES:
            raise LimitError("trainer_state_bytes", MAX_JSON_BYTES, file.size_bytes, str(path))
        data = file.read_at(0, file.size_bytes)
    return parse_object(data, "the trainer's state", str(path))

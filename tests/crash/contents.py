"""What readers find at a destination: one digest over every tensor's name, dtype, shape and bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ptsave.core.values.gather import contiguous
from ptsave.errors import UnreadableError
from ptsave.formats import open_checkpoint
from ptsave.storage.temporary import SUFFIX

HALF = "half"
"""What a reader finds in a file that is neither absent nor whole."""
ABSENT = "absent"


def by_ptsave(path: Path) -> str:
    """The digest, or ABSENT, or HALF; ptsave's own integrity checks included."""
    if not path.exists():
        return ABSENT
    try:
        with open_checkpoint(path) as checkpoint:
            findings = [finding for check in checkpoint.checks for finding in check()]
            if any(finding.level == "fail" for finding in findings):
                return HALF
            rows = []
            for name, entry in checkpoint.tensors.items():
                source, offset = contiguous(entry)
                data = bytearray(entry.num_bytes)
                source.read_into(offset, memoryview(data))
                rows.append((name, entry.dtype.name, entry.shape, bytes(data)))
    except UnreadableError:
        return HALF
    return _digest(rows)


def by_others(path: Path, format_name: str) -> str:
    """The same by the readers that everybody else has: torch, safetensors, torch.distributed.checkpoint."""
    if not path.exists():
        return ABSENT
    try:
        state = _READERS[format_name](path)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError, BadZipFile):
        return HALF
    return of_state(state)


def of_state(state: dict[str, torch.Tensor]) -> str:
    """The digest of a live state dict."""
    return _digest(
        (name, str(t.dtype).removeprefix("torch."), tuple(t.shape), _bytes(t)) for name, t in state.items()
    )


def is_litter(name: str) -> bool:
    """Whether a name is one that ptsave gives to what it has not finished."""
    return name.startswith(".") and name.endswith(SUFFIX)


def tree(path: Path) -> dict[str, bytes] | None:
    """A destination bit for bit: relative name → bytes of every file, without litter; None when absent."""
    if not path.exists():
        return None
    if path.is_file():
        return {"": path.read_bytes()}
    files = (file for file in path.rglob("*") if file.is_file() and not is_litter(file.name))
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def _digest(rows: Iterable[tuple[str, str, tuple[int, ...], bytes]]) -> str:
    digest = hashlib.sha256()
    for name, dtype, shape, data in sorted(rows):
        digest.update(f"{name} {dtype} {list(shape)} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _torch_zip(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)
    assert isinstance(state, dict)
    return state


def _sharded(path: Path) -> dict[str, torch.Tensor]:
    index = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    shards = {shard: load_file(path / shard) for shard in set(index.values())}
    return {name: shards[shard][name] for name, shard in index.items()}


def _npz(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _dcp(path: Path) -> dict[str, torch.Tensor]:
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state: dict[str, torch.Tensor] = {}
    planner = _EmptyStateDictLoadPlanner()
    try:
        _load_state_dict(state, storage_reader=FileSystemReader(path), planner=planner, no_dist=True)
    except CheckpointException as error:  # derives from BaseException
        raise ValueError(str(error)) from None
    return state


_READERS = {
    "pt": _torch_zip,
    "safetensors": load_file,
    "safetensors-sharded": _sharded,
    "npz": _npz,
    "dcp": _dcp,
}

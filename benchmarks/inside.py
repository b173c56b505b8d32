"""What is measured inside a process: `inside.py CASE ARGUMENTS…` prints seconds and peak bytes as JSON.

A case that returns bytes is about the memory that it takes beyond them.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

Seconds = list[float]


@contextlib.contextmanager
def timed(taken: Seconds) -> Iterator[None]:
    """Append how long the block took."""
    begin = time.perf_counter()
    yield
    taken.append(time.perf_counter() - begin)


def state_dict(num_bytes: int, num_tensors: int = 200) -> dict[str, torch.Tensor]:
    """Float32 tensors of random values."""
    rows = max(1, num_bytes // num_tensors // 4096)
    torch.manual_seed(0)
    return {f"layers.{i}.weight": torch.rand(rows, 1024) for i in range(num_tensors)}


def save_ptsave(taken: Seconds, path: str, num_bytes: str, sync: str) -> None:
    """A state dict as `.pt`, with true CRCs and without a record, as torch.save writes it."""
    from ptsave.formats.base import WriteOptions
    from ptsave.formats.torch.write import write
    from ptsave.models.weights.live import checkpoint_of

    state = state_dict(int(num_bytes))
    with timed(taken):
        options = WriteOptions(record=False, check=False, sync=sync == "sync")
        write(checkpoint_of(state, Path(path)), Path(path), options)


def save_torch(taken: Seconds, path: str, num_bytes: str, sync: str) -> None:
    """The same by torch.save."""
    state = state_dict(int(num_bytes))
    with timed(taken):
        torch.save(state, path)
        if sync == "sync":
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def load_ptsave(taken: Seconds, path: str) -> None:
    """Every tensor into fresh memory, CRCs checked."""
    from ptsave.formats import open_checkpoint
    from ptsave.models.weights.tensors import read_tensors

    with timed(taken), open_checkpoint(path) as checkpoint:
        state = dict(read_tensors(checkpoint.tensors))
    assert state


def load_torch(taken: Seconds, path: str) -> None:
    """The same by torch.load."""
    with timed(taken):
        state = torch.load(path, weights_only=True)
    assert state


def load_safetensors(taken: Seconds, path: str) -> None:
    """The same by safetensors, and every byte used."""
    from safetensors.torch import load_file

    with timed(taken):
        use(load_file(path))


def load_ptsave_used(taken: Seconds, path: str) -> None:
    """Every tensor, and every byte used."""
    from ptsave.formats import open_checkpoint
    from ptsave.models.weights.tensors import read_tensors

    with timed(taken), open_checkpoint(path) as checkpoint:
        use(dict(read_tensors(checkpoint.tensors)))


def lazy_ptsave(taken: Seconds, path: str) -> None:
    """Every tensor over the file's own pages, and every byte used."""
    from ptsave.formats import open_checkpoint
    from ptsave.models.weights.mapped import map_tensors

    with timed(taken), open_checkpoint(path) as checkpoint:
        use(map_tensors(checkpoint.tensors))


def stream_ptsave(taken: Seconds, path: str) -> int:
    """Every tensor into one that is there; returns how many bytes were resident before."""
    from ptsave.formats import open_checkpoint
    from ptsave.models.weights.streaming import stream_into

    with open_checkpoint(path) as checkpoint:
        model = {name: torch.ones(entry.shape) for name, entry in checkpoint.tensors.items()}
        before = peak()
        with timed(taken):
            stream_into(model, checkpoint.tensors)
    return before


def copy_torch(taken: Seconds, path: str) -> int:
    """The same by torch.load and copying."""
    model = {name: torch.ones(tensor.shape) for name, tensor in torch.load(path, mmap=True).items()}
    before = peak()
    with timed(taken):
        for name, tensor in torch.load(path, weights_only=True).items():
            model[name].copy_(tensor)
    return before


def peak() -> int:
    """The most bytes that were ever resident in this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def use(state: dict[str, torch.Tensor]) -> None:
    """Look at every byte."""
    assert all(tensor.view(torch.int32).max() for tensor in state.values())


CASES = {
    case.__name__.replace("_", "-"): case
    for case in (
        save_ptsave,
        save_torch,
        load_ptsave,
        load_torch,
        load_safetensors,
        load_ptsave_used,
        lazy_ptsave,
        stream_ptsave,
        copy_torch,
    )
}

if __name__ == "__main__":
    seconds: Seconds = []
    before = CASES[sys.argv[1]](seconds, *sys.argv[2:]) or 0
    print(json.dumps({"wall_s": seconds[0], "peak_bytes": peak() - before}))

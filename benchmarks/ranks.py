"""Saving and loading a sharded model, timed: `torchrun … ranks.py CASE FOLDER BYTES`; rank 0 prints JSON."""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from benchmarks.distributed import LAYER_BYTES, WIDTH
from ptsave import Checkpoints
from ptsave.core.parts.select import select_model
from ptsave.core.record import Record
from ptsave.distributed.group import Group
from ptsave.distributed.joined import joined
from ptsave.distributed.shares import check_bytes
from ptsave.distributed.writer import write_sharded
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.models.weights.fill import fill
from ptsave.models.weights.own_shard import OWN_PARTS

Run = Callable[[], float | None]
"""What is timed; or, where it returns a number, what has timed itself (seconds)."""
NUM_SAVES = 4
"""Of a training; the first one is not counted, since it allocates what the others use again."""


def model(num_bytes: int, group: Group) -> nn.Module:
    """Square layers of 4 MiB, each an FSDP unit, without values."""
    with torch.device("meta"):
        layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(max(1, num_bytes // LAYER_BYTES))))
    mesh = init_device_mesh("cpu", (group.size,), mesh_dim_names=("dp",))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(layers, mesh=mesh)
    return layers


def filled(num_bytes: int, group: Group) -> nn.Module:
    """The same with values."""
    layers = model(num_bytes, group).to_empty(device="cpu")
    for parameter in layers.parameters():
        nn.init.normal_(parameter.detach())
    return layers


def save_ptsave(folder: Path, num_bytes: int, group: Group) -> Run:
    """All that `ptsave save` does: written durably, read back, with digests."""
    state = dict(filled(num_bytes, group).state_dict())

    def run() -> None:
        write_sharded(group, state, {}, folder, Record(), WriteOptions(), num_bytes)

    return run


def save_plain(folder: Path, num_bytes: int, group: Group) -> Run:
    """torch.distributed.checkpoint as it is, which is durable too."""
    state = filled(num_bytes, group).state_dict()
    return lambda: save(state, storage_writer=FileSystemWriter(folder)) and None


def load_ptsave(folder: Path, num_bytes: int, group: Group) -> Run:
    """Into a sharded model, strictly, every byte checked against its checksum."""
    layers = model(num_bytes, group)

    def run() -> None:
        with open_checkpoint(folder) as source:
            selection = select_model(source)
            fill(layers, source, selection, "cpu", lambda line: None, is_checked=False, parts=OWN_PARTS)
            check_bytes(group, source, selection.original.values())

    return run


def load_plain(folder: Path, num_bytes: int, group: Group) -> Run:
    """Into the memory of a sharded model, in place."""
    layers = model(num_bytes, group)

    def run() -> None:
        layers.to_empty(device="cpu")
        load(layers.state_dict(), storage_reader=FileSystemReader(folder))

    return run


class _State:
    """What a TrainingState is to the keeper."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> Mapping[str, Any]:
        return {"model_state_dict": self.state}

    def load_state_dict(self, state: Mapping[str, Any], /) -> list[str]:
        return []


def stall_ptsave(folder: Path, num_bytes: int, group: Group) -> Run:
    """What each save of a training keeps the loop: the copy alone; it is read back and synced later."""
    state = _State(filled(num_bytes, group).state_dict())
    keeper = Checkpoints(folder, keep_last=1)

    def save(step: int) -> Callable[[], object]:
        keeper.save(state, step=step)
        return keeper.wait

    return lambda: _stall(group, save)


def stall_plain(folder: Path, num_bytes: int, group: Group) -> Run:
    """The same with torch's own, as it is."""
    state = filled(num_bytes, group).state_dict()

    def save(step: int) -> Callable[[], object]:
        saved: Any = async_save(state, checkpoint_id=folder / str(step))
        return getattr(saved, "upload_completion", saved).result  # type: ignore[no-any-return]

    return lambda: _stall(group, save)


def _stall(group: Group, save: Callable[[int], Callable[[], object]]) -> float:
    taken = []
    for step in range(NUM_SAVES):
        group.meet()
        begin = time.perf_counter()
        wait = save(step)
        taken.append(time.perf_counter() - begin)
        wait()
    return statistics.median(taken[1:])


CASES = {
    "stall-ptsave": stall_ptsave,
    "stall-plain": stall_plain,
    "save-ptsave": save_ptsave,
    "save-plain": save_plain,
    "load-ptsave": load_ptsave,
    "load-plain": load_plain,
}


def main() -> None:
    """Time one case from when all ranks are ready until all are done."""
    case, path, num_bytes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    with joined("cpu") as group:
        run = CASES[case](path, num_bytes, group)
        group.meet()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin = time.perf_counter()
        seconds = run()
        group.meet()
        wall_s = time.perf_counter() - begin if seconds is None else max(group.gather(seconds))
        grown = max(group.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
        if group.is_first:
            if "keep" in sys.argv:
                return
            if not case.startswith("load"):
                shutil.rmtree(path)
            print(json.dumps({"wall_s": wall_s, "peak_bytes": grown * 1024}), flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)  # threads of torch's may abort a Python that is taken down

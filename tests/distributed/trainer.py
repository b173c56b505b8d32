"""One rank of many trainings, each sharded over all ranks and kept in a folder of its own.

`python -m` of this module under torchrun, with the name of a file of trainings.
"""

from __future__ import annotations

import itertools
import resource
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DistributedSampler, TensorDataset

import ptsave
from ptsave.core.address import located
from ptsave.models.behaviour.trace import digest_of
from tests.distributed.cases import as_rank

NUM_SAMPLES = 48
BATCH = 12
"""Samples of a step, of all ranks together; of 1, 2, 3 and 4."""


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2),
    "stateless": lambda model: torch.optim.SGD(model.parameters(), lr=1e-2),
    "fused": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True, amsgrad=True),
    "grouped": lambda model: torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim == 1], "lr": torch.tensor(1e-3)},
        ]
    ),
}


class Net(nn.Module):
    """Uneven sizes, dropout, a tied weight, a buffer, a scalar parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 7)
        self.up, self.down = nn.Linear(7, 12), nn.Linear(12, 7)
        self.norm = nn.BatchNorm1d(7)
        self.head = nn.Linear(7, 11, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor([1.5]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.down(torch.relu(self.up(self.embed(x).mean(1))))
        return self.head(self.norm(nn.functional.dropout(hidden, 0.2, self.training)) * self.scale)


def build(mesh: dict[str, int] | None) -> nn.Module:
    """The model, sharded over the ranks; whole and alike on all with `ddp` alone, and without `mesh`."""
    torch.manual_seed(0)
    model = Net()
    if mesh is None:
        return model
    if set(mesh) == {"ddp"}:
        return nn.parallel.DistributedDataParallel(model)
    whole = init_device_mesh("cpu", tuple(mesh.values()), mesh_dim_names=tuple(mesh))
    if "tp" in mesh:
        parallelize_module(model, whole["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    if "dp" in mesh:
        names = tuple(name for name in mesh if name != "tp")
        fully_shard(model.down, mesh=whole[names])
        fully_shard(model, mesh=whole[names])
    return model


def digests(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """Of every tensor of the model and of its optimizer's state, whole."""
    found = dict(model.state_dict())
    names = {id(p): name for name, p in reversed(list(model.named_parameters(remove_duplicate=False)))}
    for parameter, state in optimizer.state.items():
        found |= {f"{names[id(parameter)]}:{key}": value for key, value in state.items()}
    return {n: digest_of(v.full_tensor() if isinstance(v, DTensor) else v) for n, v in found.items()}


WRITE = FileSystemWriter.write_data


def lie(writer: FileSystemWriter, plan: Any, planner: Any) -> Any:
    """Write, and damage the largest item."""
    FileSystemWriter.write_data = WRITE  # type: ignore[method-assign]
    written = WRITE(writer, plan, planner)
    place = max((result.storage_data for result in written.wait()), key=lambda place: place.length)
    with (Path(writer.path) / place.relative_path).open("r+b") as file:
        file.seek(place.offset + place.length // 4)
        file.write(bytes(place.length // 2))
    return written


def change_disk(what: str) -> None:
    """Let this rank's disk be `full` from now on, a real error of the system, or `well` again; or let it hold
    something else than is written to it (`lies`), once."""
    if what == "lies":
        FileSystemWriter.write_data = lie  # type: ignore[method-assign]
        return
    num_bytes = 2000 if what == "full" else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def train(case: dict[str, Any]) -> dict[str, Any]:
    """Resume, train to step `total`, and say with what it began and ended."""
    distributed = dist.is_initialized()
    rank, size = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    mesh = case.get("mesh")
    replicas = size // (mesh or {}).get("tp", 1)
    replica = rank // (size // replicas)
    model = build(mesh)
    optimizer = OPTIMIZERS[case.get("optimizer", "adamw")](model)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 12])
    torch.manual_seed(100 + replica)  # ranks that split one tensor must draw alike
    numbers = torch.arange(NUM_SAMPLES * 5).reshape(NUM_SAMPLES, 5)
    data = TensorDataset(numbers * 7 % 11, numbers[:, 0] % 11)
    sampler = DistributedSampler(data, replicas, replica, seed=3)
    loader = ptsave.ResumableDataLoader(data, BATCH // replicas, sampler=sampler, seed=1)
    state = ptsave.TrainingState(model=model, optimizer=optimizer, scheduler=scheduler, data=loader)
    result: dict[str, Any] = {"errors": []}
    with (
        warnings.catch_warnings(record=True) as warned,
        ptsave.Checkpoints(case["folder"], keep_last=case.get("keep", 3)) as keeper,
    ):
        warnings.simplefilter("always")
        step = keeper.resume(state)
        result |= {"from": step, "position": [loader.epoch, loader.position]}
        result["first"] = digests(model, optimizer)
        while step < case["total"]:
            for x, y in itertools.islice(loader, case["total"] - step):
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
                if any(when == step for _, _, when in case.get("breaks", ())):
                    keeper.latest()  # waits for the save before
                    for what, who, when in case["breaks"]:
                        if (who, when) == (rank, step):
                            change_disk(what)
                if case.get("looks"):  # which leaves the outermost unit's parameters gathered
                    with torch.no_grad():
                        model(x)
                try:
                    keeper.save(state, step=step, metrics={"loss": float(step)})
                except ptsave.PtsaveError as error:
                    result["errors"].append([step, type(error).__name__, error.what])
                step += 1
        result["last"] = digests(model, optimizer)
        if case.get("again"):
            keeper.save(state, step=step - 1)
    result["warnings"] = [str(warning.message) for warning in warned]
    if isinstance(folder := located(case["folder"]), Path):
        result["names"] = sorted(path.name for path in folder.iterdir())
    return result


if __name__ == "__main__":
    as_rank(train)

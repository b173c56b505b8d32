"""Trainings whose ranks differ in what is not sharded, each saved and resumed by real ranks.

`python -m` of this module under torchrun, with the name of a file of cases: `{"folder": …, "make": …, "do":
"save" or "resume"}`. Each rank says in `results.json` what it had, or what it was told.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor

import ptsave
from ptsave.models.behaviour.trace import digest_of
from tests.distributed.cases import as_rank

Parts = dict[str, Any]


class Experts(nn.Module):
    """A router that all ranks have alike, and an expert of each rank's own under one name."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(6, 6)
        torch.manual_seed(100 + rank)
        self.expert = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.expert(self.router(x))


class Stage(nn.Module):
    """Every `size`-th of four layers, under the numbers that they have in the whole model."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        for number in range(rank, 4, size):
            torch.manual_seed(number)
            self.layers[str(number)] = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers.values():
            x = layer(x)
        return x


class Steps:
    """Something with plain data for a state."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def _trained(model: nn.Module, seed: int, optimizer: Any = None, **more: Any) -> Parts:
    """The parts of a training of one step, of its own samples."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(seed)
    model(torch.randn(4, 6)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return {"model": model, "optimizer": optimizer, **more}


def same() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))


def experts(rank: int, size: int) -> Parts:
    return _trained(Experts(rank), 7)


def pipeline(rank: int, size: int) -> Parts:
    return _trained(Stage(rank, size), 7)


def pipeline_swapped(rank: int, size: int) -> Parts:
    """The stages of `pipeline`, each on another rank."""
    return pipeline(size - 1 - rank, size)


def pipeline_whole(rank: int, size: int) -> Parts:
    """All stages of `pipeline`, on each rank."""
    return pipeline(0, 1)


def stage_and_own(rank: int, size: int) -> Parts:
    """A stage of a pipeline, and something of each rank's own under one name."""
    model = Stage(rank, size)
    model.own = nn.Linear(6, 6)
    return _trained(model, 7)


def stage_and_own_swapped(rank: int, size: int) -> Parts:
    return stage_and_own(size - 1 - rank, size)


def stage_accumulating(rank: int, size: int) -> Parts:
    """A stage of a pipeline, in the midst of an accumulation."""
    parts = pipeline(rank, size)
    parts["model"](torch.ones(4, 6)).square().mean().backward()
    return parts


def stage_accumulating_swapped(rank: int, size: int) -> Parts:
    return stage_accumulating(size - 1 - rank, size)


def generator(rank: int, size: int) -> Parts:
    noise = torch.Generator()
    noise.manual_seed(rank)
    return _trained(same(), 7, noise=noise, both={"a": torch.Generator(), "b": Steps(rank)})


def every_kind(rank: int, size: int) -> Parts:
    """One item of each kind that differs: buffers, scheduler, scaler, options, extra parts, positions."""
    parts = _trained(same(), 7)
    model, optimizer = parts["model"], parts["optimizer"]
    model[1].running_mean.fill_(rank)
    optimizer.param_groups[0]["lr"] = 0.1 + rank
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    scheduler.step(float(rank))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** (rank + 1))
    scaler.scale(torch.ones(1))
    return {
        **parts,
        "scheduler": scheduler,
        "scaler": scaler,
        "data": Steps([rank, 3]),
        "counter": Steps(rank * 10),
        "tensor": Steps(torch.full((3,), float(rank))),
        "shape": Steps({} if rank else [1, {"x": torch.ones(2)}]),
        **({"extra": Steps("mine")} if rank == 1 else {}),
    }


def accumulating(rank: int, size: int) -> Parts:
    """Gradients that DDP has not synchronised."""
    model = nn.parallel.DistributedDataParallel(same())
    parts = _trained(model, 7)
    with model.no_sync():
        torch.manual_seed(50 + rank)
        model(torch.randn(4, 6)).square().mean().backward()
    return parts


def sharded(rank: int, size: int) -> Parts:
    model = same()
    mesh = init_device_mesh("cpu", (size,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return _trained(model, 7)


def accumulating_sharded(rank: int, size: int) -> Parts:
    """Gradients that FSDP2 has not synchronised."""
    parts = sharded(rank, size)
    parts["model"].set_requires_gradient_sync(False)
    torch.manual_seed(50 + rank)
    parts["model"](torch.randn(4, 6)).square().mean().backward()
    return parts


def zero(rank: int, size: int) -> Parts:
    model = nn.parallel.DistributedDataParallel(same())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.AdamW, lr=1e-2)
    return _trained(model, 7, optimizer)


def fresh_zero(rank: int, size: int) -> Parts:
    parts = zero(rank, size)
    optimizer = ZeroRedundancyOptimizer(
        parts["model"].parameters(), optimizer_class=torch.optim.AdamW, lr=1e-2
    )
    return {**parts, "optimizer": optimizer}


def replicated(rank: int, size: int) -> Parts:
    model = nn.parallel.DistributedDataParallel(same())
    return _trained(model, 7)


def by_hand(rank: int, size: int) -> Parts:
    """FSDP2 within each of two groups, that hold the same model."""
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("again", "dp"))
    model = same()
    fully_shard(model, mesh=mesh["dp"])
    return _trained(model, 7)


def experts_sharded(rank: int, size: int) -> Parts:
    """FSDP2 within each of two groups, each of which has its own expert."""
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("ep", "dp"))
    model = Experts(mesh["ep"].get_local_rank())
    fully_shard(model, mesh=mesh["dp"])
    return _trained(model, 7)


def hsdp(rank: int, size: int) -> Parts:
    """FSDP2 within each of two groups, and replicas of each part in the other one."""
    mesh = init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("replicate", "shard"))
    model = same()
    fully_shard(model, mesh=mesh)
    return _trained(model, 7)


def hsdp_apart(rank: int, size: int) -> Parts:
    """The same, after the last rank has gone its own way."""
    parts = hsdp(rank, size)
    if rank == size - 1:
        with torch.no_grad():
            parts["model"][0].weight.to_local().add_(1)
    return parts


def reduced_among_some(rank: int, size: int) -> Parts:
    """Gradients that FSDP2 has reduced within each of two groups, and not between them."""
    parts = hsdp(rank, size)
    parts["model"].set_requires_all_reduce(False)
    torch.manual_seed(50 + rank)
    parts["model"](torch.randn(4, 6)).square().mean().backward()
    return parts


MAKE: dict[str, Callable[[int, int], Parts]] = {
    one.__name__: one
    for one in (
        *(experts, pipeline, generator, every_kind, accumulating, sharded, accumulating_sharded, zero),
        *(replicated, by_hand, experts_sharded, fresh_zero),
        *(hsdp, hsdp_apart, reduced_among_some),
        *(pipeline_swapped, pipeline_whole, stage_and_own, stage_and_own_swapped),
        *(stage_accumulating, stage_accumulating_swapped),
    )
}


def seen(parts: Parts) -> dict[str, Any]:
    """Every value of a training, tensors by digest: this rank's of what is not sharded."""
    found: dict[str, Any] = {}

    def look(name: str, value: Any) -> None:
        if isinstance(value, DTensor):
            found[name] = digest_of(value.to_local())
        elif isinstance(value, torch.Tensor):
            found[name] = digest_of(value)
        elif isinstance(value, dict):
            for key, item in value.items():
                look(f"{name}.{key}", item)
        elif isinstance(value, (list, tuple)):
            for number, item in enumerate(value):
                look(f"{name}.{number}", item)
        else:
            found[name] = repr(value)

    look("", ptsave.TrainingState(**parts).state_dict())
    return {name: value for name, value in found.items() if "rng_state" not in name}


def finish(parts: Parts) -> dict[str, Any]:
    """What comes of one more step, which synchronises the gradients."""
    model = parts["model"]
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(True)
    torch.manual_seed(99)
    model(torch.randn(4, 6)).square().mean().backward()
    parts["optimizer"].step()
    parts["optimizer"].zero_grad()
    return seen(parts)


def disturb(parts: Parts) -> None:
    """Change what a resume is to bring back."""
    model = parts["model"]
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    model.zero_grad()


def act(case: dict[str, Any]) -> dict[str, Any]:
    rank, size = dist.get_rank(), dist.get_world_size()
    result: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        folder = case["folder"].replace("RANK", str(rank))
        keeper = ptsave.Checkpoints(folder)
        try:
            parts = MAKE[case["make"]](rank, size)
            for name in case.get("without", {}).get(str(rank), ()):
                parts.pop(name)
            state = ptsave.TrainingState(**parts)
            if case["do"] == "save":
                result["seen"] = seen(parts)
                step = case.get("steps", {}).get(str(rank), 0)
                if case.get("resumes") == rank:
                    keeper.resume(state)
                else:
                    keeper.save(state, step=step)
                    keeper.wait()
            else:
                disturb(parts)
                result["from"] = keeper.resume(state)
                result["seen"] = seen(parts)
            if case.get("finish"):
                result["finished"] = finish(parts)
            keeper.close()
        except ptsave.PtsaveError as error:
            result["error"] = [type(error).__name__, str(error), error.hint]
            keeper.close()
    result["warnings"] = [str(one.message) for one in warned]
    return result


if __name__ == "__main__":
    as_rank(act)

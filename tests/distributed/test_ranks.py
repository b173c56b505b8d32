"""The keeper with torch.distributed: rank 0 writes, all resume alike, and all leave together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel

from ptsave import TrainingState
from ptsave.errors import UsageError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="NOT RUN, nothing was proved: there is no gloo"),
]

SCRIPT = """
import os, signal, sys, warnings
from pathlib import Path
import torch, torch.distributed as dist
import ptsave

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
model = torch.nn.Linear(2, 1)
state = ptsave.TrainingState(model=model)
warnings.simplefilter("ignore")

def train(num_steps, told_at):
    with ptsave.Checkpoints(folder / "run", keep_last=2) as keeper:
        keeper.on_signal(signal.SIGTERM)
        torch.nn.init.constant_(model.weight, -rank)
        step = keeper.resume(state)
        print("from", step, model.weight.flatten().tolist())
        for step in range(step, num_steps):
            if rank == 1 and step == told_at:
                os.kill(os.getpid(), signal.SIGTERM)
            torch.nn.init.constant_(model.weight, step)
            keeper.save(state, step=step)

train(4, None)
dist.barrier()
if rank == 0:
    os.truncate(folder / "run/step-000000003.pt", 500)
dist.barrier()
try:
    train(100, 7)
except SystemExit as left:
    print("left with", left.code, sorted(path.name for path in (folder / "run").iterdir())[-1])
dist.barrier()
if rank == 0:
    for path in (folder / "run").iterdir():
        os.truncate(path, 0)
dist.barrier()
try:
    train(100, None)
except ptsave.PtsaveError as error:
    print(type(error).__name__)
dist.destroy_process_group()
"""


def test_ranks_keep_and_resume_one_run(tmp_path: Path) -> None:
    words = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    processes = [subprocess.Popen([*words, str(rank)], stdout=subprocess.PIPE, text=True) for rank in (0, 1)]
    outputs = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    told = ["from 3 [2.0, 2.0]", "left with 143 step-000000007.pt"]
    assert outputs[0] == ["from 0 [0.0, 0.0]", *told, "CorruptError"]
    assert outputs[1] == ["from 0 [-1.0, -1.0]", *told, "CorruptError"]


@pytest.mark.filterwarnings("ignore")  # torch means to do away with it
def test_parameters_without_names_are_refused(tmp_path: Path) -> None:
    """The first FSDP flattens them: each rank would save a piece under a name that means nothing."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        model = FullyShardedDataParallel(torch.nn.Linear(2, 3), device_id=torch.device("cpu"))
        with pytest.raises(UsageError, match="flat pieces that have no names"):
            TrainingState(model=model)
    finally:
        dist.destroy_process_group()

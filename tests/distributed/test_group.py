"""The keeper with torch.distributed: rank 0 writes, all resume alike, and all leave together."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel

from ptsave import TrainingState
from ptsave.distributed.group import ALONE, training_group
from ptsave.errors import UsageError
from tests import warm

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
    processes = [
        warm.Started(warm.python, "-c", SCRIPT, tmp_path, rank, cwd=tmp_path, env=os.environ)
        for rank in (0, 1)
    ]
    ended = [process.wait() for process in processes]
    assert [one.returncode for one in ended] == [0, 0], ended
    outputs = [one.stdout.splitlines() for one in ended]
    told = ["from 3 [2.0, 2.0]", "left with 143 step-000000007.pt"]
    assert outputs[0] == ["from 0 [0.0, 0.0]", *told, "CorruptError"]
    assert outputs[1] == ["from 0 [-1.0, -1.0]", *told, "CorruptError"]


LATE = """
import os, signal, sys, time
import torch.distributed as dist
from datetime import timedelta
from ptsave.distributed.group import LostError, training_group

folder, rank, case = sys.argv[1], int(sys.argv[2]), sys.argv[3]
meeting = f"file://{folder}/meeting" if case != "tcp" else sys.argv[4]
dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=3)
group = training_group()
assert training_group(group) is group
assert group.gather(rank) == [0, 1, 2]
assert group.gather_to_first(rank) == ([0, 1, 2] if rank == 0 else [])
assert group.largest(rank) == 2
assert group.from_first(lambda: rank) == 0
if rank == 1:
    if case == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(30)
try:
    group.meet() if case == "killed" else group.gather(rank)
except LostError as error:
    print(error, error.hint, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("case", "hint"),
    [
        ("late", "PTSAVE_TIMEOUT"),
        ("tcp", "PTSAVE_TIMEOUT"),
        ("killed", "see how the others ended"),
    ],
)
def test_a_rank_that_does_not_come_is_named(tmp_path: Path, case: str, hint: str) -> None:
    """On every rank that came, within the deadline, by the store of the training's own group."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"tcp://localhost:{probe.getsockname()[1]}"
    env = {**os.environ, "PTSAVE_TIMEOUT": "3"}
    processes = [
        warm.Started(warm.python, "-c", LATE, tmp_path, rank, case, address, cwd=tmp_path, env=env)
        for rank in range(3)
    ]
    try:
        said = {rank: processes[rank].wait().stdout for rank in (0, 2)}
    finally:
        processes[1].kill()
        processes[1].wait()
    for rank in (0, 2):
        assert "rank 1 died, or hangs" in said[rank]
        assert hint in said[rank]


def test_a_process_alone_is_its_own_group() -> None:
    assert ALONE.gather("x") == ALONE.gather_to_first("x") == ["x"]
    assert ALONE.from_first(lambda: "y") == "y"
    assert ALONE.largest(3) == 3
    ALONE.meet()
    assert training_group() is ALONE


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

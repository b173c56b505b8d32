"""Ranks on the emulation of Windows: what they save together, keep and resume."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed.checkpoint as dcp
from torch.distributed import TCPStore

from ptsave.cli.main import run
from tests.windows.scene import TORCH, command, environment, linux_only, written

pytestmark = [linux_only, pytest.mark.slow]

LIBRARIES = (
    *TORCH,
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
)
CONFIG = """
[model]
class = "ptsave.examples.SimpleNet"
[model.args]
input_size = 10
hidden_size = 6
output_size = 2
[inputs.x]
shape = [4, 10]
dtype = "float32"
[parallel]
mesh = {dp = 2}
"""


def on_ranks(scene: Callable[[], None], folder: Path) -> list[str]:
    """What two ranks print, with the store and the variables that torchrun gives them; neither may fail."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "OMP_NUM_THREADS": "1",
    }
    words = command(written(scene, folder), LIBRARIES)
    ranks = [
        subprocess.Popen(
            words,
            cwd=folder,
            env=environment() | shared | {"RANK": rank, "LOCAL_RANK": rank},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="cp1252",
        )
        for rank in ("0", "1")
    ]
    try:
        outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(outputs)
    assert "Traceback" not in "".join(outputs)
    return outputs


def saved_together() -> None:
    from ptsave.cli.main import run

    assert run(["save", "model.toml", "sharded"]) == 0


def test_ranks_save_what_others_read(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(CONFIG)
    first, second = on_ranks(saved_together, tmp_path)
    assert "over 2 ranks (dp = 2)" in first
    assert "saved" not in second
    metadata = dcp.FileSystemReader(
        tmp_path / "sharded"
    ).read_metadata()  # as a machine without Windows reads it
    assert {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"} <= metadata.state_dict_metadata.keys()
    assert metadata.storage_meta is not None  # torch adds one, for what it reads now
    assert (metadata.storage_meta.checkpoint_id, metadata.storage_meta.save_id) == (None, None)
    assert not list(tmp_path.rglob("*tmp*"))
    assert run(["verify", str(tmp_path / "sharded"), "-c", str(tmp_path / "model.toml")]) == 0


def training() -> None:
    import os

    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.fsdp import fully_shard

    import ptsave

    dist.init_process_group("gloo")
    weights = torch.empty(0)
    for start in (0, 4):
        model = nn.Linear(16, 4)
        fully_shard(model)
        optimizer = torch.optim.AdamW(model.parameters())
        state = ptsave.TrainingState(model=model, optimizer=optimizer)
        with ptsave.Checkpoints("run", keep_last=2) as keeper:
            assert keeper.resume(state) == start
            assert not start or torch.equal(model.weight.full_tensor(), weights)
            for step in range(start, start + 4):
                model(torch.ones(2, 16)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
                keeper.save(state, step=step)
        weights = model.weight.full_tensor().detach().clone()
        dist.barrier()
        assert sorted(os.listdir("run")) == [f"step-{step:09d}.dcp" for step in (start + 2, start + 3)]
    dist.destroy_process_group()


def test_a_sharded_training_is_kept_and_resumed(tmp_path: Path) -> None:
    on_ranks(training, tmp_path)
    assert run(["verify", str(tmp_path / "run")]) == 0

"""The folder of a training run in a bucket: listed, and verified."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ptsave.training.runs.checkpoints import Checkpoints
from ptsave.training.state import TrainingState
from tests.servers.stores import S3
from tests.support import Command


def test_a_run_in_a_bucket_is_listed_and_verified(one_s3: S3, tmp_path: Path, ptsave_here: Command) -> None:
    state = TrainingState(model=torch.nn.Linear(3, 2))
    with Checkpoints(tmp_path / "run") as keeper:
        for step in (1, 2):
            keeper.save(state, step=step, metrics={"loss": 1.0 / step})
    for path in (tmp_path / "run").iterdir():
        one_s3.put(f"runs/exp1/{path.name}", path.read_bytes())
    address = f"{one_s3.address}/runs/exp1"
    shown = json.loads(ptsave_here("inspect", "--json", address, env=one_s3.env).stdout)
    assert (shown["format"], len(shown["checkpoints"])) == ("run", 2)
    assert shown["latest"] == f"{address}/step-000000002.pt"
    local = json.loads(ptsave_here("inspect", "--json", tmp_path / "run").stdout)
    assert [one["num_bytes"] for one in shown["checkpoints"]] == [
        one["num_bytes"] for one in local["checkpoints"]
    ]
    assert "yes" in ptsave_here("verify", address, env=one_s3.env).stdout
    one_s3.put("runs/exp1/step-000000003.pt", b"PK\3\4 half a file")
    assert "no" in ptsave_here("verify", address, env=one_s3.env, code=1).stdout

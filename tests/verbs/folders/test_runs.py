"""inspect and verify on the folder of a training run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import ptsave as package
from ptsave.formats.run_folder import file_name, is_run, list_run, read_run_file
from ptsave.verbs.folders import runs
from tests.support import Command


@pytest.fixture
def ptsave_here(ptsave_here: Command) -> Command:
    return ptsave_here


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three checkpoints, and files of others beside them."""
    folder = tmp_path / "exp1"
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = package.TrainingState(model=model, optimizer=optimizer)
    with package.Checkpoints(folder) as keeper:
        for step in range(3):
            keeper.save(state, step=step, epoch=step // 2, metrics={"loss": 1 / (step + 1)})
    (folder / "events.log").write_text("mine")
    return folder


def flip(path: Path) -> None:
    """One bit of a weight."""
    data = bytearray(path.read_bytes())
    weight = torch.load(path, weights_only=True)["model_state_dict"]["weight"]
    data[data.index(weight.numpy().tobytes()) + 1] ^= 8
    path.write_bytes(data)


def test_inspect_lists_the_checkpoints(ptsave_here: Command, run: Path) -> None:
    os.truncate(run / file_name(2), 900)
    shown = ptsave_here("inspect", run).stdout
    assert "run, 3 checkpoints" in shown
    assert "latest step 1" in shown
    header, *rows = (line.split() for line in shown.splitlines()[2:6])
    assert header == ["name", "step", "epoch", "loss", "size", "health"]
    assert rows[1][:4] == ["step-000000001.pt", "1", "0", "0.5"]
    assert rows[1][-1] == "opens"
    assert "truncated" in " ".join(rows[2])
    found = json.loads(ptsave_here("inspect", run, "--json").stdout)
    assert (found["format"], found["num_checkpoints"]) == ("run", 3)
    assert found["latest"] == str(run / file_name(1))
    assert [one["step"] for one in found["checkpoints"]] == [0, 1, 2]
    assert found["checkpoints"][0]["metrics"] == {"loss": 1.0}
    both = json.loads(ptsave_here("inspect", run, run / file_name(0), "--json").stdout)
    assert [one["format"] for one in both["files"]] == ["run", "pt"]


def test_verify_checks_each_with_one_verdict(ptsave_here: Command, run: Path) -> None:
    assert "passed bytes, finite, resume, safe" in ptsave_here("verify", run).stdout
    flip(run / file_name(2))
    found = json.loads(ptsave_here("verify", run, "--json", code=1).stdout)
    assert found["verdict"] == "no"
    assert found["cause"].endswith("a training would go on from step-000000001.pt")
    failed = [finding for finding in found["findings"] if finding["level"] == "fail"]
    assert [finding["where"] for finding in failed] == [f"{file_name(2)}: model_state_dict.weight"]
    for step in (0, 1):
        os.truncate(run / file_name(step), 0)
    found = json.loads(ptsave_here("verify", run, "--json", code=1).stdout)
    assert found["cause"] == "all 3 checkpoints are damaged: a training cannot go on from any"


def test_what_is_about_one_checkpoint_is_refused(ptsave_here: Command, run: Path) -> None:
    assert "about one checkpoint" in ptsave_here("inspect", run, "--stats", code=2).stderr
    assert "about one checkpoint" in ptsave_here("verify", run, "--against", run, code=2).stderr
    assert "needs a model" in ptsave_here("verify", run, "--checks", "bytes,keys", code=2).stderr


def test_a_report_of_a_run(ptsave_here: Command, run: Path, tmp_path: Path) -> None:
    ptsave_here("verify", run, "--report", tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == "yes"


def test_a_folder_that_is_a_checkpoint_stays_one(ptsave_here: Command, run: Path) -> None:
    ptsave_here("convert", "--select", "model", run / file_name(0), run / "dcp", "--format", "dcp")
    for path in list((run / "dcp").iterdir()):
        path.rename(run / path.name)
    assert is_run(run)
    assert not runs.is_run(run)
    assert json.loads(ptsave_here("inspect", run, "--json").stdout)["format"] == "dcp"


def test_a_folder_without_checkpoints_is_no_run(tmp_path: Path) -> None:
    for name in ("step-1.pt", "step-0000000001.pt", "step-000000001-1.pt", "step-000000001.pt.bak"):
        (tmp_path / name).touch()
    assert not runs.is_run(tmp_path)
    assert not runs.is_run(tmp_path / "missing")
    assert list_run(tmp_path) == []


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"step": 4}, "step 4"),
        ({"step": True}, "says no step"),
        ({"epoch": 1}, "says no step"),
        (torch.ones(2), "says no step"),
        ({"step": 3, "epoch": "x", "metrics": [1]}, ""),
        ({"step": 3, "epoch": 10**600, "metrics": {"loss": 10**600}}, ""),
        ({"step": 3, "metrics": {"loss": 1, "note": "x", "nested": {}}}, ""),
    ],
)
def test_a_file_with_the_name_of_a_checkpoint(tmp_path: Path, tree: object, says: str) -> None:
    path = tmp_path / file_name(3)
    torch.save(tree, path)
    file = read_run_file(path)
    assert bool(file.problem) == bool(says)
    assert says in file.problem
    assert not file.is_ours
    assert set(file.metrics) <= {"loss"}


def test_names_sort_as_their_steps(tmp_path: Path) -> None:
    steps = [0, 9, 10, 999_999_999, 1_000_000_000, 10**17]
    for step in steps:
        (tmp_path / file_name(step)).touch()
    assert [file.step for file in list_run(tmp_path)] == steps


def test_a_hostile_file_is_shown(ptsave_here: Command, tmp_path: Path) -> None:
    metrics: dict[str, object] = {f"m{i}\x1b[31m": i for i in range(20)}
    torch.save({"step": 3, "epoch": 10**600, "metrics": metrics | {"x": 10**600}}, tmp_path / file_name(3))
    shown = ptsave_here("inspect", tmp_path).stdout
    assert "… 12 metrics not shown" in shown
    assert "\x1b" not in shown
    assert (
        len(json.loads(ptsave_here("inspect", tmp_path, "--json").stdout)["checkpoints"][0]["metrics"]) == 20
    )

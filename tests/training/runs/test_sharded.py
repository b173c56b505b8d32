"""A training sharded over ranks: kept by all of them, resumed by any number, whatever happens to one."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ptsave
from ptsave.formats import open_checkpoint
from ptsave.verbs.audit import audit
from tests.distributed.launch import TORCHRUN, environment, launched, torchrun
from tests.distributed.trainer import build, train

pytestmark = pytest.mark.slow

Case = dict[str, Any]
MODULE = "tests.distributed.trainer"
DP2, DP4 = {"dp": 2}, {"dp": 4}


def run(num_ranks: int, folder: Path, *cases: Case) -> list[list[Any]]:
    """What each rank says of each training, by training."""
    (folder / "cases.json").write_text(json.dumps(cases))
    done = torchrun(num_ranks, "cases.json", cwd=folder, module=MODULE)
    assert done.returncode == 0, done.stderr
    return [list(results) for results in zip(*json.loads((folder / "results.json").read_text()), strict=True)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run` of 4 ranks that came to step 6, `split` with tensors split as well, `left` that came to 14."""
    folder = tmp_path_factory.mktemp("saved")
    both = {"dp": 2, "tp": 2}
    results = run(
        4,
        folder,
        {"folder": "run", "mesh": DP4, "total": 7},
        {"folder": "split", "mesh": both, "total": 7, "looks": True},
        {"folder": "left", "mesh": DP4, "total": 15},
        {"folder": "run", "mesh": DP4, "total": 7, "again": True},
        {"folder": "split", "mesh": {"ddp": 2, "dp": 2}, "total": 7},
        {"folder": "copies", "mesh": {"ddp": 2, "dp": 2}, "total": 7},
    )
    (folder / "said.json").write_text(json.dumps(results))
    return folder


def said(saved: Path) -> list[list[Any]]:
    found: list[list[Any]] = json.loads((saved / "said.json").read_text())
    return found


def test_what_was_saved_is_restored_on_every_rank(saved: Path) -> None:
    first, _, _, again, *_ = said(saved)
    assert [one["from"] for one in first] == [0] * 4
    assert [one["from"] for one in again] == [7] * 4
    for before, after in zip(first, again, strict=True):
        assert {n: d for n, d in after["first"].items() if "running" not in n or after is again[0]} == {
            n: d for n, d in before["last"].items() if "running" not in n or before is first[0]
        }
        assert after["warnings"] == []
    assert again[0]["names"] == [f"step-00000000{n}.dcp" for n in (4, 5, 6)]


def test_every_byte_has_a_checksum(saved: Path) -> None:
    with open_checkpoint(saved / "split" / "step-000000006.dcp") as checkpoint:
        assert {finding.level for finding in audit(checkpoint)} == {"ok"}


def test_it_ends_as_one_that_was_left_alone(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "run", tmp_path / "run")
    ((alone),) = [said(saved)[2]]
    (resumed,) = run(4, tmp_path, {"folder": "run", "mesh": DP4, "total": 15})
    assert [one["from"] for one in resumed] == [7] * 4
    assert resumed[0]["last"] == alone[0]["last"]


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_another_number_of_ranks_goes_on(saved: Path, tmp_path: Path, num_ranks: int) -> None:
    folders = ("run", "split", "copies")
    for name in folders:
        shutil.copytree(saved / name, tmp_path / name)
    mesh = {"dp": num_ranks}
    first, split, *_, copies = said(saved)
    found = run(num_ranks, tmp_path, *({"folder": name, "mesh": mesh, "total": 8} for name in folders))
    for ranks, before in zip(found, (first, split, copies), strict=True):
        for one in ranks:
            assert one["from"] == 7
            assert one["first"] == before[0]["last"]
            assert one["position"] == [1, 3 * 12 // num_ranks]
        assert "saved by 4 ranks" in ranks[0]["warnings"][0]
        assert not any(one["warnings"] for one in ranks[1:])


def test_replicas_end_as_ones_that_were_left_alone(tmp_path: Path) -> None:
    """Each rank has its own dropout, so each must have its own random numbers back."""
    ddp = {"mesh": {"ddp": 2}}
    _, (alone, _) = run(2, tmp_path, {"folder": "a", "total": 4, **ddp}, {"folder": "b", "total": 8, **ddp})
    ((resumed, _),) = run(2, tmp_path, {"folder": "a", "total": 8, **ddp})
    assert resumed["from"] == 4
    assert resumed["last"] == alone["last"]
    assert resumed["warnings"] == []
    assert resumed["names"] == [f"step-00000000{n}.pt" for n in (5, 6, 7)]


def test_every_kind_of_optimizer_goes_on(tmp_path: Path) -> None:
    names = ("stateless", "fused", "grouped")
    cases = [{"folder": name, "mesh": DP2, "optimizer": name, "total": 3} for name in names]
    alone = [{**case, "folder": f"{case['folder']}-alone", "total": 5} for case in cases]
    expected = run(2, tmp_path, *cases, *alone)[len(cases) :]
    resumed = run(2, tmp_path, *({**case, "total": 5} for case in cases))
    assert [ranks[0]["from"] for ranks in resumed] == [3, 3, 3]
    assert [ranks[0]["last"] for ranks in resumed] == [ranks[0]["last"] for ranks in expected]


def test_one_process_goes_on_and_ranks_after_it(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "run", tmp_path / "run")
    alone = train({"folder": str(tmp_path / "run"), "total": 9})
    assert alone["from"] == 7
    assert alone["first"] == said(saved)[0][0]["last"]
    assert alone["names"] == ["step-000000006.dcp", "step-000000007.pt", "step-000000008.pt"]
    (ranks,) = run(2, tmp_path, {"folder": "run", "mesh": DP2, "total": 10})
    assert [one["from"] for one in ranks] == [9, 9]
    assert [one["first"] for one in ranks] == [alone["last"]] * 2


def test_plain_torch_loads_what_was_saved(saved: Path, tmp_path: Path) -> None:
    path = saved / "left" / "step-000000014.dcp"
    done = torchrun(3, str(path), cwd=tmp_path, module="tests.distributed.plain_training")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "digests.json").read_text()) == said(saved)[2][0]["last"]
    for name in ("nested.dcp", "flat.dcp"):  # and what it saves, in both of its forms, is a training
        state = ptsave.read_training(tmp_path / name)
        model, optimizer = fresh()
        assert ptsave.TrainingState(model=model, optimizer=optimizer).load_state_dict(state) == [
            "optimizer: lr = 0.0001 of the checkpoint wins over 0.01 given here",
            "rng_state: random numbers go on from elsewhere",
        ]
        kept = ptsave.read_training(path)
        assert all(torch.equal(kept["model_state_dict"][n], v) for n, v in model.state_dict().items())
        moments = kept["optimizer_state_dict"]["state"]
        for name, parameter in model.named_parameters():
            for key, value in optimizer.state[parameter].items():
                assert torch.equal(moments[name][key], value)


def fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = build(None)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def test_a_damaged_checkpoint_is_passed_over_by_all(saved: Path, tmp_path: Path) -> None:
    for name in ("run", "gone"):
        shutil.copytree(saved / "run", tmp_path / name)
    flip(tmp_path / "run" / "step-000000006.dcp")
    (tmp_path / "run" / "step-000000005.dcp" / "__1_0.distcp").unlink()
    for path in (tmp_path / "gone").iterdir():
        flip(path)
    (ranks,) = run(2, tmp_path, {"folder": "run", "mesh": DP2, "total": 5})
    assert [one["from"] for one in ranks] == [5, 5]
    assert [w.partition(":")[0].rpartition("/")[2] for w in ranks[0]["warnings"][:2]] == [
        "step-000000006.dcp",
        "step-000000005.dcp",
    ]
    (tmp_path / "cases.json").write_text(json.dumps([{"folder": "gone", "mesh": DP2, "total": 5}]))
    done = torchrun(2, "cases.json", cwd=tmp_path, module=MODULE)
    assert done.returncode
    assert "all 3 checkpoints of the run are damaged" in done.stderr


def flip(path: Path) -> None:
    """Change a byte of a weight, in the last rank's part of it."""
    with open_checkpoint(path) as checkpoint:
        entry = checkpoint.tensors["model_state_dict.up.weight"]
        row = bytearray(20)
        entry.storage.read_into(entry.num_bytes - len(row), memoryview(row))
    (file,) = (file for file in path.glob("__*.distcp") if file.read_bytes().count(row) == 1)
    data = bytearray(file.read_bytes())
    data[data.index(row)] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("breaks", "why"),
    [
        ([["full", 1, 8], ["well", 1, 10]], "rank 1 cannot write: "),
        ([["lies", 1, 8]], "the disk does not hold what was written"),
    ],
    ids=["full", "lies"],
)
def test_a_disk_that_fails_one_rank_costs_one_checkpoint(
    saved: Path, tmp_path: Path, breaks: list[Any], why: str
) -> None:
    shutil.copytree(saved / "run", tmp_path / "run")
    (ranks,) = run(2, tmp_path, {"folder": "run", "mesh": DP2, "total": 12, "breaks": breaks, "keep": 9})
    for one in ranks:  # what a save has failed with is told by the next one
        ((step, kind, what),) = one["errors"]
        assert (step, kind) in ((8, "WriteError"), (9, "WriteError"))
        assert what.startswith(why)
    assert ranks[0]["names"][-3:] == [f"step-0000000{n}.dcp" for n in ("07", "10", "11")]
    assert not any("ptsave-tmp" in name for name in ranks[0]["names"])


def test_a_training_whose_ranks_are_killed_ends_all_the_same(saved: Path, tmp_path: Path) -> None:
    """A random rank is killed at a random moment, again and again; each life goes on from a whole folder."""
    chance = random.Random(7)
    (tmp_path / "cases.json").write_text(json.dumps([{"folder": "run", "mesh": DP2, "total": 40}]))
    num_killed = 0
    for _ in range(30):
        launch = launched(2, "cases.json", cwd=tmp_path, module=MODULE)
        if num_killed < 5:
            wait_for_a_save(launch.process.is_alive, tmp_path / "run")
            time.sleep(chance.random() * 0.5)
            if victims := children(launch.pid):
                victim = chance.choice(victims)
                num_killed += kill(victim)
        ended = launch.wait(timeout=120)
        if ended.returncode == 0:
            break
    assert num_killed
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / "alone"
    folder.mkdir()
    (alone,) = run(2, folder, {"folder": "run", "mesh": DP2, "total": 40})
    last = json.loads((tmp_path / "results.json").read_text())[0][0]["last"]
    assert last == alone[0]["last"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == alone[0]["names"]


def test_the_training_of_the_docs_goes_on_where_it_was_killed(root: Path, tmp_path: Path) -> None:
    """By the real torchrun: with two ranks until one is killed, then with one. It exits as torch has it."""
    page = (root / "docs" / "torchrun.md").read_text(encoding="utf-8")
    text = page.partition("\n## Training over many ranks\n")[2]
    (tmp_path / "train.py").write_text(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0])
    runs = tmp_path / "runs" / "exp2"
    argv = [*TORCHRUN, "--standalone", "--nproc-per-node"]
    with subprocess.Popen(
        [*argv, "2", "train.py"], cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL
    ) as launch:
        wait_for_a_save(lambda: launch.poll() is None, runs)
        for child in children(launch.pid)[-1:]:
            kill(child)
        assert launch.wait(timeout=120)
    assert not (runs / "step-000000039.dcp").exists()
    done = subprocess.run(
        [*argv, "1", "train.py"], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=240
    )
    assert "saved by 2 ranks and resumed by 1" in done.stderr
    assert sorted(path.name for path in runs.iterdir()) == [f"step-0000000{n}.dcp" for n in (37, 38, 39)]


def complete(folder: Path) -> set[str]:
    """The names of what is complete."""
    return {path.name for path in folder.glob("step-*")}


def wait_for_a_save(is_running: Callable[[], bool], folder: Path) -> None:
    before = complete(folder)
    end = time.monotonic() + 100
    while is_running() and complete(folder) == before and time.monotonic() < end:
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True

"""One training a folder: the second is refused while the first lives, and by nothing that it leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

import ptsave
from ptsave.errors import RefusedError
from ptsave.storage import system
from ptsave.training.runs import lock
from ptsave.training.runs.lock import NAME, holder_of
from tests import warm
from tests.support import Command

TRAINING = """
import sys, time, torch, ptsave
from ptsave.storage import system
system.HAS_FLOCK = sys.argv[2] == "flock"
model = torch.nn.Linear(2, 2)
state = ptsave.TrainingState(model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1))
if sys.argv[3] == "workers":
    data = torch.utils.data.DataLoader(torch.arange(8.0), num_workers=2, persistent_workers=True)
keeper = ptsave.Checkpoints(sys.argv[1])
first = keeper.resume(state)
keeper.save(state, step=first)
keeper.wait()
if sys.argv[3] == "workers":
    batches = iter(data)
    next(batches)
    print(*[worker.pid for worker in batches._workers], flush=True)
print("saved", first, flush=True)
time.sleep(1000)
"""


class Dummy:
    """What is kept."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"w": torch.ones(1)}

    def load_state_dict(self, state: object) -> list[str]:
        return []


@pytest.fixture(params=["flock", "lease"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the system's locks, and on a file system that has none."""
    monkeypatch.setattr(system, "HAS_FLOCK", request.param == "flock")
    return str(request.param)


def start(folder: Path, kind: str, workers: str = "") -> warm.Started:
    return warm.Started(warm.python, "-c", TRAINING, folder, kind, workers, cwd=folder, env=os.environ)


def end(process: warm.Started) -> list[str]:
    """Kill it; returns the lines that it printed."""
    process.kill()
    return process.wait().stdout.splitlines()


@pytest.mark.slow
def test_a_second_training_is_refused_while_the_first_lives(
    tmp_path: Path, kind: str, ptsave_here: Command
) -> None:
    process = start(tmp_path, kind)
    try:
        process.says("saved")
        keeper = _keeper(tmp_path)
        with pytest.warns(UserWarning, match=f"another training saves in .*process {process.pid} on"):
            assert keeper.resume(Dummy()) == 1
        with pytest.raises(RefusedError, match="another training writes its checkpoints here") as caught:
            keeper.save(Dummy(), step=1)
        assert f"process {process.pid} on {os.uname().nodename}, since 20" in caught.value.what
        assert sorted(os.listdir(tmp_path)) == [NAME, "step-000000000.pt"]
        ptsave_here("inspect", tmp_path)
        ptsave_here("verify", tmp_path)
    finally:
        end(process)
    assert holder_of(tmp_path) is None
    with _keeper(tmp_path) as keeper:  # it was killed, and left its file behind
        assert keeper.resume(Dummy()) == 1
        keeper.save(Dummy(), step=1)
        keeper.wait()
        second = start(tmp_path, kind).wait()
        assert second.returncode != 0
        assert f"another training saves in {tmp_path}: process {os.getpid()} on" in second.stderr
    assert sorted(os.listdir(tmp_path)) == ["step-000000000.pt", "step-000000001.pt"]


@pytest.mark.slow
def test_workers_that_outlive_a_training_hold_nothing(tmp_path: Path) -> None:
    process = start(tmp_path, "flock", "workers")
    workers = [int(pid) for pid in process.says("saved").splitlines()[0].split()]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)  # they notice nothing of their parent's end
    end(process)
    try:
        with _keeper(tmp_path) as keeper:
            keeper.save(Dummy(), step=5)
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
    assert len(workers) == 2


def test_keepers_of_one_process_share_the_folder(tmp_path: Path, kind: str) -> None:
    with _keeper(tmp_path) as one:
        one.save(Dummy(), step=1)
        one.wait()
        with _keeper(tmp_path) as two:
            two.save(Dummy(), step=2)
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
        one.save(Dummy(), step=3)
    assert NAME not in os.listdir(tmp_path)
    status = os.stat(tmp_path)
    assert (status.st_dev, status.st_ino) not in lock._mine


def test_a_keeper_that_nobody_closes_lets_go_when_it_is_gone(tmp_path: Path, kind: str) -> None:
    keeper = _keeper(tmp_path)
    keeper.save(Dummy(), step=1)
    keeper.wait()
    assert NAME in os.listdir(tmp_path)
    del keeper
    assert NAME not in os.listdir(tmp_path)


def test_a_folder_that_is_removed_is_taken_anew(tmp_path: Path, kind: str) -> None:
    with _keeper(tmp_path / "run") as keeper:
        keeper.save(Dummy(), step=1)
        keeper.wait()
        for path in (tmp_path / "run").iterdir():
            path.unlink()
        (tmp_path / "run").rmdir()
        keeper.save(Dummy(), step=2)
        keeper.wait()
        assert sorted(os.listdir(tmp_path / "run")) == [NAME, "step-000000002.pt"]


def test_a_lease_that_another_one_took_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "HAS_FLOCK", False)
    path = tmp_path / NAME
    other = {"host": "elsewhere", "pid": 1, "since": "then", "token": "x"}
    path.write_text(json.dumps(other))
    with _keeper(tmp_path) as keeper:
        with pytest.raises(RefusedError, match="process 1 on elsewhere, since then"):
            keeper.save(Dummy(), step=1)
        long_ago = time.time() - 10 * lock.LEASE_SECONDS
        os.utime(path, (long_ago, long_ago))
        keeper.save(Dummy(), step=1)
        keeper.wait()
        path.write_text(json.dumps(other))
        keeper.save(Dummy(), step=2)
        with pytest.raises(RefusedError, match="process 1 on elsewhere"):
            keeper.wait()
    assert json.loads(path.read_text()) == other


def test_a_fork_holds_nothing_and_is_refused(tmp_path: Path) -> None:
    def save(folder: Path, answers: multiprocessing.queues.SimpleQueue[str]) -> None:
        try:
            _keeper(folder).save(Dummy(), step=9)
        except RefusedError as error:
            answers.put(error.what)
        else:
            answers.put("saved")

    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    with _keeper(tmp_path) as keeper:
        keeper.save(Dummy(), step=1)
        keeper.wait()
        child = context.Process(target=save, args=(tmp_path, answers))
        child.start()
        child.join()
        assert f"process {os.getpid()} on" in answers.get()
        keeper.save(Dummy(), step=2)
    assert NAME not in os.listdir(tmp_path)


def test_a_file_that_says_nothing_of_its_holder_blocks_nothing(tmp_path: Path) -> None:
    for text in ("", "[]", '{"host": 1}', "{" * 3000):
        (tmp_path / NAME).write_text(text)
        with _keeper(tmp_path) as keeper:
            keeper.save(Dummy(), step=1)


def _keeper(folder: Path) -> ptsave.Checkpoints:
    return ptsave.Checkpoints(folder)

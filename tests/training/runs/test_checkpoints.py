"""The keeper of a run's folder: what it writes, resumes from, keeps and refuses."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ptsave
from ptsave.errors import CorruptError, LossyError, PtsaveError, RefusedError, UsageError, WriteError
from ptsave.formats.run_folder import read_run_file
from ptsave.storage.temporary import SUFFIX
from ptsave.training.apart.restore import state_of
from ptsave.training.runs import files
from ptsave.training.runs.checkpoints import Checkpoints
from ptsave.training.runs.retention import Retention


class Weights:
    """A state of one tensor."""

    def __init__(self, *shape: int) -> None:
        self.weight = torch.zeros(*(shape or (8,)))

    def state_dict(self) -> dict[str, Any]:
        return {"model_state_dict": {"weight": self.weight}}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        self.weight.copy_(state["model_state_dict"]["weight"])
        return []


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def save_steps(folder: Path, *steps: int, **options: Any) -> None:
    """A run whose weights are the number of the step."""
    state = Weights()
    with Checkpoints(folder, **options) as keeper:
        for step in steps:
            state.weight.fill_(step)
            keeper.save(state, step=step)


def damage(path: Path, how: str) -> None:
    """Do to a file what disks, copies and people do."""
    if how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "empty":
        os.truncate(path, 0)
    elif how == "flipped":
        data = bytearray(path.read_bytes())
        place = data.index(
            torch.load(path, weights_only=True)["model_state_dict"]["weight"].numpy().tobytes()
        )
        data[place + 2] ^= 1
        path.write_bytes(data)
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "of another step":
        shutil.copyfile(path.with_name("step-000000000.pt"), path)
    elif how == "a dead link":
        path.unlink()
        path.symlink_to("nowhere")


DAMAGES = ["truncated", "empty", "flipped", "a folder", "of another step", "a dead link"]


def test_a_file_is_the_tutorials_dictionary_for_plain_torch(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    state = ptsave.TrainingState(model=model, optimizer=optimizer)
    with ptsave.Checkpoints(tmp_path / "runs" / "a") as keeper:
        assert keeper.resume(state) == 0
        keeper.save(state, step=7, epoch=2, metrics={"loss": torch.tensor(0.5), "n": 3})
        path = keeper.latest()
    assert path == tmp_path / "runs" / "a" / "step-000000007.pt"
    loaded = torch.load(path, weights_only=True)
    assert (loaded["step"], loaded["epoch"], loaded["metrics"]) == (7, 2, {"loss": 0.5, "n": 3.0})
    nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2)).load_state_dict(loaded["model_state_dict"])
    torch.optim.Adam(model.parameters()).load_state_dict(loaded["optimizer_state_dict"])
    assert names(path.parent) == ["step-000000007.pt"]


def test_resume_gives_the_state_back_and_the_next_step(tmp_path: Path) -> None:
    save_steps(tmp_path, 0, 1, 2)
    state = Weights()
    assert Checkpoints(tmp_path).resume(state) == 3
    assert state.weight.tolist() == [2] * 8


def test_what_is_saved_is_what_was_there_when_save_returned(tmp_path: Path) -> None:
    state = Weights(512, 1024)
    with Checkpoints(tmp_path) as keeper:
        for step in range(4):
            state.weight.fill_(step)
            keeper.save(state, step=step)
            state.weight.fill_(-1)
    for step in range(4):
        loaded = torch.load(tmp_path / f"step-{step:09d}.pt", weights_only=True)
        assert loaded["model_state_dict"]["weight"].unique().tolist() == [step]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_what_is_saved_of_a_cuda_device_is_what_was_there(tmp_path: Path) -> None:
    state = Weights()
    state.weight = torch.zeros(1024, 1024, device="cuda")
    with Checkpoints(tmp_path) as keeper:
        for step in range(4):
            state.weight.fill_(step)
            keeper.save(state, step=step)
            state.weight.fill_(-1)
        for step in range(4):
            file = tmp_path / f"step-{step:09d}.pt"
            keeper.wait()
            loaded = torch.load(file, weights_only=True, map_location="cpu")
            assert loaded["model_state_dict"]["weight"].unique().tolist() == [step]
        state.weight.zero_()
        assert keeper.resume(state) == 4
    assert state.weight.unique().tolist() == [3]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, how: str) -> None:
    save_steps(tmp_path, 0, 1, 2)
    damage(tmp_path / "step-000000002.pt", how)
    state = Weights()
    with Checkpoints(tmp_path, keep_last=2) as keeper:
        with pytest.warns(UserWarning, match=r"passed over .*step-000000002\.pt"):
            assert keeper.resume(state) == 2
        assert state.weight.tolist() == [1] * 8
        assert keeper.latest() == tmp_path / "step-000000001.pt"
        keeper.save(state, step=2)
        keeper.wait()
        assert Checkpoints(tmp_path).resume(Weights()) == 3
        keeper.save(state, step=3)
    with Checkpoints(tmp_path) as keeper:
        assert keeper.resume(Weights()) == 4
    if how == "a folder":
        assert (tmp_path / "step-000000002.pt").is_dir()


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped", "a folder"])
def test_a_damaged_run_is_not_begun_anew(tmp_path: Path, how: str) -> None:
    save_steps(tmp_path, 0, 1)
    for path in tmp_path.iterdir():
        damage(path, how)
    state = Weights()
    with (
        pytest.warns(UserWarning, match="passed over"),
        pytest.raises(CorruptError, match="all 2 checkpoints of the run are damaged"),
    ):
        Checkpoints(tmp_path).resume(state)
    assert state.weight.tolist() == [0] * 8


def test_what_does_not_fit_is_no_damage(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as keeper:
        keeper.save(ptsave.TrainingState(model=nn.Linear(2, 2)), step=0)
    with pytest.raises(LossyError, match="weight"):
        Checkpoints(tmp_path).resume(ptsave.TrainingState(model=nn.Linear(3, 2)))


def test_what_could_not_be_restored_is_told(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    with Checkpoints(tmp_path) as keeper:
        keeper.save(ptsave.TrainingState(model=model), step=0)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    state = ptsave.TrainingState(model=model, optimizer=optimizer)
    with pytest.warns(UserWarning, match="resumed, but optimizer"):
        assert Checkpoints(tmp_path).resume(state) == 1


def test_a_folder_without_checkpoints_begins_at_0(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step-1.pt").write_text("mine")
    (tmp_path / f".step-000000001.pt.1-00000000{SUFFIX}").write_bytes(b"half")
    keeper = Checkpoints(tmp_path)
    assert (keeper.resume(Weights()), keeper.latest()) == (0, None)
    assert Checkpoints(tmp_path / "missing").resume(Weights()) == 0
    assert not (tmp_path / "missing").exists()


def test_litter_of_killed_writers_goes_with_the_next_save(tmp_path: Path) -> None:
    litter = tmp_path / f".step-000000001.pt.1-00000000{SUFFIX}"
    others = tmp_path / f".model.pt.1-00000000{SUFFIX}"
    for path in (litter, others):
        path.write_bytes(b"half")
    save_steps(tmp_path, 5)
    assert names(tmp_path) == [others.name, "step-000000005.pt"]


# --- retention


def test_the_last_the_best_and_every_so_many_stay(tmp_path: Path) -> None:
    losses = [3.0, 1.0, 2.0, math.nan, 1.0, 5.0, -math.inf, 4.0, 9.0, 8.0]
    state = Weights()
    keeper = Checkpoints(tmp_path, keep_last=2, keep_best=("loss", "min", 2), keep_every=5)
    with keeper:
        for step, loss in enumerate(losses):
            keeper.save(state, step=step, metrics={"loss": loss})
        assert keeper.best() == tmp_path / "step-000000006.pt"
    assert names(tmp_path) == [f"step-00000000{n}.pt" for n in (0, 4, 5, 6, 8, 9)]
    assert Checkpoints(tmp_path, keep_best=("loss", "max")).best() == tmp_path / "step-000000008.pt"
    assert Checkpoints(tmp_path, keep_best=("acc", "max")).best() is None
    with pytest.raises(UsageError):
        Checkpoints(tmp_path).best()


def test_files_of_others_and_damaged_ones_stay(tmp_path: Path) -> None:
    save_steps(tmp_path, 0, 1)
    theirs = tmp_path / "step-000000002.pt"
    torch.save({"step": 2, "model_state_dict": {"weight": torch.ones(8)}}, theirs)
    os.truncate(tmp_path / "step-000000000.pt", 10)
    state = Weights()
    with Checkpoints(tmp_path, keep_last=1) as keeper:
        assert keeper.resume(state) == 3
        for step in range(3, 6):
            keeper.save(state, step=step)
    assert names(tmp_path) == [f"step-00000000{n}.pt" for n in (0, 2, 5)]


def test_damaged_ones_do_not_count_as_kept(tmp_path: Path) -> None:
    save_steps(tmp_path, 0, 1, 2, 3)
    for step in (2, 3):
        damage(tmp_path / f"step-00000000{step}.pt", "flipped")
    with Checkpoints(tmp_path, keep_last=2) as keeper:
        with pytest.warns(UserWarning, match="passed over"):
            keeper.resume(Weights())
        keeper.save(Weights(), step=2)
    assert names(tmp_path) == [f"step-00000000{n}.pt" for n in ("1", "2-2", "2", "3")]


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped", "newer", "foreign"])
def test_a_save_of_the_same_step_leaves_what_is_not_whole_and_ours(tmp_path: Path, how: str) -> None:
    save_steps(tmp_path, 0, 1)
    path = tmp_path / "step-000000001.pt"
    if how == "foreign":
        torch.save({"step": 1, "model_state_dict": {"weight": torch.ones(8)}}, path)
    elif how == "newer":  # a record that only a later ptsave understands
        data = path.read_bytes()
        old = b'"schema_version": 1' if b'"schema_version": 1' in data else b'"schema_version":1'
        assert data.count(old) == 1
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "new", "w") as target:
            for entry in source.infolist():
                target.writestr(entry.filename, source.read(entry).replace(old, old[:-1] + b"9"))
        os.replace(tmp_path / "new", path)
    else:
        damage(path, how)
    before = path.read_bytes()
    with Checkpoints(tmp_path, keep_last=1) as keeper, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keeper.resume(Weights())
        for _ in range(2):
            keeper.save(Weights(), step=1)
            keeper.wait()
    assert path.read_bytes() == before
    assert read_run_file(tmp_path / "step-000000001-2.pt").problem == ""
    assert not (tmp_path / "step-000000001-3.pt").exists()


def test_a_hard_link_keeps_its_bytes(tmp_path: Path) -> None:
    save_steps(tmp_path, 0)
    (tmp_path / "mine.pt").hardlink_to(tmp_path / "step-000000000.pt")
    before = (tmp_path / "mine.pt").read_bytes()
    save_steps(tmp_path, 0)
    assert (tmp_path / "mine.pt").read_bytes() == before
    assert names(tmp_path) == ["mine.pt", "step-000000000-2.pt", "step-000000000.pt"]
    assert Checkpoints(tmp_path).latest() == tmp_path / "step-000000000-2.pt"


def test_a_run_is_not_mixed_with_a_later_one(tmp_path: Path) -> None:
    save_steps(tmp_path, 0, 1, 2)
    with pytest.raises(RefusedError, match="step 1 comes before step-000000002"):
        Checkpoints(tmp_path).save(Weights(), step=1)
    save_steps(tmp_path, 2, 3)


# --- failures


def test_a_failed_write_is_raised_at_the_next_call_once(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.write_text("no folder")
    state = Weights()
    keeper = Checkpoints(folder)
    keeper.save(state, step=0)
    with pytest.raises(WriteError):
        keeper.save(state, step=1)
    keeper.wait()
    keeper.save(state, step=1)
    with pytest.raises(WriteError):
        keeper.latest()
    folder.unlink()
    keeper.save(state, step=2)
    keeper.close()
    assert names(folder) == ["step-000000002.pt"]


def test_leaving_the_block_raises_the_failure(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("no folder")
    with pytest.raises(WriteError), Checkpoints(tmp_path / "runs") as keeper:
        keeper.save(Weights(), step=0)


def test_another_error_in_the_block_is_not_hidden_by_the_failure(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("no folder")

    def train() -> None:
        with Checkpoints(tmp_path / "runs") as keeper:
            keeper.save(Weights(), step=0)
            raise KeyError

    with pytest.warns(UserWarning, match="the last save failed"), pytest.raises(KeyError):
        train()


@pytest.mark.parametrize("interrupted", [True, False])
def test_an_error_during_the_copy_leaves_nothing(tmp_path: Path, interrupted: bool) -> None:
    error: type[BaseException] = KeyboardInterrupt if interrupted else LossyError

    class Interrupted(Weights):
        def state_dict(self) -> dict[str, Any]:
            if interrupted:
                raise KeyboardInterrupt
            return {"model_state_dict": {"weight": self.weight, "other": object()}}

    keeper = Checkpoints(tmp_path)
    with pytest.raises(error):
        keeper.save(Interrupted(), step=0)
    keeper.wait()
    assert names(tmp_path) == []
    keeper.save(Weights(), step=0)
    keeper.close()
    assert names(tmp_path) == ["step-000000000.pt"]


@pytest.mark.parametrize(
    "options",
    [
        {"keep_last": 0},
        {"keep_every": -1},
        {"keep_best": "loss"},
        {"keep_best": ("loss", "least")},
        {"keep_best": ("loss", "min", 0)},
        {"keep_best": (3, "min")},
    ],
)
def test_a_wish_that_means_nothing_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Checkpoints(tmp_path, **options)


@pytest.mark.parametrize(
    "arguments",
    [
        {"step": -1},
        {"step": 1.5},
        {"step": 10**18},
        {"step": 1, "metrics": {"loss": "low"}},
        {"step": 1, "metrics": {"loss": torch.ones(2)}},
        {"step": 1, "metrics": {"loss": 10**400}},
        {"step": 1, "epoch": "first"},
    ],
)
def test_what_is_no_step_or_number_is_refused(tmp_path: Path, arguments: dict[str, Any]) -> None:
    keeper = Checkpoints(tmp_path)
    with pytest.raises(UsageError):
        keeper.save(Weights(), **arguments)
    assert names(tmp_path) == []


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of Python 3.12: there are threads
def test_a_fork_leaves_the_write_to_its_parent(tmp_path: Path) -> None:
    keeper = Checkpoints(tmp_path)
    keeper.save(Weights(1024, 1024), step=0)
    child = os.fork()
    if not child:
        keeper.wait()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    keeper.close()
    assert names(tmp_path) == ["step-000000000.pt"]


# --- preemption


def test_a_signal_saves_and_leaves(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    state = Weights()

    def train() -> None:
        with Checkpoints(tmp_path) as keeper:
            keeper.on_signal(signal.SIGTERM)
            for step in range(10):
                assert not keeper.should_stop
                if step == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                    os.kill(os.getpid(), signal.SIGTERM)
                    assert keeper.should_stop
                keeper.save(state, step=step)

    with pytest.raises(SystemExit) as left:
        train()
    assert left.value.code == 128 + signal.SIGTERM
    assert Checkpoints(tmp_path).resume(state) == 4
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_saves_even_after_a_failed_save(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.write_text("no folder")
    others = threading.active_count()  # a library's, of an earlier test

    def train() -> None:
        with Checkpoints(folder) as keeper:
            keeper.on_signal()
            keeper.save(Weights(), step=0)
            os.kill(os.getpid(), signal.SIGTERM)
            while threading.active_count() > others:
                pass
            folder.unlink()
            keeper.save(Weights(), step=1)

    with pytest.warns(UserWarning, match="an earlier save failed"), pytest.raises(SystemExit):
        train()
    assert names(folder) == ["step-000000001.pt"]


def test_a_signal_that_no_save_obeyed_leaves_at_the_end(tmp_path: Path) -> None:
    def train() -> None:
        with Checkpoints(tmp_path) as keeper:
            keeper.on_signal(signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(SystemExit) as left:
        train()
    assert left.value.code == 128 + signal.SIGUSR1


def test_a_second_interrupt_interrupts(tmp_path: Path) -> None:
    def train() -> None:
        with Checkpoints(tmp_path) as keeper:
            keeper.on_signal(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            assert keeper.should_stop
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of Python 3.12: there are threads
def test_a_fork_obeys_signals_at_once(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as keeper:
        keeper.on_signal(signal.SIGTERM)
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert not keeper.should_stop


def test_signals_are_refused_in_another_thread(tmp_path: Path) -> None:
    raised: list[PtsaveError] = []

    def install() -> None:
        try:
            Checkpoints(tmp_path).on_signal()
        except PtsaveError as error:
            raised.append(error)

    thread = threading.Thread(target=install)
    thread.start()
    thread.join()
    assert isinstance(raised[0], UsageError)


# --- the end of the interpreter

SCRIPT = """
import sys, torch, ptsave
model = torch.nn.Linear(1024, 1024)
keeper = ptsave.Checkpoints(sys.argv[1])
keeper.save(ptsave.TrainingState(model=model), step=0)
"""


def leave(folder: Path) -> subprocess.CompletedProcess[str]:
    """A script that ends right after a save."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(folder)], capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_last_save_is_finished_or_reported_at_exit(tmp_path: Path) -> None:
    done = leave(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert Checkpoints(tmp_path).latest() == tmp_path / "step-000000000.pt"
    (tmp_path / "file").write_text("no folder")
    failed = leave(tmp_path / "file")
    assert "WriteError" in failed.stderr


# --- properties


def test_any_kind_of_state_comes_back_from_the_host_copy(tmp_path: Path) -> None:
    """Ties, views, strides, dtypes, empty tensors and buffers that grow from save to save."""
    base = torch.arange(24.0)
    array = np.arange(9)
    tree = {
        "tied": {"a": base, "b": base},
        "views": [base[2:6], base.view(4, 6).t()],
        "dtypes": {
            str(d): torch.ones(3, dtype=d) for d in (torch.bfloat16, torch.int8, torch.bool, torch.complex64)
        },
        "conj": torch.tensor([1 + 2j]).conj(),
        "empty": torch.empty(0, 3),
        "of one array": [torch.from_numpy(array[:4]), torch.from_numpy(array)],
        "scalar": torch.tensor(3.5),
        "parameter": nn.Parameter(torch.ones(2)),
        "plain": {"lr": 0.1, "names": ("a", "b"), 3: None, "big": 2**70, "bytes": bytearray(b"ab")},
    }

    class Tree(Weights):
        def state_dict(self) -> dict[str, Any]:
            return tree

    with Checkpoints(tmp_path) as keeper:
        keeper.save(Weights(), step=0)
        keeper.save(Tree(), step=1)
        keeper.save(Tree(), step=2)
    loaded = torch.load(tmp_path / "step-000000002.pt", weights_only=True)
    assert loaded["tied"]["a"].data_ptr() == loaded["tied"]["b"].data_ptr()
    assert loaded["views"][1].untyped_storage().data_ptr() == loaded["tied"]["a"].untyped_storage().data_ptr()
    assert torch.equal(loaded["views"][0], base[2:6])
    assert torch.equal(loaded["views"][1], base.view(4, 6).t())
    assert torch.equal(loaded["conj"], tree["conj"])
    assert [one.tolist() for one in loaded["of one array"]] == [list(range(4)), list(range(9))]
    assert loaded["plain"] == tree["plain"]
    for name, tensor in tree["dtypes"].items():
        assert torch.equal(loaded["dtypes"][name], tensor)


@pytest.mark.slow
def test_whatever_happens_the_last_good_one_is_resumed(tmp_path: Path) -> None:
    """Random lives of a run: saves, restarts and damage, as long as two good ones are left."""
    chance = random.Random(0)

    def order(name: str) -> tuple[int, int, str]:
        return int(name[5:14]), len(name), name

    for life in range(4):
        folder = tmp_path / str(life)
        good: set[str] = set()
        step = 0
        keeper = Checkpoints(folder, keep_last=2, keep_best=("loss", "min"))
        for _ in range(25):
            if chance.random() < 0.7 or len(good) < 2:
                state = Weights()
                state.weight.fill_(step)
                keeper.save(state, step=step, metrics={"loss": chance.random()})
                keeper.close()
                there = set(names(folder))
                saved = max((name for name in there if int(name[5:14]) == step), key=order)
                good = (good | {saved}) & there
                step += 1
                continue
            newest = max(good, key=order)
            damage(folder / newest, chance.choice(["truncated", "empty", "flipped"]))
            good.remove(newest)
            state = Weights()
            keeper = Checkpoints(folder, keep_last=2, keep_best=("loss", "min"))
            with pytest.warns(UserWarning, match="passed over"):
                step = keeper.resume(state)
            last = int(max(good, key=order)[5:14])
            assert step == last + 1
            assert state.weight.tolist() == [last] * 8


def test_a_long_run_is_not_read_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resuming, saving and the latest look at the newest file alone, however many there are."""
    save_steps(tmp_path, *range(6))
    read: list[str] = []

    def reading(path: Path) -> Any:
        read.append(path.name)
        return read_run_file(path)

    monkeypatch.setattr(files, "read_run_file", reading)
    with Checkpoints(tmp_path) as keeper:
        assert keeper.resume(Weights()) == 6
        keeper.save(Weights(), step=6)
        keeper.save(Weights(), step=7)
        keeper.latest()
    assert set(read) == {"step-000000005.pt", "step-000000007.pt"}


@pytest.mark.parametrize("ranks", [3, [1], {"0": None}, {"1": [2]}])
def test_ranks_that_are_none_are_nobodys(ranks: object) -> None:
    """Anybody's file may have the key."""
    state, notes = state_of({"step": 1, "world_size": "many", "ranks": ranks, "model_state_dict": {}})
    assert state == {"model_state_dict": {}}
    assert len(notes) == 1


def test_another_thread_removes_what_is_superseded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    superseded = Retention.superseded
    keeper = Checkpoints(tmp_path, keep_last=1)

    def gone_meanwhile(retention: Retention, found: list[Any], just_written: Path) -> list[Any]:
        gone = superseded(retention, found, just_written)
        for file in gone:
            file.path.unlink()
        assert len(list(keeper._files.newest_first())) == 1
        return gone

    keeper.save(Weights(), step=0)
    keeper.wait()
    monkeypatch.setattr(Retention, "superseded", gone_meanwhile)
    keeper.save(Weights(), step=1)
    keeper.close()
    assert names(tmp_path) == ["step-000000001.pt"]


def test_two_threads_save_with_one_keeper(tmp_path: Path) -> None:
    keeper = Checkpoints(tmp_path / "run", keep_last=3)
    failed: list[Exception] = []

    def save(first: int) -> None:
        try:
            for step in range(first, 12, 2):
                keeper.save(Weights(), step=step)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=save, args=(first,)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keeper.close()
    assert not [one for one in failed if not isinstance(one, PtsaveError)]
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert left  # the lock is given back, and what is there opens
    assert all(name.startswith("step-") for name in left)
    for name in left:
        torch.load(tmp_path / "run" / name, weights_only=True)


def test_a_training_goes_on_with_a_new_head(tmp_path: Path) -> None:
    def made(num_classes: int) -> tuple[nn.Sequential, ptsave.TrainingState]:
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, num_classes))
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return model, ptsave.TrainingState(model=model, optimizer=optimizer)

    old, state = made(2)
    with Checkpoints(tmp_path) as keeper:
        keeper.save(state, step=4)
    model, state = made(5)
    head = model[1].weight.detach().clone()
    keeper = Checkpoints(tmp_path)
    with pytest.raises(LossyError) as misfit:
        keeper.resume(state)
    assert misfit.value.hint.endswith('allow_missing="1.*" allow_unexpected="1.*"')
    with pytest.raises(LossyError, match="less than 90%"):
        keeper.resume(state, allow_missing="1.*", allow_unexpected="1.*", min_coverage=0.9)
    assert not torch.equal(model[0].weight, old[0].weight)
    fresh = pytest.warns(UserWarning, match=r"\(39.0%\) from the checkpoint; fresh: 1.weight, 1.bias")
    left = pytest.warns(UserWarning, match="left in the checkpoint: 1.weight, 1.bias")
    with fresh, left, pytest.warns(UserWarning, match="optimizer"):
        assert keeper.resume(state, allow_missing="1.*", allow_unexpected=["1.*"], min_coverage=0.1) == 5
    assert torch.equal(model[0].weight, old[0].weight)
    assert torch.equal(model[1].weight, head)
    with pytest.raises(UsageError, match="allow_missing= would not be used"):
        keeper.resume(Weights(), allow_missing="*")

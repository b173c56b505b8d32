"""A training that is killed, out of disk, damaged or preempted ends with the weights of one left alone."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import ptsave
from ptsave.formats.run_folder import FILE_NAME
from tests.crash import mounts
from tests.crash.tally import Tally
from tests.crash.training import MOST_FILES, NUM_STEPS, num_files, problems_of, problems_of_kept, train
from tests.crash.trials import Ended, Trial, Trials

pytestmark = pytest.mark.slow

MAX_LIVES = 300
"""When a training that never ends is a failure."""
MAX_DAMAGED = 60
"""How many of the first lives may end in damage, which throws the training back."""
PREEMPTED = 128 + signal.SIGTERM


@pytest.fixture
def expected(trials: Trials, memory_path: Path) -> dict[str, torch.Tensor]:
    """The weights of a training that is left alone."""
    trial = begin(trials, memory_path / "alone", memory_path / "alone.pt")
    assert trial.wait().code == 0
    return torch.load(memory_path / "alone.pt")


@pytest.fixture
def run(memory_path: Path) -> Path:
    """The folder of the training that is not."""
    folder = memory_path / "run"
    folder.mkdir()
    return folder


def begin(trials: Trials, folder: Path, result: Path) -> Trial:
    trial = trials.prepare(train, str(folder), str(result), cwd=folder.parent)
    trial.go()
    return trial


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


def await_change(trial: Trial, folder: Path, num_changes: int) -> None:
    """Return when the names in the folder have changed so often, or the training has ended."""
    seen = names(folder)
    while num_changes and trial.process.is_alive():
        if (now := names(folder)) != seen:
            seen = now
            num_changes -= 1
        time.sleep(0.0002)


def lives(
    trials: Trials, folder: Path, result: Path, chance: random.Random, end: Callable[[Trial], None]
) -> Iterator[Ended]:
    """Begin the training again and again, ended each time at a moment of chance, until it is done."""
    for _ in range(MAX_LIVES):
        trial = begin(trials, folder, result)
        # A checkpoint changes the names four times: its temporary file, its own name, and what goes for it.
        await_change(trial, folder, chance.randrange(9))
        time.sleep(chance.choice([0, 0, 0.0005, 0.002]))
        end(trial)
        ended = trial.wait()
        yield ended
        if ended.code == 0:
            return
    raise AssertionError(f"not done after {MAX_LIVES} lives")


def kill(trial: Trial) -> None:
    if trial.process.is_alive():
        os.kill(trial.pid, signal.SIGKILL)


def terminate(trial: Trial) -> None:
    if trial.process.is_alive():
        os.kill(trial.pid, signal.SIGTERM)


def check_same(result: Path, expected: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    found = torch.load(result)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].view(torch.int32), tensor.view(torch.int32)), name


def test_killed_at_random(trials: Trials, run: Path, expected: dict[str, torch.Tensor], tally: Tally) -> None:
    result = run.parent / "result.pt"
    before = 0
    for ended in lives(trials, run, result, random.Random(1), kill):
        assert ended.code in (0, -signal.SIGKILL), ended
        assert ended.stderr == ""
        tally.count("killed", ended.code != 0)
        tally.count("left litter", any(name.startswith(".") for name in names(run)))
        tally.add("the folder", problems_of(run) + problems_of_kept(run, before))
        before = num_files(run)
    tally.check()
    check_same(result, expected)
    assert tally.fields["killed"] >= 8
    with ptsave.Checkpoints(run) as keeper:  # the last life may have had nothing left to save, nor to clear
        keeper.save(ptsave.TrainingState(model=torch.nn.Linear(1, 1)), step=10**6)
    assert [name for name in names(run) if name.startswith(".")] == []


def damage(folder: Path, chance: random.Random) -> str:
    """Damage the newest checkpoint in some way, as long as there is another one; says how."""
    files = sorted(path for path in folder.iterdir() if FILE_NAME.fullmatch(path.name) and path.is_file())
    whole = [path for path in files if not problems_of_file(path)]
    if len(whole) < 2:
        return "not"
    path = whole[-1]
    size = path.stat().st_size
    how = chance.choice(["truncated", "flipped", "emptied", "overwritten", "replaced by a folder"])
    if how == "truncated":
        os.truncate(path, chance.randrange(size))
    elif how == "emptied":
        os.truncate(path, 0)
    elif how == "replaced by a folder":
        path.unlink()
        path.mkdir()
    else:
        data = bytearray(path.read_bytes())
        for _ in range(3 if how == "flipped" else 200):
            data[chance.randrange(size)] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
    return how


def problems_of_file(path: Path) -> list[str]:
    return [problem for problem in problems_of(path.parent) if problem.startswith(path.name)]


def test_damaged_between_kills(
    trials: Trials, run: Path, expected: dict[str, torch.Tensor], tally: Tally
) -> None:
    """What is damaged is passed over with a warning; the run goes back a little, and nothing else differs."""
    result = run.parent / "result.pt"
    chance = random.Random(2)
    was_damaged = "not"
    for life, ended in enumerate(lives(trials, run, result, chance, kill)):
        assert ended.code in (0, -signal.SIGKILL), ended
        tally.add("a life", ["a traceback"] if "Traceback" in ended.stderr else [])
        if ended.code:
            was_damaged = damage(run, chance) if life < MAX_DAMAGED and chance.random() < 0.7 else "not"
            tally.count(f"damaged: {was_damaged}")
    tally.check()
    check_same(result, expected)


def test_told_to_leave_at_random(
    trials: Trials, run: Path, expected: dict[str, torch.Tensor], tally: Tally
) -> None:
    """SIGTERM: the step under way is saved, and the code says why the process left."""
    result = run.parent / "result.pt"
    before = 0
    for ended in lives(trials, run, result, random.Random(3), terminate):
        # Before the handler is there, and after it is gone, the signal ends the process itself.
        assert ended.code in (0, PREEMPTED, -signal.SIGTERM), ended
        tally.count("saved and left", ended.code == PREEMPTED)
        if ended.code == PREEMPTED:
            assert len(names(run)) <= MOST_FILES
        tally.add("the folder", problems_of(run) + problems_of_kept(run, before))
        before = num_files(run)
    tally.check()
    assert tally.fields["saved and left"] > 0
    check_same(result, expected)


@pytest.fixture
def file_bytes(expected: dict[str, torch.Tensor], memory_path: Path) -> int:
    """The size of one checkpoint; `expected` has left some."""
    return max(path.stat().st_size for path in (memory_path / "alone").iterdir())


def test_on_a_disk_with_room_for_hardly_more_than_what_is_kept(
    trials: Trials, tmp_path: Path, expected: dict[str, torch.Tensor], file_bytes: int, tally: Tally
) -> None:
    """There is room for three files, and four are wanted while one is written: one goes before its time."""
    if reason := mounts.why_no_tmpfs():
        pytest.skip(f"NOT RUN, nothing was proved: {reason}")
    with mounts.tmpfs(tmp_path / "small", f"size={file_bytes * 3 + 32 * 1024}") as folder:
        run, result = folder / "run", tmp_path / "result.pt"
        run.mkdir()
        before = 0
        for ended in lives(trials, run, result, random.Random(4), kill):
            assert ended.code in (0, -signal.SIGKILL), ended
            tally.count("made room", ended.stderr.count("the disk is full: removed"))
            tally.add("the folder", problems_of(run) + problems_of_kept(run, before))
            before = num_files(run)
    tally.check()
    assert tally.fields["made room"] > 0
    check_same(result, expected)


def test_on_a_disk_without_room_the_last_good_one_stays(
    trials: Trials, tmp_path: Path, expected: dict[str, torch.Tensor], file_bytes: int
) -> None:
    """With room for one file there cannot be a second: the training is told so, and can go on later."""
    if reason := mounts.why_no_tmpfs():
        pytest.skip(f"NOT RUN, nothing was proved: {reason}")
    with mounts.tmpfs(tmp_path / "small", f"size={file_bytes * 3 // 2}") as folder:
        run, result = folder / "run", tmp_path / "result.pt"
        run.mkdir()
        for _ in range(3):
            ended = begin(trials, run, result).wait()
            assert ended.code == 1
            assert "NoRoomError: no room" in ended.stderr
            assert names(run) == {"step-000000000.pt"}
            assert problems_of(run) == []
        mounts.system("mount", "-o", f"remount,size={file_bytes * 5}", folder)
        assert begin(trials, run, result).wait().code == 0
        check_same(result, expected)
        assert len(names(run)) <= 3
    assert NUM_STEPS > 3

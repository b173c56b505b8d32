"""A run in a bucket: what its keeper promises on a disk, asked of real servers."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

from ptsave.core.address import Address
from ptsave.errors import CorruptError, OutOfReachError, PtsaveError, RefusedError, UsageError, WriteError
from ptsave.storage.upload.store import UploadStore
from ptsave.training.runs import lease
from ptsave.training.runs.checkpoints import Checkpoints
from ptsave.training.runs.lock import NAME
from ptsave.training.runs.stores import StoreRunFolder
from tests import warm
from tests.servers.faults import delay, replaced, status
from tests.servers.serving import Answer, Fault, Handler, Request
from tests.servers.stores import S3, Store, s3_store
from tests.storage.upload.objects import COMPLETE, KIB, PART, PART_BYTES, address, left, refusal, scheme
from tests.support import Command

LARGE = PART_BYTES
"""How many numbers make a checkpoint of several parts."""


class Weights:
    """A state of one tensor."""

    def __init__(self, num_elements: int = 8) -> None:
        self.weight = torch.zeros(num_elements)

    def state_dict(self) -> dict[str, Any]:
        return {"model_state_dict": {"weight": self.weight}}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        self.weight = state["model_state_dict"]["weight"]
        return []


@pytest.fixture(autouse=True)
def _environment(found_by_ptsave: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UploadStore, "min_part_bytes", PART_BYTES)
    monkeypatch.setattr(UploadStore, "part_unit_bytes", KIB)


def run_of(store: Store) -> str:
    """The address of a run."""
    return f"{store.address}/runs/exp1"


def names(store: Store) -> list[str]:
    """What is in the run."""
    return [name.removeprefix("runs/exp1/") for name in store.names()]


def steps(store: Store) -> list[int]:
    """Of the checkpoints in the run; nothing else is there."""
    assert all(name.startswith("step-") for name in names(store)), names(store)
    return [int(name[5:14]) for name in names(store)]


def save_steps(store: Store, *numbers: int, **options: Any) -> None:
    """A run whose weights are the number of the step."""
    state = Weights()
    with Checkpoints(run_of(store), **options) as keeper:
        for step in numbers:
            state.weight.fill_(step)
            keeper.save(state, step=step)


def damage(store: Store, step: int, how: str = "flipped") -> bytes:
    """Do to a checkpoint what people and programs do; returns what is there now."""
    name = f"runs/exp1/step-{step:09d}.pt"
    data = bytearray(store.get(name))
    if how == "flipped":
        data[data.index(torch.full((8,), float(step)).numpy().tobytes()) + 2] ^= 1
    elif how == "truncated":
        del data[len(data) // 2 :]
    elif how == "empty":
        data.clear()
    elif how == "foreign":
        buffer = BytesIO()
        torch.save({"step": step, "w": torch.zeros(2)}, buffer)
        data = bytearray(buffer.getvalue())
    store.put(name, bytes(data))
    return bytes(data)


def test_a_run_in_a_bucket_is_as_one_on_a_disk(store: Store, tmp_path: Path) -> None:
    state = Weights(LARGE)
    for where in (run_of(store), tmp_path / "exp1"):
        with Checkpoints(where, keep_last=2, keep_best=("loss", "min")) as keeper:
            assert keeper.resume(state) == 0
            assert keeper.latest() is None
            for step in range(5):
                state.weight.fill_(step)
                keeper.save(state, step=step, epoch=1, metrics={"loss": abs(step - 1)})
                state.weight.fill_(-1)
            assert str(keeper.latest()) == f"{where}/step-000000004.pt"
            assert str(keeper.best()) == f"{where}/step-000000001.pt"
    assert names(store) == sorted(os.listdir(tmp_path / "exp1"))
    assert steps(store) == [1, 3, 4]
    for name in names(store):
        assert store.get(f"runs/exp1/{name}") == (tmp_path / "exp1" / name).read_bytes()
    assert left(store) == []
    assert Checkpoints(f"{run_of(store)}/").resume(state) == 5
    assert state.weight.unique().tolist() == [4]


def test_a_bucket_itself_may_be_the_folder(each: Store) -> None:
    with Checkpoints(each.address) as keeper:
        keeper.save(Weights(), step=1)
        assert isinstance(keeper.folder, Address)
        assert keeper.latest() == keeper.folder / "step-000000001.pt"
    assert each.names() == ["step-000000001.pt"]
    assert Checkpoints(each.address).resume(Weights()) == 2


@pytest.mark.parametrize("how", ["flipped", "truncated", "empty", "foreign"])
def test_a_damaged_checkpoint_is_passed_over_and_stays(one_s3: S3, how: str) -> None:
    save_steps(one_s3, 0, 1, 2)
    data = damage(one_s3, 2, how)
    state = Weights()
    with Checkpoints(run_of(one_s3), keep_last=1) as keeper:
        if how == "foreign":  # it is whole, and of another program
            with pytest.raises(KeyError):
                keeper.resume(state)
        else:
            with pytest.warns(UserWarning, match=r"passed over s3://.*/step-000000002.pt: "):
                assert keeper.resume(state) == 2
            assert state.weight.tolist() == [1] * 8
        keeper.save(state, step=2)
        keeper.save(state, step=3)
    assert names(one_s3) == ["step-000000002.pt", "step-000000003.pt"]
    assert one_s3.get("runs/exp1/step-000000002.pt") == data


def test_a_run_that_is_all_damaged_is_not_begun_anew(one_s3: S3) -> None:
    save_steps(one_s3, 0, 1)
    for step in (0, 1):
        damage(one_s3, step)
    with (
        pytest.warns(UserWarning, match="passed over"),
        pytest.raises(CorruptError, match="all 2 checkpoints"),
    ):
        Checkpoints(run_of(one_s3)).resume(Weights())


def test_a_store_that_does_not_answer_says_nothing_of_the_checkpoints(
    each: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(each, 0, 1)
    monkeypatch.setenv("PTSAVE_TIMEOUT", "0.3")  # one that runs out is such an error too
    for fault in (status(503), status(403)):
        with each.server.faulty(fault, on="step-000000001"), pytest.raises(OutOfReachError):
            Checkpoints(run_of(each)).resume(Weights())
    monkeypatch.delenv("PTSAVE_TIMEOUT")
    assert Checkpoints(run_of(each)).resume(Weights()) == 2


def test_a_run_that_goes_back_is_refused(one_s3: S3) -> None:
    save_steps(one_s3, 5)
    with pytest.raises(RefusedError, match=r"step 0 comes before step-000000005.pt"):
        save_steps(one_s3, 0)
    assert steps(one_s3) == [5]


def test_a_step_that_is_saved_again_replaces_what_is_whole_and_ours(each: Store) -> None:
    save_steps(each, 0, 1)
    save_steps(each, 1)
    assert steps(each) == [0, 1]
    damage(each, 1)
    save_steps(each, 1)
    assert names(each) == ["step-000000000.pt", "step-000000001-2.pt", "step-000000001.pt"]


def test_what_was_replaced_under_us_is_not_removed(each: Store) -> None:
    """Whether before the keeper looks, or between its look and the removal."""
    state = Weights()
    with Checkpoints(run_of(each), keep_last=1) as keeper:
        keeper.save(state, step=0)
        keeper.wait()
        foreign = damage(each, 0, "foreign")
        keeper.save(state, step=1)
        keeper.save(state, step=2)
    assert steps(each) == [0, 2]
    assert each.get("runs/exp1/step-000000000.pt") == foreign

    folder = StoreRunFolder(address(run_of(each)))
    seen = folder.list()["step-000000002.pt"]
    assert seen is not None
    fault = replaced(lambda: each.put("runs/exp1/step-000000002.pt", b"another"), 0)
    with each.server.faulty(fault, on="DELETE .*step-000000002"):
        folder.remove("step-000000002.pt", seen.fingerprint)
    if scheme(each) != "s3":  # MiniStack deletes whatever the condition: Amazon does not
        assert each.get("runs/exp1/step-000000002.pt") == b"another"
    each.put("runs/exp1/step-000000002.pt", b"another")
    folder.remove("step-000000002.pt", seen.fingerprint)
    assert steps(each) == [0, 2]


def test_what_comes_under_the_new_name_meanwhile_stays(each: Store) -> None:
    """The store itself is asked; the checkpoint takes the next name."""
    save_steps(each, 0)
    name = "runs/exp1/step-000000001.pt"
    on = COMPLETE[scheme(each)].replace("/o/m/", "/.*step-000000001.*")
    with each.server.faulty(replaced(lambda: each.put(name, b"another"), 0), on=on):
        state = Weights(LARGE)
        with Checkpoints(run_of(each)) as keeper:
            assert keeper.resume(Weights()) == 1
            keeper.save(state, step=1)
    assert names(each) == ["step-000000000.pt", "step-000000001-2.pt", "step-000000001.pt"]
    assert each.get(name) == b"another"
    assert left(each) == []


def test_one_part_that_is_refused_costs_one_checkpoint(each: Store) -> None:
    state = Weights(LARGE)
    with Checkpoints(run_of(each), keep_last=1) as keeper:
        keeper.save(state, step=0)
        keeper.wait()
        with each.server.faulty(refusal(each, 403, "AccessDenied"), on=PART[scheme(each)], times=1):
            keeper.save(state, step=1)
            with pytest.raises(WriteError, match="permission"):
                keeper.wait()
        assert keeper.resume(state) == 1
        keeper.save(state, step=2)
    assert steps(each) == [2]
    assert left(each) == []


def test_credentials_that_are_lost_half_way_leave_nothing_for_long(each: Store) -> None:
    """Not even the abort is let through: the next save removes what is left, under whatever name."""
    state = Weights(LARGE)
    with Checkpoints(run_of(each)) as keeper:
        keeper.save(state, step=0)
        keeper.wait()
        lost = _after(PART[scheme(each)], refusal(each, 403, "ExpiredToken"))
        with each.server.faulty(lost):
            keeper.save(state, step=1)
            with pytest.raises(WriteError):
                keeper.wait()
        assert [name for name in names(each) if not name.startswith(".")] == ["step-000000000.pt"]
        assert left(each) != [] or scheme(each) == "az"
        keeper.save(state, step=7)
    assert steps(each) == [0, 7]
    assert left(each) == []


def _after(pattern: str, fault: Fault) -> Fault:
    """From the second request that matches on, `fault` happens to every request."""
    seen = 0

    def happens(request: Request, handler: Handler) -> Answer:
        nonlocal seen
        seen += re.match(pattern, f"{request.method} {request.target}") is not None
        return fault(request, handler) if seen > 1 else handler(request)

    return happens


@pytest.mark.slow
def test_the_step_waits_for_the_copy_and_not_for_the_store(one_s3: S3) -> None:
    state = Weights(LARGE)
    with Checkpoints(run_of(one_s3)) as keeper:
        keeper.save(state, step=0)
        keeper.wait()
        one_s3.server.reset()
        with one_s3.server.faulty(delay(0.1)):
            begin = time.monotonic()
            keeper.save(state, step=1)
            stall = time.monotonic() - begin
            keeper.wait()
            whole = time.monotonic() - begin
    assert whole > 0.5
    assert stall < whole / 5


def test_nothing_tells_a_secret(one_s3: S3) -> None:
    secrets = (one_s3.env["AWS_SECRET_ACCESS_KEY"], one_s3.env["AWS_ACCESS_KEY_ID"])
    with Checkpoints(run_of(one_s3)) as keeper:
        keeper.save(Weights(), step=0)
        keeper.wait()
        told = [one_s3.get(name).decode("latin-1") for name in one_s3.names()]
        with one_s3.server.faulty(refusal(one_s3, 403, "ExpiredToken")):
            keeper.save(Weights(), step=1)
            with pytest.raises(WriteError) as caught:
                keeper.wait()
    assert len(told) == 2
    assert not any(secret in text for text in (*told, str(caught.value)) for secret in secrets)


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("hf://owner/repo/run", "each checkpoint would be a commit"),
        ("https://host/run", "a web address can only be read"),
        ("memory://run", "memory:// has no conditions"),
        ("ftp://host/run", "ftp:// can only be read"),
        ("s3://bucket/run?versionId=3", "an address of one version can only be read"),
    ],
)
def test_an_address_that_no_run_can_be_kept_at_is_refused_by_name(where: str, what: str) -> None:
    with pytest.raises(RefusedError, match=what):
        Checkpoints(where)
    with pytest.raises(UsageError, match="became a path"):
        Checkpoints(Path("s3://bucket/run"))


def test_a_bucket_that_is_missing_is_told_at_once(each: Store) -> None:
    def train() -> None:
        with Checkpoints(each.address + "-other/run") as keeper:
            keeper.resume(Weights())  # MiniStack says that nothing is there
            keeper.save(Weights(), step=0)

    with pytest.raises(PtsaveError, match="no such"):
        train()


# --- processes that are killed, or told to leave

TRAINING = """
import os, signal, sys, time, warnings, torch, ptsave
from ptsave.storage.upload.store import UploadStore
from tests.training.runs.test_stores import LARGE, Weights
from tests.storage.upload.objects import KIB, PART_BYTES
UploadStore.min_part_bytes, UploadStore.part_unit_bytes = PART_BYTES, KIB
warnings.simplefilter("always")
state = Weights(LARGE)
with ptsave.Checkpoints(sys.argv[1], keep_last=2) as keeper:
    keeper.on_signal(signal.SIGTERM)
    first = keeper.resume(state)
    print("from", first, flush=True)
    for step in range(first, first + int(sys.argv[2])):
        state.weight = torch.full((LARGE,), float(step))
        keeper.save(state, step=step)
    keeper.wait()
    print("saved", flush=True)
    while sys.argv[3:]:
        time.sleep(0.02)
        if keeper.should_stop:
            keeper.save(state, step=step + 1)
"""


def training(root: Path, store: Store, *words: str) -> warm.Started:
    """A process that saves some steps, and then waits to be told to leave if there is a third word."""
    env = os.environ | store.env
    return warm.Started(warm.python, "-c", TRAINING, run_of(store), *words, cwd=root, env=env)


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_and_what_it_sent_is_removed(store: Store, root: Path) -> None:
    save_steps(store, 0)
    begun: list[warm.Started] = []
    is_begun = threading.Event()

    def killing(request: Request, handler: Handler) -> Answer:
        answer = handler(request)
        assert is_begun.wait(60)
        begun[0].kill()
        return answer

    with store.server.faulty(killing, on=PART[scheme(store)], times=1):
        begun.append(training(root, store, "5"))
        is_begun.set()
        assert begun[0].wait().returncode == -signal.SIGKILL
    assert [name for name in names(store) if name.endswith(".pt")] == ["step-000000000.pt"]
    assert NAME in names(store)
    assert left(store) != [] or scheme(store) == "az"
    state = Weights()
    begin = time.monotonic()
    with Checkpoints(run_of(store)) as keeper:
        assert keeper.resume(state) == 1
        keeper.save(state, step=9)  # another name than that which the killed one was sending
    assert time.monotonic() - begin < lease.LEASE_SECONDS / 2  # it is known to be gone
    assert steps(store) == [0, 9]
    assert left(store) == []


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_request_costs_one_checkpoint_at_most(
    start: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """A training that saves and removes is killed at its first request, the next one at its second, …"""
    with s3_store(start("moto")) as bucket:  # it lists what kind of checksum an upload has, as S3 does
        for name, value in bucket.env.items():
            monkeypatch.setenv(name, value)
        last = _save(bucket)
        at, code = 0, -signal.SIGKILL
        while code:
            at += 1
            process = multiprocessing.get_context("fork").Process(target=_save, args=(bucket,))
            with bucket.server.faulty(_killing(process, at, after=after)):
                process.start()
                process.join()
            code = process.exitcode or 0
            assert code in (0, -signal.SIGKILL)
            found = [int(name[5:14]) for name in names(bucket) if name.endswith(".pt")]
            assert max(found) in (last, last + 1)
            assert len(found) in (1, 2)
            last = _save(bucket)
            assert last == max(found) + 1
            assert steps(bucket) == [last]
            assert bucket.leftovers() == []
        assert at > 15


def _save(bucket: S3) -> int:
    """What a process does: go on from what is whole, and save one step, which is returned."""
    torch.set_num_threads(1)  # a fork has none of its parent's
    state = Weights(LARGE)
    with Checkpoints(run_of(bucket), keep_last=1) as keeper:
        step = keeper.resume(state)
        assert not step or state.weight.unique().tolist() == [step - 1]
        state.weight = torch.full((LARGE,), float(step))
        keeper.save(state, step=step)
    return step


def _killing(process: Any, at: int, *, after: bool) -> Fault:
    """The request number `at` kills `process`, before or after it is carried out."""
    seen = 0

    def fault(request: Request, handler: Handler) -> Answer:
        nonlocal seen
        seen += 1
        is_it = seen == at
        if is_it and not after:
            os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.1)  # until it is gone; to wait for it here takes its exit code from who asks
        answer = handler(request)
        if is_it and after:
            os.kill(process.pid, signal.SIGKILL)
        return answer

    return fault


@pytest.mark.slow
def test_the_last_save_is_finished_at_exit(one_s3: S3, root: Path) -> None:
    script = TRAINING.partition("with ptsave")[0] + (
        "keeper = ptsave.Checkpoints(sys.argv[1])\nkeeper.save(state, step=3)\n"
    )
    command = [sys.executable, "-c", script, run_of(one_s3)]
    with one_s3.server.faulty(delay(0.05)):
        done = subprocess.run(
            command, cwd=root, env=os.environ | one_s3.env, capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert steps(one_s3) == [3]


@pytest.mark.slow
def test_a_second_training_is_refused_and_the_first_leaves_when_it_is_told(
    each: Store, root: Path, ptsave_here: Command
) -> None:
    process = training(root, each, "2", "stay")
    process.says("saved")
    keeper = Checkpoints(run_of(each))
    with pytest.warns(UserWarning, match=f"another training saves in .*process {process.pid} on"):
        assert keeper.resume(Weights()) == 2
    with pytest.raises(RefusedError, match="another training writes its checkpoints here") as caught:
        keeper.save(Weights(), step=2)
    assert f"process {process.pid} on {os.uname().nodename}, since 20" in caught.value.what
    shown = json.loads(ptsave_here("inspect", "--json", run_of(each), env=each.env).stdout)
    assert [one["step"] for one in shown["checkpoints"]] == [0, 1]
    assert "yes" in ptsave_here("verify", run_of(each), env=each.env).stdout
    os.kill(process.pid, signal.SIGTERM)
    ended = process.wait()
    assert ended.returncode == 128 + signal.SIGTERM, ended.stderr
    assert ended.stdout.splitlines() == ["from 0", "saved"]
    assert "Error" not in ended.stderr
    assert steps(each) == [1, 2]
    assert Checkpoints(run_of(each)).resume(Weights()) == 3


@pytest.mark.slow
def test_a_training_is_the_same_in_a_bucket_as_on_a_disk(one_s3: S3, root: Path, tmp_path: Path) -> None:
    """Bit for bit, though the one in the bucket is killed on the way."""
    script = "import sys; from tests.crash.training import train; train(*sys.argv[1:], num_steps=12)"
    env = os.environ | one_s3.env

    def train(where: str, result: Path) -> warm.Started:
        return warm.Started(warm.python, "-c", script, where, result, cwd=root, env=env)

    assert train(str(tmp_path / "run"), tmp_path / "disk.pt").wait().returncode == 0
    started: list[warm.Started] = []

    def kill(request: Request, handler: Handler) -> Answer:
        answer = handler(request)
        started[0].kill()
        return answer

    with one_s3.server.faulty(kill, on=r"PUT .*step-000000004\.pt", times=1):
        started.append(train(run_of(one_s3), tmp_path / "bucket.pt"))
        assert started[0].wait().returncode == -signal.SIGKILL
    assert train(run_of(one_s3), tmp_path / "bucket.pt").wait().returncode == 0
    disk, bucket = torch.load(tmp_path / "disk.pt"), torch.load(tmp_path / "bucket.pt")
    assert disk.keys() == bucket.keys()
    for name, tensor in disk.items():
        assert torch.equal(tensor.view(torch.int32), bucket[name].view(torch.int32)), name
    assert names(one_s3) == sorted(os.listdir(tmp_path / "run"))


RANKS = """
import sys, warnings, torch, torch.distributed as dist, ptsave
where, meeting, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
if rank == 1 and sys.argv[4:]:
    where = sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
model = torch.nn.Linear(2, 1)
state = ptsave.TrainingState(model=model)
try:
    for _ in range(2):
        with ptsave.Checkpoints(where, keep_last=1) as keeper:
            torch.nn.init.constant_(model.weight, -rank)
            step = keeper.resume(state)
            print("from", step, model.weight.flatten().tolist())
            torch.nn.init.constant_(model.weight, step + 1)
            keeper.save(state, step=step)
except ptsave.PtsaveError as error:
    print(error)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_keep_one_run_in_a_bucket(one_s3: S3, tmp_path: Path) -> None:
    def ranks(*words: str) -> list[list[str]]:
        (tmp_path / "meeting").unlink(missing_ok=True)
        command = (warm.python, "-c", RANKS, run_of(one_s3), tmp_path / "meeting")
        started = [
            warm.Started(*command, rank, *words, cwd=tmp_path, env=os.environ | one_s3.env)
            for rank in ("0", "1")
        ]
        ended = [process.wait() for process in started]
        assert [one.returncode for one in ended] == [0, 0], ended
        return [one.stdout.splitlines() for one in ended]

    first, second = ranks()
    assert first == ["from 0 [0.0, 0.0]", "from 1 [1.0, 1.0]"]
    assert second == ["from 0 [-1.0, -1.0]", "from 1 [1.0, 1.0]"]
    assert steps(one_s3) == [1]
    one_s3.client.delete_object(Bucket=one_s3.bucket, Key="runs/exp1/step-000000001.pt")
    for output in ranks(f"{one_s3.address}/elsewhere"):
        assert "does not see in" in output[-1], output
    assert names(one_s3) == []

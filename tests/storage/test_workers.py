"""How many threads there are; and where none is to be had, the caller does the work."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ptsave
from ptsave.cli import main
from ptsave.errors import PtsaveError, UsageError
from ptsave.storage import system
from ptsave.storage.fetch import fetching
from ptsave.storage.system import processes
from ptsave.storage.workers import VARIABLE, num_threads


@pytest.fixture
def no_threads() -> Iterator[None]:
    """Each new thread asks for more memory for its stack than a process can have."""
    before = threading.stack_size(1 << 47)
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threading.Thread(target=print).start()
        yield
    finally:
        threading.stack_size(before)


@pytest.mark.usefixtures("no_threads")
def test_everything_works_without_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(200, 200)
    ptsave.save("a.pt", model)
    assert torch.equal(ptsave.load("a.pt", torch.nn.Linear(200, 200)).weight, model.weight)
    with ptsave.open("a.pt") as checkpoint:
        assert torch.equal(checkpoint.state_dict()["weight"], model.weight)
    state = ptsave.TrainingState(model=model, optimizer=torch.optim.Adam(model.parameters()))
    with ptsave.Checkpoints("run") as keeper, warnings.catch_warnings():
        warnings.simplefilter("error")
        keeper.save(state, step=0)
        keeper.save(state, step=1)
        keeper.wait()
        assert keeper.resume(state) == 2
    assert main.run(["convert", "a.pt", "b.safetensors", "-q"]) == 0
    assert main.run(["verify", "b.safetensors", "-q"]) == 0


@pytest.mark.usefixtures("no_threads")
def test_an_error_comes_out_where_it_is_waited_for() -> None:
    def fail() -> None:
        raise PtsaveError("no")

    with fetching() as pool:
        begun = pool.submit(fail)
        with pytest.raises(PtsaveError, match="no"):
            begun.result()


def use_cores(monkeypatch: pytest.MonkeyPatch, cores: int, **variables: str) -> int:
    for name in (VARIABLE, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "num_cores", lambda: cores)
    return num_threads()


def test_threads_are_the_cores_that_ranks_share(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [use_cores(monkeypatch, cores) for cores in (1, 2, 8, 64)] == [1, 2, 8, 8]
    assert use_cores(monkeypatch, 16, LOCAL_WORLD_SIZE="4") == 4
    assert use_cores(monkeypatch, 2, LOCAL_WORLD_SIZE="8") == 1
    assert use_cores(monkeypatch, 2, LOCAL_WORLD_SIZE="8", PTSAVE_THREADS="12") == 12


@pytest.mark.skipif(not system.HAS_AFFINITY, reason="only Linux says which cores a process may use")
def test_cores_are_those_that_the_process_may_use() -> None:
    assert processes.num_cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "99999", "²"])
def test_what_is_no_number_of_threads_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="is not a number of threads"):
        use_cores(monkeypatch, 2, PTSAVE_THREADS=text)


@pytest.mark.slow
def test_convert_takes_little_memory_and_writes_the_same_on_any_number_of_threads(
    tmp_path: Path, clean_env: dict[str, str]
) -> None:
    torch.save({f"t{i}": torch.full((2_000_000,), float(i)) for i in range(16)}, tmp_path / "m.pt")
    written = set()
    for number in (1, 2, 16):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *CONVERT, "--threads", str(number)],
            cwd=tmp_path,
            env=clean_env,
            check=True,
            capture_output=True,
            text=True,
        )
        assert int(done.stdout) < 64 * 1024
        written.add((tmp_path / "o.safetensors").read_bytes())
    assert len(written) == 1


CONVERT = ["convert", "m.pt", "o.safetensors", "--overwrite", "--quiet"]
PEAK = """
import sys
from ptsave.cli.main import run
assert run(sys.argv[1:]) == 0
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_threads_that_nothing_would_use_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "2")  # which is put back
    assert main.run(["convert", "m.pt", "o.safetensors", "--dry-run", "--threads", "2"]) == 2
    assert "--threads would not be used" in capsys.readouterr().err
    assert main.run(["verify", "m.pt", "--checks", "safe", "--threads", "2"]) == 2
    assert "--threads would not be used" in capsys.readouterr().err

"""A signal to all processes of a job: the workers stay until the training has saved; without one they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="NOT RUN, nothing was proved: there are no groups"),
]
MODULE = "tests.training.told_to_leave"


def start(folder: Path, method: str, kind: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", MODULE, str(folder), method, kind]
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        argv,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert path.exists(), process.communicate()[1]


def workers(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("worker-")) for path in folder.glob("worker-*")]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("method", "kind"), [("fork", "resumable"), ("spawn", "resumable"), ("fork", "plain")]
)
def test_workers_stay_until_the_training_has_saved(tmp_path: Path, method: str, kind: str) -> None:
    with start(tmp_path, method, kind) as process:
        wait_for(tmp_path / "ready", process)
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(1.5)  # batches that were not made yet are needed now
        (tmp_path / "go").touch()
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    steps = [line.split()[0] for line in output.splitlines()]
    assert "finished" not in steps
    assert (tmp_path / "run" / f"step-{int(steps[-1]):09d}.pt").exists()
    assert not any(map(is_alive, workers(tmp_path)))
    if kind == "resumable":
        (tmp_path / "ready").unlink()
        with start(tmp_path, method, kind) as process:
            again, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        seen = [line.split(maxsplit=1) for line in [*output.splitlines(), *again.splitlines()][:-1]]
        assert [int(step) for step, _ in seen] == list(range(len(seen)))
        assert [batch for _, batch in seen] == [f"[{2.0 * i}, {2.0 * i + 1}]" for i in range(len(seen))]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_that_alone_is_told_to_end_ends(tmp_path: Path, method: str) -> None:
    """As the DataLoader itself tells one that does not leave."""
    with start(tmp_path, method, "resumable") as process:
        wait_for(tmp_path / "ready", process)
        victim = workers(tmp_path)[0]
        os.kill(victim, signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode not in (0, 128 + signal.SIGTERM)
    assert f"worker (pid {victim})" in errors or f"worker (pid(s) {victim})" in errors

"""Signals that end a process: what it was writing is removed, and it ends by the signal itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ENDING = ["SIGHUP", "SIGQUIT", "SIGXCPU", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGPROF"]
ASKING = {"SIGINT": 130, "SIGTERM": 143}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 MB that take a while to convert."""
    path = tmp_path_factory.mktemp("source") / "a.safetensors"
    save_file({str(i): torch.zeros(2_500_000) for i in range(30)}, path)
    return path


HEEDED = """
signal.signal(signal.SIGINT, signal.default_int_handler)
for heeded in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(heeded, signal.SIG_DFL)
"""
"""What a shell has its background jobs ignore, and nohup all that it starts: the tests may be one."""


def begin(source: Path, folder: Path, format: str, before: str = "") -> subprocess.Popen[str]:
    """A conversion that has begun to write."""
    words = ["convert", str(source), str(folder / "out"), "--format", format, "--digest", "sha256"]
    lines = [
        "import signal, sys",
        HEEDED,
        before,
        f"sys.argv[1:] = {words!r}",
        "from ptsave.__main__ import main",
    ]
    script = "\n".join([*lines, "main()"])
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not os.listdir(folder):
        time.sleep(0.001)
    return process


@pytest.mark.parametrize("format", ["pt", "safetensors-sharded"])
@pytest.mark.parametrize("name", [*ENDING, *ASKING])
def test_what_was_being_written_goes(source: Path, tmp_path: Path, name: str, format: str) -> None:
    process = begin(source, tmp_path, format)
    process.send_signal(getattr(signal, name))
    _, err = process.communicate()
    assert process.returncode == ASKING.get(name, -getattr(signal, name)), err
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == []


def test_a_signal_that_is_ignored_stays_so(source: Path, tmp_path: Path) -> None:
    """As `nohup` has it."""
    process = begin(source, tmp_path, "pt", "signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert os.listdir(tmp_path) == ["out"]

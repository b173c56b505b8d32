"""The training of docs/training.md can be copied: it runs, is killed, and goes on to the same weights."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ptsave


def run(script: Path, folder: Path, env: dict[str, str], kill_after: int | None = None) -> int:
    """Run the script in `folder`; kill it when that many new checkpoints were seen there."""
    old = set(folder.glob("runs/exp1/step-*.pt"))
    process = subprocess.Popen([sys.executable, "-W", "error", script], cwd=folder, env=env)
    seen: set[Path] = set()
    while kill_after is not None and process.poll() is None and len(seen) < kill_after:
        seen |= set(folder.glob("runs/exp1/step-*.pt")) - old
        time.sleep(0.002)
    if kill_after is not None:
        process.kill()
    return process.wait()


@pytest.fixture(scope="module")
def section(root: Path) -> str:
    return (root / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_training_goes_on_where_it_was_killed(
    section: str, root: Path, tmp_path: Path, clean_env: dict[str, str]
) -> None:
    script = tmp_path / "train.py"
    script.write_text(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0])
    env = clean_env | {"PYTHONPATH": str(root)}
    ends = []
    for name, kills in (("whole", ()), ("killed", (2, 1))):
        folder = tmp_path / name
        folder.mkdir()
        for kill_after in kills:
            run(script, folder, env, kill_after)
        assert run(script, folder, env) == 0
        with ptsave.open(folder / "model.safetensors") as checkpoint:
            ends.append(checkpoint.state_dict())
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_the_other_blocks_compile(section: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        compile(block, "docs/training.md", "exec")

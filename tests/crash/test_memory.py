"""Processes that get less memory than they need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

LIMITS_KB = (50_000, 80_000, 110_000, 160_000)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of address space")
def test_a_lack_of_memory_is_an_error_of_the_machine(tmp_path: Path) -> None:
    """Where Python gets to say it: OpenBLAS ends the process itself where its own buffers lack room."""
    path = tmp_path / "a.pt"
    torch.save({"w": torch.zeros(2)}, path)
    said = []
    for limit in LIMITS_KB:
        command = f'ulimit -v {limit} && exec "{sys.executable}" -m ptsave verify "{path}"'
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
        if "OpenBLAS" not in done.stderr:
            assert done.returncode in (0, 4), done.stderr
            said.append(done.stderr)
    assert any(
        text.startswith("error: there is not enough memory\nhint: close other programs") for text in said
    )

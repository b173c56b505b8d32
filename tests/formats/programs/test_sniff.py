"""Which archives are programs, before a reader of programs is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ptsave.formats import open_checkpoint

CODE = "import sys, ptsave; ptsave.open('a.pt').close(); print(*sys.modules)"


@pytest.mark.slow
def test_a_reader_is_imported_for_its_own_files(tmp_path: Path) -> None:
    """The start of `inspect` is most of what it takes."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    argv = [sys.executable, "-c", CODE]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    assert "ptsave.formats.torch.read" in found
    others = ("onnx.read", "gguf.read", "npz.read", "dcp.read", "programs.torchscript", "programs.pt2")
    assert found.isdisjoint(f"ptsave.formats.{other}" for other in others)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_is_told_from_weights(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "a.pt"))
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "b.pt")
    with open_checkpoint(tmp_path / "a.pt") as program, open_checkpoint(tmp_path / "b.pt") as weights:
        assert (program.format, weights.format) == ("torchscript", "pt")

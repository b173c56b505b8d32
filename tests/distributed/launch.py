"""Running ptsave, or many cases of it at once, under a real torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ptsave.formats import open_checkpoint
from ptsave.storage.scan import tensor_digest
from tests import warm
from tests.conftest import AMBIENT, ROOT

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
"""The real one, for what is killed on the way; `torchrun` below does what it does."""
QUIET = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONWARNINGS": "default"}
"""Without the first, torchrun prints a page about it."""


def ptsave(folder: Path, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    """One command of one process, which must succeed."""
    done = warm.run(warm.python, "-m", "ptsave", *arguments, cwd=folder, env=environment(**more))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def environment(**more: str) -> dict[str, str]:
    """Of a process of these tests: it finds the checkout from wherever it runs."""
    kept = {key: value for key, value in os.environ.items() if key not in AMBIENT}
    return kept | QUIET | {"PYTHONPATH": str(ROOT)} | more


def torchrun(
    num_ranks: int, *arguments: object, cwd: Path, module: str = "ptsave", **more: str
) -> subprocess.CompletedProcess[str]:
    """How `torchrun -m ptsave ARGUMENTS` on a port of its own ended."""
    return launched(num_ranks, *arguments, cwd=cwd, module=module, **more).wait()


def launched(
    num_ranks: int, *arguments: object, cwd: Path, module: str = "ptsave", **more: str
) -> warm.Started:
    """A launch that is under way; its ranks are forked, see TORCHRUN."""
    words = ("--standalone", "--nproc-per-node", num_ranks, "-m", module, *arguments)
    return warm.Started(warm.torchrun, *words, cwd=cwd, env=environment(**more))


def run_cases(num_ranks: int, folder: Path, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `tests.distributed.worker` says of each case, all of them in one launch."""
    (folder / "cases.json").write_text(json.dumps(cases))
    done = torchrun(num_ranks, "cases.json", cwd=folder, module="tests.distributed.worker")
    assert done.returncode == 0, done.stderr
    results: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())
    return results


def errors(stderr: str) -> list[str]:
    """The lines with which ptsave says what went wrong."""
    return [line for line in stderr.splitlines() if line.startswith("error:")]


def digests(path: Path) -> dict[str, str]:
    """The digest of each tensor of a checkpoint, by name."""
    with open_checkpoint(path) as checkpoint:
        return {name: tensor_digest(entry) for name, entry in checkpoint.tensors.items()}

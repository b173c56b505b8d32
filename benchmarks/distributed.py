"""Rows: a sharded model saved and loaded by several ranks, beside plain torch.distributed.checkpoint."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.files import Files
from benchmarks.measure import Command
from benchmarks.rows import Budget, Row, peak, wall_ratio

RANKS = Path(__file__).with_name("ranks.py")
ROOT = RANKS.parents[1]


def _argv(num_ranks: int, case: str, folder: Path, num_bytes: int) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words = [*torchrun, "--nproc-per-node", str(num_ranks), str(RANKS), case, str(folder), str(num_bytes)]
    return ["env", f"PYTHONPATH={ROOT}", "OMP_NUM_THREADS=1", *words]


def _saving(num_ranks: int, case: str, num_bytes: int) -> Command:
    return Command(lambda out: _argv(num_ranks, case, out / "ckpt", num_bytes), reports_itself=True)


def _loading(num_ranks: int, case: str, folder: Path, num_bytes: int) -> Command:
    return Command(lambda out: _argv(num_ranks, case, folder, num_bytes), reports_itself=True)


def _source(files: Files) -> Path:
    """A folder that plain torch.distributed.checkpoint saved from two ranks."""
    folder = files.folder / "ranks.dcp"
    if not folder.exists():
        subprocess.run([*_argv(2, "save-plain", folder, files.gib), "keep"], check=True)
    return folder


def _save(num_ranks: int) -> Callable[[Files], Row]:
    def row(files: Files) -> Row:
        sides = {case: _saving(num_ranks, f"save-{case}", files.gib) for case in ("ptsave", "plain")}
        what = f"`save` of a sharded 1 GiB from {num_ranks} rank{'s' * (num_ranks > 1)}, read back, digests"
        against = "`torch.distributed.checkpoint.save`"
        return Row(sides, [Budget(what, against, wall_ratio("ptsave", "plain"), "×", 1.1)], max_runs=5)

    row.__name__ = f"save_ranks_{num_ranks}"
    return row


def _load(num_ranks: int) -> Callable[[Files], Row]:
    def row(files: Files) -> Row:
        source = _source(files)
        sides = {case: _loading(num_ranks, f"load-{case}", source, files.gib) for case in ("ptsave", "plain")}
        what = f"`load` of a sharded 1 GiB by {num_ranks} rank{'s' * (num_ranks > 1)}, saved by 2"
        against = "`torch.distributed.checkpoint.load`"
        return Row(
            sides,
            [
                Budget(what, against, wall_ratio("ptsave", "plain"), "×", 1.1),
                Budget(f"{what}: the most that a rank's memory grows", "", peak("ptsave"), "MiB"),
            ],
            max_runs=5,
        )

    row.__name__ = f"load_ranks_{num_ranks}"
    return row


ROWS = [make(num_ranks) for make in (_save, _load) for num_ranks in (1, 2, 4)]

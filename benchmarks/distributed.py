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
PLAIN = Path(__file__).with_name("plain_ranks.py")
ROOT = RANKS.parents[1]

WIDTH = 1024
"""Of the layers, which are square."""
LAYER_BYTES = 4 * WIDTH**2

LAYER = f'  {{_target_ = "torch.nn.Linear", _args_ = [{WIDTH}, {WIDTH}]}},\n'
CONFIG = """
[model]
class = "torch.nn.Sequential"

[model.args]
_args_ = [
LAYERS]

[parallel]
wrap = ["torch.nn.Linear"]
"""


def _torchrun(num_ranks: int, *words: object) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    argv = [*torchrun, "--nproc-per-node", str(num_ranks), *map(str, words)]
    return ["env", f"PYTHONPATH={ROOT}", "OMP_NUM_THREADS=1", *argv]


def _inside(num_ranks: int, case: str, folder: Path, num_bytes: int) -> list[str]:
    return _torchrun(num_ranks, RANKS, case, folder, num_bytes)


def _source(files: Files) -> Path:
    """A folder that plain torch.distributed.checkpoint saved from two ranks."""
    folder = files.folder / "ranks.dcp"
    if not folder.exists():
        subprocess.run([*_inside(2, "save-plain", folder, files.gib), "keep"], check=True)
    return folder


def _num_layers(files: Files) -> int:
    return max(1, files.gib // LAYER_BYTES)


def _config(files: Files) -> Path:
    """The model of that folder, each layer a unit of its own."""
    path = files.folder / "ranks.toml"
    path.write_text(CONFIG.replace("LAYERS", LAYER * _num_layers(files)))
    return path


def _save(num_ranks: int) -> Callable[[Files], Row]:
    def row(files: Files) -> Row:
        config, source, gib = _config(files), _source(files), files.gib
        layers = _num_layers(files)

        def ptsave(out: Path) -> list[str]:
            words = ("save", "-q", config, out / "ckpt", "--weights", source)
            return _torchrun(num_ranks, "-m", "ptsave", *words)

        sides = {
            "ptsave": Command(ptsave),
            "plain": Command(lambda out: _torchrun(num_ranks, PLAIN, "save", source, out / "ckpt", layers)),
            "ptsave-inside": Command(
                lambda out: _inside(num_ranks, "save-ptsave", out / "ckpt", gib), reports_itself=True
            ),
            "plain-inside": Command(
                lambda out: _inside(num_ranks, "save-plain", out / "ckpt", gib), reports_itself=True
            ),
        }
        what = f"`torchrun -m ptsave save` of 1 GiB, {_ranks(num_ranks)}, from DCP"
        inside = f"the writing alone, {_ranks(num_ranks)}, read back, digests"
        return Row(
            sides,
            [
                Budget(what, "a script on DCP and FSDP2", wall_ratio("ptsave", "plain"), "×", 1.1),
                Budget(inside, "`dcp.save`", wall_ratio("ptsave-inside", "plain-inside"), "×"),
            ],
            max_runs=5,
        )

    row.__name__ = f"save_ranks_{num_ranks}"
    return row


def _load(num_ranks: int) -> Callable[[Files], Row]:
    def row(files: Files) -> Row:
        config, source, gib = _config(files), _source(files), files.gib
        layers = _num_layers(files)
        words = ("load", "-q", source, "-c", config)
        sides = {
            "ptsave": Command(lambda out: _torchrun(num_ranks, "-m", "ptsave", *words)),
            "plain": Command(lambda out: _torchrun(num_ranks, PLAIN, "load", source, "-", layers)),
            "ptsave-inside": Command(
                lambda out: _inside(num_ranks, "load-ptsave", source, gib), reports_itself=True
            ),
            "plain-inside": Command(
                lambda out: _inside(num_ranks, "load-plain", source, gib), reports_itself=True
            ),
        }
        what = f"`torchrun -m ptsave load` of 1 GiB, {_ranks(num_ranks)}, saved by 2"
        inside = f"the reading alone, {_ranks(num_ranks)}, CRCs checked"
        return Row(
            sides,
            [
                Budget(what, "a script on DCP and FSDP2", wall_ratio("ptsave", "plain"), "×", 1.1),
                Budget(inside, "`dcp.load`", wall_ratio("ptsave-inside", "plain-inside"), "×"),
                Budget(f"{inside}: the most that a rank's memory grows", "", peak("ptsave-inside"), "MiB"),
            ],
            max_runs=5,
        )

    row.__name__ = f"load_ranks_{num_ranks}"
    return row


def stall_ranks_2(files: Files) -> Row:
    """What a save of a training keeps the loop."""
    gib = files.gib
    sides = {
        "ptsave": Command(lambda out: _inside(2, "stall-ptsave", out / "run", gib), reports_itself=True),
        "plain": Command(lambda out: _inside(2, "stall-plain", out / "run", gib), reports_itself=True),
    }
    what = f"`Checkpoints.save` of 1 GiB, {_ranks(2)}: the loop's stall"
    return Row(sides, [Budget(what, "DCP's `async_save`", wall_ratio("ptsave", "plain"), "×")], max_runs=5)


def _ranks(number: int) -> str:
    return f"{number} rank{'s' * (number > 1)}"


ROWS = [make(num_ranks) for make in (_save, _load) for num_ranks in (1, 2, 4)]
ROWS.append(stall_ranks_2)

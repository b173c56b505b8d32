"""Rows: how long a training loop stands still while its state is saved; timed inside the process."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.files import Files
from benchmarks.measure import Command
from benchmarks.rows import Budget, Row, wall, wall_ratio

STALLS = Path(__file__).with_name("stalls.py")


def _saving(case: str, num_bytes: int) -> Command:
    def argv(out: Path) -> list[str]:
        return [sys.executable, str(STALLS), case, str(out), str(num_bytes)]

    return Command(argv, reports_itself=True)


def async_save(files: Files) -> Row:
    """From the call to its return, of a save that is not the first one, with no other write in flight."""
    return Row(
        {
            "ptsave": _saving("ptsave", files.gib),
            "first": _saving("ptsave-first", files.gib),
            "torch": _saving("torch", files.gib),
            "dcp": _saving("dcp", files.gib),
        },
        [
            Budget(
                "`Checkpoints.save` 1 GiB, the loop's stall",
                "`torch.save`",
                wall_ratio("ptsave", "torch"),
                "×",
                0.3,
            ),
            Budget("the same", "`torch.distributed.checkpoint.async_save`", wall_ratio("ptsave", "dcp"), "×"),
            Budget("the same", "", wall("ptsave"), "s"),
            Budget("the same, the first save, which allocates the copy", "", wall("first"), "s"),
        ],
        touch_bytes=3 * files.gib,
    )


ROWS = [async_save]

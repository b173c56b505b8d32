"""Rows: `save` and `load` move the same bytes between a live model and a file; timed inside the process."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.files import Files
from benchmarks.measure import Command
from benchmarks.rows import Budget, Row, peak, wall_ratio

INSIDE = Path(__file__).with_name("inside.py")


def _inside(case: str, *arguments: object) -> Command:
    words = [sys.executable, str(INSIDE), case, *map(str, arguments)]
    return Command(lambda out: words, reports_itself=True)


def _saving(case: str, num_bytes: int, sync: str) -> Command:
    def argv(out: Path) -> list[str]:
        return [sys.executable, str(INSIDE), case, str(out / "model.pt"), str(num_bytes), sync]

    return Command(argv, reports_itself=True)


def save_pt(files: Files) -> Row:
    """From memory to a torch zip."""
    return Row(
        {
            "ptsave": _saving("save-ptsave", files.gib, "no-sync"),
            "ptsave-sync": _saving("save-ptsave", files.gib, "sync"),
            "torch": _saving("save-torch", files.gib, "no-sync"),
            "torch-sync": _saving("save-torch", files.gib, "sync"),
        },
        [
            Budget(
                "`save` 1 GiB as `.pt`, in process", "`torch.save`", wall_ratio("ptsave", "torch"), "×", 0.6
            ),
            Budget(
                "the same, fsync on both", "`torch.save`", wall_ratio("ptsave-sync", "torch-sync"), "×", 0.8
            ),
        ],
        touch_bytes=3 * files.gib,
    )


def load_fresh(files: Files) -> Row:
    """From a file into fresh memory."""
    pt, safetensors = files.state(files.gib)
    return Row(
        {
            "ptsave": _inside("load-ptsave", pt),
            "torch": _inside("load-torch", pt),
            "used": _inside("load-ptsave-used", safetensors),
            "safetensors": _inside("load-safetensors", safetensors),
        },
        [
            Budget(
                "`load` 1 GiB `.pt` into fresh memory, CRCs checked",
                "`torch.load`",
                wall_ratio("ptsave", "torch"),
                "×",
                0.7,
            ),
            Budget(
                "`load` 1 GiB safetensors into fresh memory, every byte used",
                "`safetensors.torch.load_file`",
                wall_ratio("used", "safetensors"),
                "×",
            ),
        ],
        touch_bytes=2 * files.gib,
    )


def load_lazy(files: Files) -> Row:
    """Mapped, until every byte was used."""
    pt, safetensors = files.state(files.gib)
    return Row(
        {
            "pt": _inside("lazy-ptsave", pt),
            "safetensors": _inside("lazy-ptsave", safetensors),
            "load_file": _inside("load-safetensors", safetensors),
        },
        [
            Budget(
                f"`load` 1 GiB {name} lazily, until every byte was used",
                "`safetensors.torch.load_file`",
                wall_ratio(side, "load_file"),
                "×",
                0.95,
            )
            for side, name in (("safetensors", "safetensors"), ("pt", "`.pt`"))
        ],
    )


def load_streaming(files: Files) -> Row:
    """Into the tensors of a model that is there."""
    pt, _ = files.state(files.gib)
    return Row(
        {"ptsave": _inside("stream-ptsave", pt), "torch": _inside("copy-torch", pt)},
        [
            Budget(
                "`load` 1 GiB `.pt` into an existing model, peak beyond the model",
                "",
                peak("ptsave"),
                "MiB",
                32,
            ),
            Budget("`torch.load` and copying, peak beyond the model", "", peak("torch"), "MiB"),
            Budget(
                "`load` 1 GiB `.pt` into an existing model, CRCs checked",
                "`torch.load` and copying",
                wall_ratio("ptsave", "torch"),
                "×",
            ),
        ],
        touch_bytes=2 * files.gib,
    )


ROWS = [save_pt, load_fresh, load_lazy, load_streaming]

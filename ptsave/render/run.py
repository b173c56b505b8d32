"""What `inspect` prints for the folder of a training run, and for a plain one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptsave.core.names import escape
from ptsave.render.terminal import out, table
from ptsave.render.words import count, size, value

if TYPE_CHECKING:
    from ptsave.verbs.folders.plain import FolderInspection
    from ptsave.verbs.folders.runs import RunInspection

MAX_OTHERS = 8
"""How many names are shown of the files that nothing looks into."""
MAX_METRICS = 8
"""How many metrics of a run get a column; `--json` has all."""


def show_run(result: RunInspection) -> None:
    """What `inspect` prints for the folder of a run."""
    latest = f"; latest step {result.latest.step}" if result.latest is not None else ""
    number = count(len(result.checkpoints), "checkpoint")
    out(f"{escape(str(result.path))}: run, {number}, {size(result.num_bytes)}{latest}")
    out()
    metrics = result.metrics[:MAX_METRICS]
    has_epochs = any(file.epoch is not None for file in result.checkpoints)
    header = ("name", "step", *["epoch"] * has_epochs, *map(escape, metrics), "size", "health")
    rows = [
        (
            file.path.name,
            str(file.step),
            *["" if file.epoch is None else value(file.epoch)] * has_epochs,
            *(f"{file.metrics[name]:.6g}" if name in file.metrics else "" for name in metrics),
            size(file.num_bytes),
            escape(file.problem) or "opens",
        )
        for file in result.checkpoints
    ]
    table(rows, header, right=range(1, len(header) - 1))
    out()
    if len(result.metrics) > len(metrics):
        out(f"… {count(len(result.metrics) - len(metrics), 'metric')} not shown")
    out("health is what opening a file shows; `ptsave verify` on the folder reads every byte")
    if result.litter:
        out(f"{count(len(result.litter), 'temporary file')} of a writer that was killed, or is at work")


def show_folder(result: FolderInspection) -> None:
    """What `inspect` prints for a plain folder."""
    total = sum(member.num_bytes for member in result.checkpoints)
    number = count(len(result.checkpoints), "checkpoint")
    out(f"{escape(str(result.path))}: folder, {number}, {size(total)}")
    out()
    rows = [
        (escape(member.path.name), "", "", "", escape(member.problem))
        if member.problem
        else (escape(member.path.name), member.format, f"{member.num_tensors:,}", size(member.num_bytes), "")
        for member in result.checkpoints
    ]
    table(rows, ("name", "format", "tensors", "size", ""), right=(2, 3))
    if result.others:
        out()
        out(f"not looked into: {', '.join(map(escape, result.others[:MAX_OTHERS]))}{_more(result.others)}")


def _more(names: Sequence[str]) -> str:
    return f", and {len(names) - MAX_OTHERS} more" if len(names) > MAX_OTHERS else ""

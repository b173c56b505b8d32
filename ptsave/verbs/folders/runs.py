"""inspect on the folder of a training run: its checkpoints, a line each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ptsave.core.address import Location, may_be_folder
from ptsave.core.finding import counted
from ptsave.core.names import escape, html_table
from ptsave.errors import UsageError
from ptsave.formats import FOLDER_FORMATS, run_folder
from ptsave.formats.run_folder import RunFile, list_run, litter_of
from ptsave.storage.opening import open_folder
from ptsave.verbs.request import option

FORMAT = "run"
"""What `format` says in place of a checkpoint's."""


@dataclass(frozen=True)
class RunInspection:
    """What `inspect` says of a run."""

    path: Location
    checkpoints: Sequence[RunFile[Location]]
    """The oldest step first, with those that cannot be used. Of each the frame and the pickle were read."""
    litter: Sequence[Path]
    """Temporary files of killed writers, which the next save removes, or of one that is writing now."""

    def __repr__(self) -> str:
        number = counted(len(self.checkpoints), "checkpoint", "checkpoints")
        return f"<inspection of {escape(str(self.path))!r}: run, {number}>"

    def _repr_html_(self) -> str:
        header = ("name", "step", *self.metrics, "bytes", "problem")
        rows = (
            (
                one.path.name,
                one.step,
                *(one.metrics.get(name, "") for name in self.metrics),
                f"{one.num_bytes:,}",
                one.problem,
            )
            for one in self.checkpoints
        )
        return html_table(repr(self)[1:-1], header, rows, len(self.checkpoints))

    @property
    def latest(self) -> RunFile[Location] | None:
        """The one of the latest step that opens."""
        return next((file for file in reversed(self.checkpoints) if not file.problem), None)

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(file.num_bytes for file in self.checkpoints)

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics, in the order in which they appear."""
        return list(dict.fromkeys(name for file in self.checkpoints for name in file.metrics))


def is_run(path: Location) -> bool:
    """Whether `path` is a folder with a run's checkpoints, and not a checkpoint itself."""
    if not (may_be_folder(path) and run_folder.is_run(path)):
        return False
    with open_folder(path) as folder:
        return not any(known.sniff(folder) for known in FOLDER_FORMATS)


def inspect_run(folder: Location) -> RunInspection:
    """List the checkpoints of a run; no tensor is read.

    Raises: MissingFileError when the folder cannot be listed.
    """
    files = list_run(folder)
    return RunInspection(folder, files, litter_of(folder))


def refuse_flags(folder: Location, flags: Sequence[str]) -> None:
    """Raise UsageError where `flags`, which are about one checkpoint, are used on a run."""
    if flags:
        files = list_run(folder)
        name = files[-1].path.name if files else "step-….pt"
        what = (option(flags[0]), " is about one checkpoint")
        raise UsageError(what, str(folder), f"such as {folder / name}")

"""The folder of a training run: one checkpoint a step, named by it, each found from itself alone.

A checkpoint is a file (`.pt`), or, where many ranks wrote it together, a folder of theirs (`.dcp`). There is
no index: what a run has saved is what lies in its folder, so a crash can leave nothing that contradicts it.
A checkpoint's own `step`, `epoch` and `metrics` are read from itself; no tensor is read.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from ptsave.core.address import Address, Location
from ptsave.errors import MissingFileError, OutOfReachError, PtsaveError
from ptsave.formats import open_checkpoint
from ptsave.formats.folder_files import superfluous
from ptsave.storage.files import InputFolder
from ptsave.storage.opening import open_folder
from ptsave.storage.temporary import temporary_files

FILE_NAME = re.compile(
    r"step-(?P<step>\d{9}|[1-9]\d{9,17})(?:-(?P<number>[2-9]|[1-9]\d{1,8}))?(?P<suffix>\.pt|\.dcp)", re.ASCII
)
"""`step-000000123.pt`; `step-000000123-2.pt` where something else has that name."""
FILE, FOLDER = ".pt", ".dcp"
"""How the names of the two kinds end."""
STEP, EPOCH, METRICS = "step", "epoch", "metrics"
"""The keys of a file's dictionary that are the run's and not the training state's."""
MAX_STEP = 10**18 - 1


Where = TypeVar("Where", bound=Location, covariant=True)
Place = TypeVar("Place", Path, Address, Location)


@dataclass(frozen=True)
class RunFile(Generic[Where]):
    """One checkpoint of a run."""

    path: Where
    step: int
    """The training step that it was saved after: as its name says, and what opens says the same."""
    number: int = 1
    """Tells two files of one step apart."""
    epoch: int | float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    num_bytes: int = 0
    """Of the file, or of all files in the folder."""
    is_ours: bool = False
    """Whether ptsave wrote it, and all that is in it: it has a record."""
    problem: str = ""
    """Why it cannot be used, in words; empty where it opens. Its tensors were not looked at."""

    @property
    def order(self) -> tuple[int, int]:
        """Sorts the files of a run, the oldest step first."""
        return self.step, self.number


def file_name(step: int, number: int = 1, suffix: str = FILE) -> str:
    """What the checkpoint of `step` is called; sorted as text the names are in the order of the steps."""
    return f"step-{step:09d}{suffix}" if number == 1 else f"step-{step:09d}-{number}{suffix}"


def is_run(folder: Location) -> bool:
    """Whether something in `folder` has the name of a run's checkpoint. Never raises."""
    try:
        return any(map(FILE_NAME.fullmatch, _names_in(folder)))
    except (OSError, PtsaveError):
        return False


def _names_in(folder: Location) -> Sequence[str]:
    """Raises: OSError; for an address MissingFileError, UnreadableError."""
    if isinstance(folder, Address):
        with open_folder(folder) as opened:
            return opened.names
    return os.listdir(folder)


def list_run(folder: Place) -> list[RunFile[Place]]:
    """Everything in `folder` that has the name of a run's checkpoint, the oldest step first.

    A missing folder has none.

    Raises: MissingFileError when the folder cannot be listed; OutOfReachError.
    """
    return [read_run_file(path) for path in paths_of_run(folder)]


def paths_of_run(folder: Place) -> list[Place]:
    """The paths in `folder` that have the name of a run's checkpoint, the oldest step first.

    Raises: MissingFileError.
    """
    try:
        names = _names_in(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        what = f"the folder cannot be listed: {error.strerror}"
        raise MissingFileError(what, str(folder), "check its permissions") from None
    return [folder / name for name in sorted(filter(FILE_NAME.fullmatch, names), key=order_of)]


def order_of(name: str) -> tuple[int, int, str]:
    """What sorts the names of a run's files, the oldest step first."""
    parts = FILE_NAME.fullmatch(name)
    assert parts is not None
    return int(parts["step"]), int(parts["number"] or 1), parts["suffix"]


def litter_of(folder: Location) -> list[Path]:
    """What writers of the run's checkpoints that were killed, or are writing now, have in `folder`.

    In a store what is unfinished has no name there. Raises: OSError.
    """
    if isinstance(folder, Address):
        return []
    return sorted(temporary_files(folder, FILE_NAME))


def read_run_file(path: Place) -> RunFile[Place]:
    """What the checkpoint at `path`, which has the name of one, says of itself.

    Reads the table of the tensors and the plain data, and checks their CRC-32s. Does not read the tensors.

    Raises: OutOfReachError, which says nothing of the checkpoint.
    """
    parts = FILE_NAME.fullmatch(path.name)
    assert parts is not None
    step, number = int(parts["step"]), int(parts["number"] or 1)

    num_bytes = 0

    def unusable(problem: str) -> RunFile[Place]:
        return RunFile(path, step, number, num_bytes=num_bytes, problem=problem)

    try:
        if isinstance(path, Address):
            with open_checkpoint(path, at_a_glance=True) as checkpoint:
                root, is_ours = checkpoint.root, checkpoint.record is not None
                folders = [held for held in checkpoint.held if isinstance(held, InputFolder)]
                sizes = {name: folder.size_of(name) or 0 for folder in folders for name in folder.names}
                names, num_bytes = list(sizes), sum(sizes.values()) if folders else checkpoint.source_bytes
            if bool(folders) != (parts["suffix"] == FOLDER):
                return unusable(f"it is not a {'file' if folders else 'folder'}")
            is_ours = is_ours and len(superfluous(names, ())) == len(names)
            return _run_file(path, step, number, root, num_bytes, is_ours)
        mode = os.stat(path).st_mode
        if parts["suffix"] == FILE and not stat.S_ISREG(mode):
            return unusable("it is not a file")
        if parts["suffix"] == FOLDER and not stat.S_ISDIR(mode):
            return unusable("it is not a folder")
        files = [path] if stat.S_ISREG(mode) else [path / name for name in os.listdir(path)]
        num_bytes = sum(file.lstat().st_size for file in files)
        with open_checkpoint(path) as checkpoint:
            root, is_ours = checkpoint.root, checkpoint.record is not None
        if stat.S_ISDIR(mode):
            names = [file.name for file in files]
            is_ours = is_ours and len(superfluous(names, ())) == len(names)
    except OutOfReachError:
        raise
    except PtsaveError as error:
        return unusable(error.what)
    except OSError as error:
        return unusable(f"cannot be read: {error.strerror}")
    return _run_file(path, step, number, root, num_bytes, is_ours)


def _run_file(
    path: Place, step: int, number: int, root: Any, num_bytes: int, is_ours: bool
) -> RunFile[Place]:
    """What `root`, read from `path`, says of itself."""
    problem = ""
    if not isinstance(root, dict) or type(root.get(STEP)) is not int:
        problem = "it is not a training checkpoint: it says no step"
    elif root[STEP] != step:
        problem = f"it says that it is of step {root[STEP]}"
    if problem:
        return RunFile(path, step, number, num_bytes=num_bytes, problem=problem)
    epoch, metrics = root.get(EPOCH), root.get(METRICS)
    return RunFile(
        path,
        step,
        number,
        epoch if isinstance(epoch, (int, float)) and not isinstance(epoch, bool) else None,
        _numbers_in(metrics),
        num_bytes,
        is_ours,
    )


def _numbers_in(metrics: Any) -> dict[str, float]:
    """The metrics that are numbers, and no larger than a float."""
    numbers: dict[str, float] = {}
    for name, value in metrics.items() if isinstance(metrics, dict) else ():
        if isinstance(value, (int, float)):
            with suppress(OverflowError):
                numbers[str(name)] = float(value)
    return numbers

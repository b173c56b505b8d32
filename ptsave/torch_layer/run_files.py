"""The files of a run as its keeper sees them: what is usable, where the next one goes, and which ones go."""

from __future__ import annotations

import os
import platform
import stat
import threading
from dataclasses import replace
from pathlib import Path

import torch

import ptsave
from ptsave.core import system
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.record import Record
from ptsave.core.temporary import remove_litter_of
from ptsave.core.write_errors import errors_of
from ptsave.errors import NoRoomError, WriteError
from ptsave.formats.base import WriteOptions
from ptsave.formats.run_folder import FILE_NAME, Fingerprint, Known, RunFile, file_name, fingerprint, list_run
from ptsave.formats.torch_zip_write import write
from ptsave.torch_layer.retention import Retention
from ptsave.torch_layer.whole import is_whole


class RunFiles:
    """The checkpoints in one folder. Nothing is remembered of them that is not read from them."""

    def __init__(self, folder: Path, retention: Retention) -> None:
        self.folder = folder
        self.notes: list[str] = []
        """What a write in the background has to say."""
        self._retention = retention
        self._known: Known = {}
        self._damaged: dict[Path, tuple[Fingerprint, str]] = {}
        self._whole: dict[Path, Fingerprint] = {}
        self._lock = threading.Lock()

    def all(self) -> list[RunFile]:
        """Every file that has the name of a checkpoint, the oldest step first.

        Raises: MissingFileError when the folder cannot be listed.
        """
        with self._lock:
            files = list_run(self.folder, self._known)
            return [self._with_damage(file) for file in files]

    def usable(self) -> list[RunFile]:
        """Those that open, less those that turned out to be damaged; the oldest step first."""
        return [file for file in self.all() if not file.problem]

    def _with_damage(self, file: RunFile) -> RunFile:
        found, problem = self._damaged.get(file.path, (None, ""))
        if found is None or file.problem or found != fingerprint(file.path):
            return file
        return replace(file, problem=problem)

    def note_damaged(self, path: Path, problem: str) -> None:
        """Remember that the file now at `path` cannot be used."""
        if (found := fingerprint(path)) is not None:
            self._damaged[path] = found, problem

    def note_whole(self, path: Path) -> None:
        """Remember that every byte of the file now at `path` was just read and was right."""
        if (found := fingerprint(path)) is not None:
            self._whole[path] = found

    def _is_whole(self, file: RunFile) -> bool:
        found = fingerprint(file.path)
        if found is not None and self._whole.get(file.path) == found:
            return True
        if is_whole(file.path):
            self.note_whole(file.path)
            return True
        self.note_damaged(file.path, "its bytes are damaged")
        return False

    # --- writing

    def write(self, state: Checkpoint, step: int) -> None:
        """Write `state` as the checkpoint of `step`; when it is durably in place, remove what it supersedes.

        What killed writers left is removed. Where the disk is full, so are the oldest ones that need not be
        kept, as long as one that is whole remains.

        Raises: WriteError; nothing was removed then but to make room.
        """
        self._make_folder()
        with errors_of(self.folder):
            remove_litter_of(self.folder, FILE_NAME)
        state.path = path = self._place(step)
        state.record = Record(environment=_environment())
        while True:
            try:
                write(state, path, WriteOptions(overwrite=True))
            except NoRoomError:
                if not self._make_room(path):
                    raise
            else:
                break
        self.note_whole(path)
        for file in self._retention.superseded(self.all(), path):
            self._remove(file)

    def _make_folder(self) -> None:
        if self.folder.is_dir():
            return
        if os.path.lexists(self.folder):
            raise WriteError("is no folder", str(self.folder), "remove it, or name another folder")
        with errors_of(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            system.sync_folder(self.folder.parent)

    def _place(self, step: int) -> Path:
        """The name that the checkpoint of `step` takes: another one where something that is no file has it.

        A file with further hard links is left alone as well: they are someone's copy of it.
        """
        number = 1
        while True:
            path = self.folder / file_name(step, number)
            try:
                status = os.lstat(path)
            except OSError:
                return path
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                return path
            number += 1

    def _make_room(self, place: Path) -> bool:
        """Remove the oldest checkpoint that need not be kept; False where there is none."""
        files = [file for file in self.usable() if file.path != place]
        survivor = next((file for file in reversed(files) if self._is_whole(file)), None)
        if survivor is None:
            return False
        kept = {file.path for file in (survivor, *self._retention.favourites(files))}
        for file in files:
            if file.is_ours and file.path not in kept and file.order < survivor.order and self._remove(file):
                self.notes.append(f"the disk is full: removed {file.path.name} to make room for {place.name}")
                return True
        return False

    def _remove(self, file: RunFile) -> bool:
        try:
            os.unlink(file.path)
        except FileNotFoundError:
            return True
        except OSError as error:
            self.notes.append(f"cannot remove {file.path}: {error.strerror}")
            return False
        return True


def _environment() -> dict[str, str]:
    return {
        "ptsave": ptsave.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
    }

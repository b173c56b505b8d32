"""The files of a run as its keeper sees them: what is usable, where the next one goes, and which ones go."""

from __future__ import annotations

import os
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.record import Record
from ptsave.errors import NoRoomError, WriteError
from ptsave.formats.base import WriteOptions
from ptsave.formats.folder_files import DCP_METADATA
from ptsave.formats.run_folder import (
    EPOCH,
    FILE,
    FILE_NAME,
    FOLDER,
    METRICS,
    LocalRunFile,
    RunFile,
    file_name,
    paths_of_run,
    read_run_file,
)
from ptsave.formats.torch.write import write
from ptsave.models.environment import environment
from ptsave.stopping import unfinished
from ptsave.storage import system
from ptsave.storage.atomic_folder import LocalOutputFolder, replacing_folder
from ptsave.storage.temporary import create, discard, remove_litter_of, remove_temporary, temporary_name
from ptsave.storage.turn import Turn
from ptsave.storage.write_errors import errors_of
from ptsave.training.runs.intact import is_intact
from ptsave.training.runs.lock import RunLock, give_back, take
from ptsave.training.runs.retention import Retention

VISIBLE_SECONDS = 10.0
"""How long it may take until all ranks see what one of them has written."""
Fingerprint = tuple[int, int, int]


_holding = Turn()
"""Of the threads that take a folder's lock: a keeper of two holds it once."""


class RunFiles:
    """The checkpoints in one folder. Nothing is remembered of them that is not read from them."""

    def __init__(self, folder: Path, retention: Retention) -> None:
        self.folder = folder
        self.notes: list[str] = []
        """What a write in the background has to say."""
        self._retention = retention
        self._known: dict[Path, tuple[Fingerprint, LocalRunFile]] = {}
        self._whole: dict[Path, Fingerprint] = {}
        self._lock = threading.Lock()
        self._hold: tuple[RunLock, int] | None = None
        """The lock, and the process that took it."""
        self._let_go: Callable[[], object] = lambda: None

    def newest_first(self) -> Iterator[LocalRunFile]:
        """All that have the name of a checkpoint, the latest step first; each is opened as it is reached.

        Raises: MissingFileError when the folder cannot be listed.
        """
        paths = paths_of_run(self.folder)
        with self._lock:
            for gone in (self._known.keys() | self._whole.keys()).difference(paths):
                self._known.pop(gone, None)
                self._whole.pop(gone, None)
        for path in reversed(paths):
            if (file := self._read(path)) is not None:
                yield file

    def usable(self) -> list[LocalRunFile]:
        """Those that open, less those that turned out to be damaged; the oldest step first."""
        return [file for file in self.newest_first() if not file.problem][::-1]

    def _read(self, path: Path) -> LocalRunFile | None:
        """What the file says, which is read once, until another one has the name; None when it is gone."""
        found = _fingerprint(path)
        if found is None:
            return None
        with self._lock:
            known = self._known.get(path)
        if known is None or known[0] != found:
            known = found, read_run_file(path)
            with self._lock:
                self._known[path] = known
        return known[1]

    def note_damaged(self, file: LocalRunFile, problem: str) -> None:
        """Remember that `file` cannot be used, until another one has its name."""
        with self._lock:
            if file.path in self._known:
                found, _ = self._known[file.path]
                self._known[file.path] = found, replace(file, problem=problem)

    def note_intact(self, path: Path) -> None:
        """Remember that every byte of the file now at `path` was just read and was right."""
        if (found := _fingerprint(path)) is not None:
            self._whole[path] = found

    def _is_intact(self, file: LocalRunFile) -> bool:
        found = _fingerprint(file.path)
        if found is not None and self._whole.get(file.path) == found:
            return True
        if is_intact(file.path):
            self.note_intact(file.path)
            return True
        self.note_damaged(file, "its bytes are damaged")
        return False

    # --- who writes

    def hold(self) -> None:
        """Take the folder's lock, made if need be: from here on no other process saves here.

        Raises: RefusedError naming the process that does; WriteError.
        """
        with _holding:
            if self._hold is not None and self._hold[1] == os.getpid() and self._hold[0].is_in_place:
                self._hold[0].check()
                return
            self.let_go()
            self._make_folder()
            lock = take(self.folder)
            self._hold = lock, os.getpid()
            self._let_go = weakref.finalize(self, give_back, lock)

    def let_go(self) -> None:
        """Let another training have the folder."""
        if self._hold is not None and self._hold[1] == os.getpid():
            self._let_go()
        self._hold = None

    # --- the other ranks

    @contextmanager
    def marked(self) -> Iterator[str]:
        """The name of a file that is in the folder meanwhile, by which other ranks see that it is theirs too.

        A killed process leaves one that the next writer removes.

        Raises: WriteError.
        """
        self._make_folder()
        path = temporary_name(self.folder / file_name(0))
        with errors_of(self.folder):
            unfinished.add(str(path))
            fd = create(path, 0o666)
        try:
            yield path.name
        finally:
            os.close(fd)
            with suppress(OSError):
                remove_temporary(path)
            unfinished.discard(str(path))

    def sees(self, name: str) -> bool:
        """Whether a file of that name is in the folder, or comes into it soon: networks take their time."""
        end = time.monotonic() + VISIBLE_SECONDS
        while True:
            with suppress(OSError):
                if name in os.listdir(self.folder):  # which asks a server, where a look at the file may not
                    return True
            if time.monotonic() > end:
                return False
            time.sleep(VISIBLE_SECONDS / 50)

    def listing(self) -> dict[str, int]:
        """The names that checkpoints have, with the sizes of those that are files.

        Raises: MissingFileError when the folder cannot be listed.
        """
        found = {}
        for path in paths_of_run(self.folder):
            with suppress(OSError):
                status = os.lstat(path)
                found[path.name] = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        return found

    # --- writing

    def write(self, state: Checkpoint, step: int) -> None:
        """Write `state` as the checkpoint of `step`; when it is durably in place, remove what it supersedes.

        What killed writers left is removed. Where the disk is full, so are the oldest ones that need not be
        kept, as long as one that is whole remains.

        Raises: WriteError; nothing was removed then but to make room.
        """
        state.path = path = self._prepare(step, FILE)
        state.record = Record(environment=environment())
        while True:
            try:
                write(state, path, WriteOptions(overwrite=True))
            except NoRoomError:
                if not self._make_room(path):
                    raise
            else:
                break
        self._tidy(path)

    @contextmanager
    def open_folder(self, step: int, num_bytes: int) -> Iterator[LocalOutputFolder]:
        """The folder that becomes the checkpoint of `step`, of about `num_bytes` bytes, when it is committed.

        Room is made for it as for a file.

        Raises: WriteError.
        """
        path = self._prepare(step, FOLDER)
        with ExitStack() as opened:
            while True:
                try:
                    folder = opened.enter_context(replacing_folder(path, num_bytes, overwrite=True))
                except NoRoomError:
                    if not self._make_room(path):
                        raise
                else:
                    break
            yield folder

    def note_written(self, path: Path, step: int, tree: Mapping[str, Any]) -> None:
        """Take a folder that is durably in place for the checkpoint of `step`; remove what it supersedes."""
        parts = FILE_NAME.fullmatch(path.name)
        found = _fingerprint(path)
        if parts is not None and found is not None:  # known from here: to read it takes its time
            number = int(parts["number"] or 1)
            num_bytes = sum(file.lstat().st_size for file in path.iterdir())
            file = RunFile(path, step, number, tree.get(EPOCH), tree[METRICS], num_bytes, is_ours=True)
            with self._lock:
                self._known[path] = found, file
        self._tidy(path)

    def _prepare(self, step: int, suffix: str) -> Path:
        """Make the run's folder, remove what killed writers left in it, and find the name for `step`."""
        self.hold()
        self._make_folder()
        with errors_of(self.folder):
            remove_litter_of(self.folder, FILE_NAME)
        return self._place(step, suffix)

    def _tidy(self, just_written: Path) -> None:
        self.note_intact(just_written)
        if self._retention.last is not None:
            for file in self._retention.superseded(self.usable(), just_written):
                self._remove(file)

    def _make_folder(self) -> None:
        if self.folder.is_dir():
            return
        if os.path.lexists(self.folder):
            raise WriteError(
                "the path is not a folder", str(self.folder), "remove it, or name another folder"
            )
        with errors_of(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            system.sync_folder(self.folder.parent)

    def _place(self, step: int, suffix: str) -> Path:
        """The name that the checkpoint of `step` takes: the next one where something else has it.

        A file with further hard links is left alone as well: they are someone's copy of it. After one of the
        other kind comes a later number, so that the newest is the last; a file that is damaged, or that
        another program or a newer ptsave wrote, stays.
        """
        taken = [
            parts for name in os.listdir(self.folder) if (parts := FILE_NAME.fullmatch(name)) is not None
        ]
        others = (int(p["number"] or 1) for p in taken if int(p["step"]) == step and p["suffix"] != suffix)
        number = max(others, default=0) + 1
        while not self._may_be_replaced(path := self.folder / file_name(step, number, suffix)):
            number += 1
        return path

    def _may_be_replaced(self, path: Path) -> bool:
        """Whether a checkpoint may take the name: nothing has it, or only a checkpoint of ours that is whole.

        What is damaged, foreign or of a newer ptsave stays: somebody may want to look at it, or rescue it.
        """
        if not _is_of_its_kind(path):
            return False
        file = self._read(path)
        return file is None or (not file.problem and file.is_ours and self._is_intact(file))

    def _make_room(self, place: Path) -> bool:
        """Remove the oldest checkpoint that need not be kept; False where there is none."""
        files = [file for file in self.usable() if file.path != place]
        survivor = next((file for file in reversed(files) if self._is_intact(file)), None)
        if survivor is None:
            return False
        kept = {file.path for file in (survivor, *self._retention.favourites(files))}
        for file in files:
            if file.is_ours and file.path not in kept and file.order < survivor.order and self._remove(file):
                self.notes.append(f"the disk is full: removed {file.path.name} to make room for {place.name}")
                return True
        return False

    def _remove(self, file: LocalRunFile) -> bool:
        try:
            if file.path.name.endswith(FOLDER):
                discard(file.path)
            else:
                os.unlink(file.path)
        except FileNotFoundError:
            return True
        except OSError as error:
            self.notes.append(f"cannot remove {file.path}: {error.strerror}")
            return False
        return True


def _is_of_its_kind(path: Path) -> bool:
    """Whether nothing has the name, or a file or folder as the name says that is nobody's copy."""
    try:
        status = os.lstat(path)
    except OSError:
        return True
    if path.name.endswith(FOLDER):
        return stat.S_ISDIR(status.st_mode)
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def _fingerprint(path: Path) -> Fingerprint | None:
    """What changes when another checkpoint takes the name; None when there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    with suppress(OSError):
        status = os.lstat(path / DCP_METADATA)
    return status.st_ino, status.st_size, status.st_mtime_ns

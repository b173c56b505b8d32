"""The checkpoints in a run's folder: which are usable, where the next one goes, which are removed."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

from ptsave.core.address import Address, Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.record import Record
from ptsave.errors import (
    ExistsError,
    NoRoomError,
    OutOfReachError,
    PtsaveError,
    UnreadableError,
    WriteError,
)
from ptsave.formats.run_folder import (
    EPOCH,
    FILE,
    FILE_NAME,
    FOLDER,
    METRICS,
    RunFile,
    file_name,
    read_run_file,
)
from ptsave.models.environment import environment
from ptsave.storage.opening import replacing_folder
from ptsave.storage.output import OutputFolder
from ptsave.storage.turn import Turn
from ptsave.training.runs.folders import LocalRunFolder, RunFolder, Seen
from ptsave.training.runs.intact import is_intact
from ptsave.training.runs.lock import Holder, Lock
from ptsave.training.runs.retention import Retention

_holding = Turn()
"""Of the threads that take a folder's lock: a keeper of two holds it once."""


class RunFiles:
    """The checkpoints in one folder. Nothing is remembered of them that is not read from them."""

    def __init__(self, where: Location, retention: Retention) -> None:
        """Raises: RefusedError where nothing can be written there, or the store's library is missing."""
        self.where = where
        self.notes: list[str] = []
        """What a write in the background has to say."""
        self._folder = _folder_at(where)
        self._retention = retention
        self._known: dict[str, tuple[Hashable, RunFile[Location]]] = {}
        """Name → the fingerprint of what was read, and what it says."""
        self._whole: dict[str, Hashable] = {}
        self._lock = threading.Lock()
        self._hold: tuple[Lock, int] | None = None
        """The lock, and the process that took it."""
        self._let_go: Callable[[], object] = lambda: None

    def newest_first(self) -> Iterator[RunFile[Location]]:
        """All that have the name of a checkpoint, the latest step first; each is opened as it is reached.

        Raises: MissingFileError when the folder cannot be listed; OutOfReachError.
        """
        found = self._folder.list()
        with self._lock:
            for gone in (self._known.keys() | self._whole.keys()).difference(found):
                self._known.pop(gone, None)
                self._whole.pop(gone, None)
        for name, seen in reversed([*found.items()]):
            if (file := self._read(name, seen)) is not None:
                yield file

    def usable(self) -> list[RunFile[Location]]:
        """Those that open, less those that turned out to be damaged; the oldest step first."""
        return [file for file in self.newest_first() if not file.problem][::-1]

    def _read(self, name: str, seen: Seen | None = None) -> RunFile[Location] | None:
        """What a checkpoint says, which is read once, until another one has the name; None when it is gone.

        Raises: OutOfReachError.
        """
        seen = seen or self._folder.look(name)
        if seen is None:
            return None
        with self._lock:
            known = self._known.get(name)
        if known is None or known[0] != seen.fingerprint:
            file = read_run_file(self.where / name)
            if file.problem and self._folder.look(name) is None:
                return None  # it went meanwhile
            known = seen.fingerprint, file
            with self._lock:
                self._known[name] = known
        return known[1]

    def note_damaged(self, file: RunFile[Location], problem: str) -> None:
        """Remember that `file` cannot be used, until another one has its name."""
        name = file.path.name
        with self._lock:
            if name in self._known:
                self._known[name] = self._known[name][0], replace(file, problem=problem)

    def note_intact(self, file: RunFile[Location]) -> None:
        """Remember that every byte of `file` was read and was right, until another one has its name."""
        name = file.path.name
        with self._lock:
            if name in self._known:
                self._whole[name] = self._known[name][0]  # as it was before that

    def _is_intact(self, file: RunFile[Location]) -> bool:
        name = file.path.name
        seen = self._folder.look(name)
        if seen is not None and self._whole.get(name) == seen.fingerprint:
            return True
        if seen is not None and is_intact(file.path):
            self._whole[name] = seen.fingerprint
            return True
        self.note_damaged(file, "its bytes are damaged")
        return False

    # --- who writes

    def hold(self) -> None:
        """Take the folder's lock, made if need be: from here on no other process saves here.

        Raises: RefusedError naming the process that does; WriteError.
        """
        self._held()

    def _held(self) -> Lock:
        with _holding:
            if self._hold is not None and self._hold[1] == os.getpid() and self._hold[0].is_in_place:
                self._hold[0].check()
                return self._hold[0]
            self.let_go()
            self._folder.make()
            lock = self._folder.take_lock()
            self._hold = lock, os.getpid()
            self._let_go = weakref.finalize(self, lock.give_back)
            return lock

    def let_go(self) -> None:
        """Let another training have the folder."""
        if self._hold is not None and self._hold[1] == os.getpid():
            self._let_go()
        self._hold = None

    def holder(self) -> Holder | None:
        """Which other process saves here; None where none does, or it cannot be told."""
        return self._folder.holder()

    # --- the other ranks

    @contextmanager
    def marked(self) -> Iterator[str]:
        """Something that is in the folder meanwhile, by which other ranks see that it is theirs too.

        Raises: RefusedError where another training has the folder; WriteError.
        """
        with self._folder.marked() as mark:
            yield mark

    def sees(self, mark: str) -> bool:
        """Whether what `marked` gave is in the folder, or comes into it soon."""
        return self._folder.sees_soon(mark)

    def listing(self) -> dict[str, int]:
        """The names that checkpoints have, with the sizes of those that are files.

        Raises: MissingFileError when the folder cannot be listed; OutOfReachError.
        """
        told = ((name, seen or self._folder.look(name)) for name, seen in self._folder.list().items())
        return {name: seen.num_bytes for name, seen in told if seen is not None}

    # --- writing

    def write(self, state: Checkpoint, step: int) -> None:
        """Write `state` as the checkpoint of `step`; when it is durably in place, remove what it supersedes.

        What killed writers left is removed. Where the disk is full, so are the oldest ones that need not be
        kept, as long as one that is whole remains.

        Raises: WriteError; nothing was removed then but to make room. RefusedError where another training
        has taken the folder.
        """
        state.record = Record(environment=environment())
        last = ""
        while True:
            with self._prepared(step, FILE) as (name, replaces):
                state.path = self.where / name
                try:
                    self._write(state, name, replaces=replaces)
                except ExistsError:  # something came there meanwhile: take the next name
                    if name == last:
                        raise
                    last = name
                else:
                    break
        self._tidy(name)

    def _write(self, state: Checkpoint, name: str, *, replaces: bool) -> None:
        while True:
            try:
                self._folder.write(name, state, self.hold, replaces=replaces)
            except NoRoomError:
                if not self._make_room(name):
                    raise
            else:
                return

    @contextmanager
    def open_folder(self, step: int, num_bytes: int) -> Iterator[OutputFolder]:
        """The folder that becomes the checkpoint of `step`, of about `num_bytes` bytes, when it is committed.

        Room is made for it as for a file.

        Raises: WriteError.
        """
        with self._prepared(step, FOLDER) as (name, replaces), ExitStack() as opened:
            overwrite = replaces or not isinstance(
                self.where, Address
            )  # on a disk the lock keeps others away
            while True:
                try:
                    folder = opened.enter_context(
                        replacing_folder(
                            self.where / name, num_bytes, overwrite=overwrite, before_commit=self.hold
                        )
                    )
                except NoRoomError:
                    if not self._make_room(name):
                        raise
                else:
                    break
            yield folder

    def note_written(self, path: Location, step: int, tree: Mapping[str, Any]) -> None:
        """Take a folder that is durably in place for the checkpoint of `step`; remove what it supersedes."""
        parts = FILE_NAME.fullmatch(path.name)
        assert parts is not None
        with suppress(OutOfReachError):  # known from here: to read it takes its time
            if (seen := self._folder.look(path.name)) is not None:
                number, num_bytes = int(parts["number"] or 1), self._folder.num_bytes_in(path.name)
                file: RunFile[Location] = RunFile(
                    path, step, number, tree.get(EPOCH), tree[METRICS], num_bytes, is_ours=True
                )
                with self._lock:
                    self._known[path.name] = seen.fingerprint, file
        self._tidy(path.name)

    @contextmanager
    def _prepared(self, step: int, suffix: str) -> Iterator[tuple[str, bool]]:
        """Make the run's folder, remove what killed writers left in it, and find the name for `step`.

        In the block, the name is being written: see `_place`.

        Raises: RefusedError; WriteError, for what cannot be listed or read as well.
        """
        lock = self._held()
        self._folder.make()
        self._folder.remove_litter(lock.busy)
        try:
            name, replaces = self._place(step, suffix)
        except UnreadableError as error:
            raise WriteError(error.what, error.where, error.hint) from error
        lock.busy.add(name)
        try:
            yield name, replaces
        finally:
            lock.busy.discard(name)

    def _tidy(self, just_written: str) -> None:
        """Remove what the new checkpoint supersedes; a failure is no failure of its writer."""
        try:
            if (seen := self._folder.look(just_written)) is not None:
                self._whole[just_written] = seen.fingerprint
            if self._retention.last is not None:
                gone = self._retention.superseded(self.usable(), self.where / just_written)
                if gone:
                    self.hold()  # to read of them may have taken its time
                for file in gone:
                    self._remove(file)
        except OutOfReachError as error:
            self.notes.append(f"cannot remove what {just_written} supersedes: {error.what}")

    def _place(self, step: int, suffix: str) -> tuple[str, bool]:
        """The name that the checkpoint of `step` takes, the next one where something else has it; and whether
        it replaces one of ours.

        A file with further hard links is left alone as well: they are someone's copy of it. After one of the
        other kind comes a later number, so that the newest is the last; a file that is damaged, or that
        another program or a newer ptsave wrote, stays.
        """
        found = self._folder.list()
        taken = [parts for name in found if (parts := FILE_NAME.fullmatch(name)) is not None]
        others = (int(p["number"] or 1) for p in taken if int(p["step"]) == step and p["suffix"] != suffix)
        number = max(others, default=0) + 1
        while (name := file_name(step, number, suffix)) in found:
            if self._may_be_replaced(name, found[name]):
                return name, True
            number += 1
        return name, False

    def _may_be_replaced(self, name: str, seen: Seen | None) -> bool:
        """Whether a checkpoint may take the name: nothing has it, or only a checkpoint of ours that is whole.

        What is damaged, foreign or of a newer ptsave stays: somebody may want to look at it, or rescue it.
        """
        seen = seen or self._folder.look(name)
        if seen is None or not seen.may_be_replaced:
            return seen is None
        file = self._read(name, seen)
        return file is None or (not file.problem and file.is_ours and self._is_intact(file))

    def _make_room(self, place: str) -> bool:
        """Remove the oldest checkpoint that need not be kept; False where there is none."""
        files = [file for file in self.usable() if file.path.name != place]
        survivor = next((file for file in reversed(files) if self._is_intact(file)), None)
        if survivor is None:
            return False
        kept = {file.path for file in (survivor, *self._retention.favourites(files))}
        for file in files:
            if file.is_ours and file.path not in kept and file.order < survivor.order and self._remove(file):
                self.notes.append(f"the disk is full: removed {file.path.name} to make room for {place}")
                return True
        return False

    def _remove(self, file: RunFile[Location]) -> bool:
        """Remove a checkpoint; returns whether it is gone, which another thread may have seen to."""
        name = file.path.name
        with self._lock:
            known = self._known.get(name)
        if known is None:
            return True
        try:
            self._folder.remove(name, known[0])
        except PtsaveError as error:
            self.notes.append(f"cannot remove {file.path}: {error.what}")
            return False
        return True


def _folder_at(where: Location) -> RunFolder:
    if isinstance(where, Address):
        from ptsave.training.runs.stores import StoreRunFolder  # imports what talks to stores

        return StoreRunFolder(where)
    return LocalRunFolder(where)

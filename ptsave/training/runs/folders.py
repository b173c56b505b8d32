"""The interface of a run's folder, on a disk or in a store; and the folder on a disk."""

from __future__ import annotations

import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.errors import WriteError
from ptsave.formats.base import WriteOptions
from ptsave.formats.folder_files import DCP_METADATA
from ptsave.formats.run_folder import FILE_NAME, FOLDER, file_name, paths_of_run
from ptsave.formats.torch.write import write
from ptsave.stopping import unfinished
from ptsave.storage.system import disk
from ptsave.storage.temporary import create, discard, remove_litter_of, remove_temporary, temporary_name
from ptsave.storage.write_errors import errors_of, write_error
from ptsave.training.runs.lock import FileLock, Holder, Lock, holder_of, take

VISIBLE_SECONDS = 10.0
"""How long it may take until all ranks see what one of them has written."""


@dataclass(frozen=True)
class Seen:
    """What is told of a checkpoint without opening it."""

    fingerprint: Hashable
    """What changes when another checkpoint takes the name."""
    num_bytes: int = 0
    """Of a file; 0 for a folder."""
    may_be_replaced: bool = True
    """Whether it is a file or a folder, as its name says, and nobody's copy."""


class RunFolder(ABC):
    """The folder of a run. Checkpoints go by their names, and what is there is asked anew each time."""

    where: Location

    @abstractmethod
    def list(self) -> Mapping[str, Seen | None]:
        """What has the name of a checkpoint, the oldest step first; None where `look` has to tell.

        Nothing where there is no folder. Raises: MissingFileError when it cannot be listed; UnreadableError.
        """

    @abstractmethod
    def look(self, name: str) -> Seen | None:
        """What is called `name`; None when nothing is. Raises: UnreadableError."""

    @abstractmethod
    def num_bytes_in(self, name: str) -> int:
        """Of the files of the folder called `name`. Raises: UnreadableError; OSError."""

    @abstractmethod
    def make(self) -> None:
        """See that there is a folder to write to. Raises: WriteError."""

    @abstractmethod
    def remove_litter(self, busy: Collection[str]) -> None:
        """Remove what killed writers left, but for what is being written as a name of `busy`.

        Raises: WriteError.
        """

    @abstractmethod
    def write(
        self, name: str, state: Checkpoint, before_commit: Callable[[], None], *, replaces: bool
    ) -> None:
        """Make `state` what `name` is; durable when it returns. `before_commit` may still refuse.

        `replaces`: whether one is there that it may replace. Raises: ExistsError where one came; WriteError.
        """

    @abstractmethod
    def remove(self, name: str, seen: Hashable) -> None:
        """Remove a checkpoint whose fingerprint is `seen`. It is no error that there is none, or another.

        Raises: WriteError.
        """

    @abstractmethod
    def take_lock(self) -> Lock:
        """The folder's lock, for one more keeper of this process; `lock.give_back` lets go of it.

        Raises: RefusedError where another process has it, naming that; WriteError.
        """

    @abstractmethod
    def holder(self) -> Holder | None:
        """Who holds the lock, of other processes; None where nobody does, or it cannot be told."""

    @abstractmethod
    def marked(self) -> AbstractContextManager[str]:
        """Something that is in the folder meanwhile, by which other ranks see that it is theirs too.

        Raises: WriteError.
        """

    @abstractmethod
    def sees(self, mark: str) -> bool:
        """Whether what `marked` gave is in the folder now. Never raises."""

    def sees_soon(self, mark: str) -> bool:
        """Whether that is in the folder, or comes into it soon: networks take their time."""
        end = time.monotonic() + VISIBLE_SECONDS
        while not self.sees(mark):
            if time.monotonic() > end:
                return False
            time.sleep(VISIBLE_SECONDS / 50)
        return True


class LocalRunFolder(RunFolder):
    """A folder on a disk."""

    where: Path

    def __init__(self, where: Path) -> None:
        self.where = where

    def list(self) -> Mapping[str, Seen | None]:
        return {path.name: None for path in paths_of_run(self.where)}

    def look(self, name: str) -> Seen | None:
        path = self.where / name
        try:
            status = os.lstat(path)
        except OSError:
            return None
        is_folder = stat.S_ISDIR(status.st_mode)
        num_bytes = 0 if is_folder else status.st_size
        is_file = stat.S_ISREG(status.st_mode) and status.st_nlink == 1  # a further link is somebody's copy
        may_be_replaced = is_folder if name.endswith(FOLDER) else is_file
        with suppress(OSError):
            status = os.lstat(path / DCP_METADATA)
        fingerprint = status.st_ino, status.st_size, status.st_mtime_ns
        return Seen(fingerprint, num_bytes, may_be_replaced)

    def num_bytes_in(self, name: str) -> int:
        return sum(file.lstat().st_size for file in (self.where / name).iterdir())

    def make(self) -> None:
        if self.where.is_dir():
            return
        if os.path.lexists(self.where):
            raise WriteError("the path is not a folder", str(self.where), "remove it, or name another folder")
        with errors_of(self.where):
            self.where.mkdir(parents=True, exist_ok=True)
            disk.sync_folder(self.where.parent)

    def remove_litter(self, busy: Collection[str]) -> None:
        with errors_of(self.where):
            remove_litter_of(self.where, FILE_NAME)  # what is being written is locked

    def write(
        self, name: str, state: Checkpoint, before_commit: Callable[[], None], *, replaces: bool
    ) -> None:
        # whatever `replaces` says: the lock keeps others away, and what is there was looked at
        write(state, self.where / name, WriteOptions(overwrite=True, before_commit=before_commit))

    def remove(self, name: str, seen: Hashable) -> None:
        path = self.where / name
        try:
            if name.endswith(FOLDER):
                discard(path)
            else:
                os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise write_error(path, error) from None

    def take_lock(self) -> Lock:
        with errors_of(self.where):
            status = os.stat(self.where)
        return take((status.st_dev, status.st_ino), lambda: FileLock(self.where))

    def holder(self) -> Holder | None:
        return holder_of(self.where)

    @contextmanager
    def marked(self) -> Iterator[str]:
        """A file. A killed process leaves one that the next writer removes."""
        self.make()
        path = temporary_name(self.where / file_name(0))
        with errors_of(self.where):
            unfinished.add(str(path))
            fd = create(path, 0o666)
        try:
            yield path.name
        finally:
            os.close(fd)
            with suppress(OSError):
                remove_temporary(path)
            unfinished.discard(str(path))

    def sees(self, mark: str) -> bool:
        with suppress(OSError):
            return mark in os.listdir(self.where)  # which asks a server, where a look at the file may not
        return False

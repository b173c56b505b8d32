"""The folder of a run in an object store, without a copy on this disk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress

from ptsave.core.address import Address
from ptsave.core.checkpoint import Checkpoint
from ptsave.errors import PtsaveError
from ptsave.formats.base import WriteOptions
from ptsave.formats.folder_files import DCP_METADATA
from ptsave.formats.run_folder import FILE_NAME, FOLDER, order_of
from ptsave.formats.torch.write import write
from ptsave.storage.remote.file import version_at
from ptsave.storage.remote.folder import listed
from ptsave.storage.remote.store import Version, store_of
from ptsave.storage.upload.store import Conflict, asked, store_with_conditions
from ptsave.training.runs.folders import RunFolder, Seen
from ptsave.training.runs.lease import StoreLease, holder_at, token_at
from ptsave.training.runs.lock import Holder, Lock, take

_NO_FOLDER = Seen("folder")
"""Of a folder whose main file is not there."""
_TIDY_SECONDS = 20.0
"""How long to try what is only tidying up."""


class StoreRunFolder(RunFolder):
    """A folder of objects."""

    where: Address

    def __init__(self, where: Address) -> None:
        """Raises: RefusedError where nothing can be written, or the store's library is not installed."""
        self.where = where
        self._uploads = store_with_conditions(where)
        self._store = store_of(where)

    def list(self) -> Mapping[str, Seen | None]:
        found: dict[str, Seen | None] = {}
        for one in listed(self._store, self.where):
            parts = FILE_NAME.fullmatch(one.name)
            if parts is not None and one.is_folder == (parts["suffix"] == FOLDER):
                found[one.name] = _seen(Version(one.size_bytes, one.tag)) if one.tag else None
            elif parts is not None:
                found.setdefault(one.name, Seen("another kind", may_be_replaced=False))
        return {name: found[name] for name in sorted(found, key=order_of)}

    def look(self, name: str) -> Seen | None:
        main = self._main(name)
        version = version_at(self._store, main)
        if version is not None:
            return Seen(_seen(version).fingerprint) if name.endswith(FOLDER) else _seen(version)
        if name.endswith(FOLDER) and self._is_content(name):
            return _NO_FOLDER
        return None

    def _is_content(self, name: str) -> bool:
        """Whether a folder without its main file has anything but what a killed writer has left."""
        folder = self.where / name
        for one in listed(self._store, folder):
            found = asked(folder, lambda: self._uploads.look(folder / one.name))  # noqa: B023
            if found is not None and (found.label is None or not found.label.is_data):
                return True
        return False

    def num_bytes_in(self, name: str) -> int:
        return sum(one.size_bytes for one in listed(self._store, self.where / name))

    def _main(self, name: str) -> Address:
        """The object of which a checkpoint has one version."""
        return self.where / name / DCP_METADATA if name.endswith(FOLDER) else self.where / name

    def make(self) -> None:
        """There are no folders; the bucket must be there."""

    def remove_litter(self, busy: Collection[str]) -> None:
        def is_left(name: str) -> bool:
            return FILE_NAME.fullmatch(name) is not None and name not in busy

        with suppress(PtsaveError):  # who may write may not always list, and litter is not in our way
            for upload in asked(
                self.where, lambda: [*self._uploads.abandoned_in(self.where, is_left)], _TIDY_SECONDS
            ):
                with suppress(PtsaveError):
                    asked(upload.address, lambda: self._uploads.abort(upload), _TIDY_SECONDS)  # noqa: B023
        with suppress(PtsaveError):
            for name in self.list():
                if name.endswith(FOLDER) and name not in busy and self.look(name) is None:
                    self._remove_all(name)

    def write(
        self, name: str, state: Checkpoint, before_commit: Callable[[], None], *, replaces: bool
    ) -> None:
        write(state, self.where / name, WriteOptions(overwrite=replaces, before_commit=before_commit))

    def remove(self, name: str, seen: Hashable) -> None:
        main = self._main(name)
        found = asked(main, lambda: self._uploads.look(main))
        if found is None or _seen(found.version).fingerprint != seen:
            return
        with suppress(Conflict):
            asked(main, lambda: self._uploads.remove(main, found))
            if name.endswith(FOLDER):  # without its main file it is there for nobody
                self._remove_all(name)

    def _remove_all(self, name: str) -> None:
        """Remove what is in a folder. Raises: WriteError."""
        folder = self.where / name
        for other in asked(folder, lambda: self._uploads.names(folder)):
            asked(folder, lambda: self._uploads.remove(folder / other))  # noqa: B023

    def take_lock(self) -> Lock:
        return take(self.where, lambda: StoreLease(self.where, self._uploads))

    def holder(self) -> Holder | None:
        return holder_at(self.where)

    @contextmanager
    def marked(self) -> Iterator[str]:
        """The lease: its token is nobody else's."""
        lock = self.take_lock()
        try:
            yield token_at(self.where)
        finally:
            lock.give_back()

    def sees(self, mark: str) -> bool:
        try:
            return token_at(self.where) == mark
        except PtsaveError:
            return False


def _seen(version: Version) -> Seen:
    return Seen((version.tag or version.modified, version.size_bytes), version.size_bytes)

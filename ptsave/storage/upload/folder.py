"""A folder of objects in the making: data under names that are free, and last the one that names them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from isal.isal_zlib import crc32

from ptsave.core.address import Address
from ptsave.errors import ExistsError, PtsaveError, WriteError
from ptsave.storage.output import OutputFile, OutputFolder
from ptsave.storage.upload.file import BRIEFLY_S, UploadFile, removing_abandoned
from ptsave.storage.upload.store import Found, Label, UploadStore, asked


class UploadFolder(OutputFolder):
    """A folder of objects being written, each complete when it is seen.

    Names that readers know are not used again, and no reader knows the new ones before the main object is in
    place. Two writers of one folder meet at the first name of data, which one of them gets; where each is
    several processes, at the main object.
    """

    compares_data = True

    def __init__(
        self,
        store: UploadStore,
        address: Address,
        listed: Mapping[str, Found],
        before_commit: Callable[[], None] | None = None,
    ) -> None:
        """`listed`: what is in it."""
        self.destination: Address = address
        self.place = address
        self.taken = set(listed)
        self.made: list[str] = []
        self._store, self._listed, self._before_commit = store, listed, before_commit
        self._main: tuple[str, Label] | None = None
        self._is_committed = False

    def generation(self, is_of: Callable[[str, int], bool]) -> int:
        """A number that no other writer takes: of two, each could get the name of another data file first,
        and neither would come to its end."""
        return secrets.randbelow(9 * 10**11) + 10**11

    @contextmanager
    def data_file(self, name: str, num_bytes: int) -> Iterator[OutputFile]:
        output = UploadFile(self._store, self.destination / name, num_bytes, None, is_data=True)
        try:
            yield output
            output.finish()
            self.made.append(name)
        except ExistsError:
            raise WriteError(
                "another process is writing in the folder", str(self.destination), "wait until it is done"
            ) from None
        finally:
            output.abort()

    def small_file(self, name: str, data: bytes) -> None:
        with self.data_file(name, len(data)) as output:
            output.write_at(0, data)

    def commit(
        self, main: tuple[str, bytes], beside: Iterable[tuple[str, bytes]] = (), old: Sequence[str] = ()
    ) -> None:
        with removing_abandoned(self._store, self.destination, "", is_folder=True):
            self._put(*main, is_main=True)
        self._is_committed = True
        for name, data in beside:
            try:
                self._put(name, data)
            except WriteError as error:
                error.what = f"the new files are in place, but for {name!r}: {error.what}"
                raise
        for name in old:
            try:
                self._remove(name)
            except WriteError as error:
                raise WriteError(
                    f"the new files are in place, but {name!r} of the old ones stays: {error.what}",
                    str(self.destination),
                    "remove it by hand",
                ) from None

    def _put(self, name: str, data: bytes, *, is_main: bool = False) -> None:
        output = UploadFile(self._store, self.destination / name, len(data), self._listed.get(name))
        output.write_at(0, data)
        output.must_have(crc32(data))
        if is_main:
            self._main = name, output.label
        try:
            output.finish(self._before_commit if is_main else None)
        finally:
            output.abort()

    def _remove(self, name: str) -> None:
        address = self.destination / name
        asked(address, lambda: self._store.remove(address))

    def undo(self) -> None:
        """Remove the new data, unless readers see it already, or may."""
        if self._is_committed or not self.made:
            return
        if self._main is not None:
            name, label = self._main
            try:
                found = asked(self.destination, lambda: self._store.look(self.destination / name))
            except PtsaveError:
                return  # nobody knows; what is left is removed by the next writer
            if found is not None and found.label == label:
                return
        stop: BaseException | None = None
        for name in [*self.made]:
            try:
                self._remove_briefly(name)
            except KeyboardInterrupt as interrupt:  # torchrun stops the ranks when one is gone
                stop = interrupt
                self._remove_briefly(name)
        if stop is not None:
            raise stop

    def _remove_briefly(self, name: str) -> None:
        """Remove a file, if that does not take long: else the next writer does."""
        address = self.destination / name
        with suppress(PtsaveError):
            asked(address, lambda: self._store.remove(address), BRIEFLY_S)

"""A folder of objects: a prefix of keys, a folder of a repository, or what a web server has in one path."""

from __future__ import annotations

import threading

from ptsave.core.address import Address
from ptsave.errors import LimitError, MissingFileError
from ptsave.storage.files import InputFile, InputFolder
from ptsave.storage.local.file import LocalFile
from ptsave.storage.remote.file import RemoteFile, waited
from ptsave.storage.remote.pieces import HELD_BYTES, NUM_REQUESTS
from ptsave.storage.remote.request import Deadline, retried
from ptsave.storage.remote.store import Listed, NoAccessError, Store

MAX_NAMES = 250_000
"""Cap on the names of one folder."""


def listed(store: Store, address: Address) -> list[Listed]:
    """What is directly in the folder at `address`; an object and a folder may have one name.

    Raises: MissingFileError where the bucket is missing; LimitError; UnreadableError.
    """

    def listed_once(deadline: Deadline) -> list[Listed]:
        found: list[Listed] = []
        for one in store.list(address, deadline.wait_s):
            deadline.check()
            found.append(one)
            if len(found) > MAX_NAMES:
                raise LimitError("names_in_a_folder", MAX_NAMES, "more", str(address))
        return found

    deadline = Deadline.begin(address, is_first=True)
    return waited(lambda: retried(listed_once, deadline), deadline)


class RemoteFolder(InputFolder):
    """The objects directly in a folder, listed once; their files are opened by name, and none outside it.

    Where a store cannot be listed (a web server) there are no `names`, and what is opened is asked for.
    """

    num_at_once = NUM_REQUESTS
    is_remote = True

    def __init__(self, store: Store, address: Address, *, by_name: bool = False) -> None:
        """`by_name`: whether a folder that we may not list is one that cannot be listed.

        Raises: MissingFileError when nothing is there; UnreadableError.
        """
        self.path: Address = address
        self.store = store
        self._lock = threading.Lock()
        self._opened: list[tuple[str, InputFile]] = []
        self.listed: dict[str, Listed] = {}
        """By name, folders included."""
        if store.has_folders:
            try:
                self.listed = {one.name: one for one in listed(store, address)}
                if not self.listed:
                    raise MissingFileError("no such object or folder", str(address), "check the address")
            except NoAccessError:
                if not by_name:
                    raise
        self.names = sorted(self.listed)

    def num_side_by_side(self, num_bytes: int) -> int:
        return max(min(self.num_at_once, HELD_BYTES // max(num_bytes, 1)), 1)

    def open(self, name: str, first_bytes: int = 0) -> InputFile:
        self.check_name(name)
        if self.listed and (name not in self.listed or self.listed[name].is_folder):
            raise MissingFileError("no such file", str(self.path / name), "check that the folder is complete")
        if name.endswith((".json", ".metadata")) and name in self.listed:  # an index is read whole
            first_bytes = self.listed[name].size_bytes
        copy = self.store.local(self.path / name)
        file = LocalFile(copy) if copy is not None else RemoteFile(self.store, self.path / name, first_bytes)
        with self._lock:
            self._opened.append((name, file))
        return file

    def size_of(self, name: str) -> int | None:
        found = self.listed.get(name)
        return found.size_bytes if found is not None and not found.is_folder else None

    def folders(self) -> list[str]:
        return [name for name in self.names if self.listed[name].is_folder]

    def inside(self, name: str, *, follows_links: bool = True) -> InputFolder:
        self.check_name(name)
        return RemoteFolder(self.store, self.path / name)

    def check_unchanged(self) -> None:
        for _, file in self._opened:
            file.check_unchanged()

    def check_in_place(self) -> None:
        for _, file in self._opened:
            file.check_in_place()

    def close(self) -> None:
        """Its files stay open."""

"""Files and folders in object stores and on web servers, read by ranges.

    file, folder   what formats read from: `RemoteFile`, `RemoteFolder`
    pieces         which ranges are asked for: neighbours joined, several at a time, in bounded memory
    request        one range: pinned to a version, checked, retried, within a deadline
    store          what every kind of store does: one request for a range, a list of names
    http, s3, …    the kinds of stores; each is imported when an address of its kind is opened

To add a kind of store: one file with a class that is a `Store`, and its line in `store.KINDS`.
"""

from __future__ import annotations

from ptsave.core.address import Address
from ptsave.errors import MissingFileError, UnreadableError
from ptsave.storage.files import InputFile, InputFolder
from ptsave.storage.local.file import LocalFile
from ptsave.storage.local.folder import LocalFolder
from ptsave.storage.remote.file import RemoteFile, waited
from ptsave.storage.remote.folder import RemoteFolder
from ptsave.storage.remote.request import Deadline, retried
from ptsave.storage.remote.store import NoAccessError, Store, store_of

__all__ = ["RemoteFile", "RemoteFolder", "open_address", "open_prefix", "pinned"]


def open_address(address: Address) -> InputFile | InputFolder:
    """Open the object at `address`, or where there is none, the folder of those whose keys begin with it.

    Raises: MissingFileError when there is neither; UnreadableError; RefusedError without the store's library.
    """
    store, address = pinned(address)
    copy = store.local(address)
    if copy is not None:
        return LocalFolder(copy) if copy.is_dir() else LocalFile(copy)
    if address.key and not address.key.endswith("/"):
        try:
            return RemoteFile(store, address)
        except NoAccessError:
            raise
        except MissingFileError:
            if not store.has_folders:
                raise
            try:
                return RemoteFolder(store, address)
            except UnreadableError:
                pass  # what was said of the object itself says more
            raise
    return RemoteFolder(store, address)


def open_prefix(address: Address, *, by_name: bool = False) -> InputFolder:
    """The folder at `address`. `by_name`: even where the store does not let us list it.

    Raises: MissingFileError when nothing is in it; UnreadableError.
    """
    store, address = pinned(address)
    copy = store.local(address)
    return RemoteFolder(store, address, by_name=by_name) if copy is None else LocalFolder(copy)


def pinned(address: Address) -> tuple[Store, Address]:
    """The store that `address` is in, and the address at one commit where the store has branches."""
    store = store_of(address)
    deadline = Deadline.begin(address, is_first=True)
    return store, waited(
        lambda: retried(lambda deadline: store.pinned(address, deadline.wait_s), deadline), deadline
    )

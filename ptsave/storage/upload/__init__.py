"""Writing files and folders to object stores, in parts. They appear when they are complete.

    objects        a file or a folder in a store that takes parts; hub: by one commit of a repository
    file, folder   what formats write to: `UploadFile`, `UploadFolder`
    stream         data of a folder that several processes write
    store          what every kind of store does: one request to put, begin, send, complete or abort
    s3, gcs, azure the kinds of stores; each is imported when an address of its kind is written to
    fs             those file systems of fsspec that can make a file at once: SFTP, and memory

The store itself checks that the destination is empty, or unchanged: these are conditions of the request that
gives an object its name. The metadata of every object names the upload that made it. So when the answer to a
write is lost, ptsave can tell its own object from somebody else's.

To add a kind of store: one file with a class that is an `UploadStore`, and its line in `store.KINDS`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from ptsave.core.address import HUB, Address
from ptsave.storage.output import OutputFile, OutputFolder


class Uploading(Protocol):
    """Functions that write files and folders to a kind of address. Modules implement it."""

    def check_file(self, address: Address, *, overwrite: bool = False) -> object:
        """Raises: RefusedError; ExistsError; WriteError."""

    def replacing_file(
        self,
        address: Address,
        num_bytes: int,
        *,
        overwrite: bool = False,
        before_rename: Callable[[], None] | None = None,
    ) -> AbstractContextManager[OutputFile]:
        """A new file of `num_bytes` bytes, there when the block ends without an error."""
        ...

    def check_folder(self, address: Address, *, overwrite: bool = False) -> object:
        """Raises: RefusedError; ExistsError; WriteError."""

    def check_shared(self, address: Address) -> object:
        """Raises: RefusedError where several processes cannot write one folder."""

    def replacing_folder(
        self,
        address: Address,
        *,
        overwrite: bool = False,
        before_commit: Callable[[], None] | None = None,
    ) -> AbstractContextManager[OutputFolder]:
        """A folder, there when the block has committed it."""
        ...

    def data_stream(
        self, folder: Address, name: str, about_bytes: int
    ) -> AbstractContextManager[io.RawIOBase]:
        """Data of a folder that another process has open for writing, there when the block ends."""
        ...


def uploading(address: Address) -> Uploading:
    """The functions that write to `address`: one commit on the Hub, objects in any other store."""
    if address.scheme == HUB:
        from ptsave.storage.upload import hub

        return hub
    from ptsave.storage.upload import objects

    return objects

"""The one way from a location to what is open for reading: a local or remote file or folder."""

from __future__ import annotations

import os

from ptsave.core.address import Address, Location
from ptsave.errors import MissingFileError
from ptsave.storage.files import InputFile, InputFolder, LocalFile, LocalFolder


def open_input(where: Location) -> InputFile | InputFolder:
    """Open the file or the folder at `where`; an address by its store, which is imported only then.

    Raises: MissingFileError when it is not there or may not be read; UnreadableError when the store does not
    answer; RefusedError when the store's library is not installed.
    """
    if isinstance(where, Address):
        from ptsave.storage.remote import open_address

        return open_address(where)
    if "\0" in str(where):
        raise MissingFileError("no such file", repr(str(where)), "check the path")
    if os.path.isdir(where):  # unlike Path.is_dir, never raises: a name may be too long
        return LocalFolder(where)
    return LocalFile(where)


def open_file(where: Location) -> InputFile:
    """Open the file at `where`.

    Raises: as `open_input`, and MissingFileError for a folder.
    """
    found = open_input(where)
    if isinstance(found, InputFolder):
        found.close()
        raise MissingFileError("cannot read: a directory", str(where), "name a file")
    return found


def open_folder(where: Location) -> InputFolder:
    """List the folder at `where`. Of a web address nothing can be listed: its files are found by name.

    Raises: as `open_input`.
    """
    if isinstance(where, Address):
        from ptsave.storage.remote import open_prefix

        return open_prefix(where)
    return LocalFolder(where)

"""The one way from a location to what is open for reading or writing: a local or remote file or folder."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from ptsave.core.address import HUB, Address, Location, is_named_as_archive, split_member
from ptsave.errors import MissingFileError, RefusedError
from ptsave.storage import atomic, atomic_folder
from ptsave.storage.files import InputFile, InputFolder
from ptsave.storage.local.file import LocalFile
from ptsave.storage.local.folder import LocalFolder
from ptsave.storage.output import OutputFile, OutputFolder
from ptsave.storage.system import naming

if TYPE_CHECKING:
    from ptsave.storage.upload import Uploading


def pinned(where: Location) -> Location:
    """`where` at the commit that its branch is at, for who reads it and then replaces that; else as it is.

    Raises: as `open_input`.
    """
    if not isinstance(where, Address) or where.scheme != HUB:
        return where
    from ptsave.storage.remote import pinned as pin

    return pin(where)[1]


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
    where = naming.reachable(where)
    if os.path.isdir(where):  # unlike Path.is_dir, never raises: a name may be too long
        return LocalFolder(where)
    return LocalFile(where)


def open_outer(where: Location) -> tuple[InputFile | InputFolder, str]:
    """Open what is at `where`, or the archive that has it, with the name of the member; that is empty where
    `where` itself is open.

    A path is what it says where there is such a file, whatever is in its name. Of an address the archive is
    looked for first: its name mostly says no more than where it is.

    Raises: as `open_input`.
    """
    *archives, (_, _) = split_member(where)
    if isinstance(where, Address):
        return _open_outer_address(where) if where.member else (open_input(where), "")
    if archives and not os.path.lexists(where):
        for archive, member in archives:
            if os.path.isfile(str(archive)):
                return open_input(archive), member
    return open_input(where), ""


def _open_outer_address(address: Address) -> tuple[InputFile | InputFolder, str]:
    (archive, member), (whole, _) = split_member(address)
    try:
        found = open_input(archive)
        if isinstance(found, InputFile):
            return found, member
        found.close()
        raise MissingFileError("no such object", str(archive), "check the address")
    except MissingFileError as error:
        try:
            return open_input(whole), ""
        except MissingFileError:
            raise error from None


def open_file(where: Location) -> InputFile:
    """Open the file at `where`.

    Raises: as `open_input`, and MissingFileError for a folder.
    """
    found = open_input(where)
    if isinstance(found, InputFolder):
        found.close()
        raise MissingFileError("cannot read: a directory", str(where), "name a file")
    return found


def open_folder(where: Location, *, by_name: bool = False) -> InputFolder:
    """List the folder at `where`. Of a web address nothing can be listed: its files are found by name.

    `by_name`: whether they may be found by name, too, where the store does not let us list them.

    Raises: as `open_input`.
    """
    if isinstance(where, Address):
        from ptsave.storage.remote import open_prefix

        return open_prefix(where, by_name=by_name)
    return LocalFolder(naming.reachable(where))


def check_file_destination(where: Location, *, overwrite: bool = False) -> None:
    """Find out whether a file can be written to `where`, before work whose result would be lost.

    Raises: RefusedError where it was read; ExistsError; WriteError.
    """
    where = _own_name(where)
    if isinstance(where, Address):
        _uploading(where).check_file(where, overwrite=overwrite)
    else:
        atomic.check_file_destination(where, overwrite=overwrite)


def replacing_file(
    where: Location,
    num_bytes: int,
    *,
    overwrite: bool = False,
    sync: bool = True,
    before_rename: Callable[[], None] | None = None,
) -> AbstractContextManager[OutputFile]:
    """A new file of `num_bytes` bytes that becomes `where` when the block ends without an error.

    On any error, an interrupt included, the old one stands. `sync`: whether it is made durable, which a store
    always does. `before_rename`: what is called last, and may still refuse.

    Raises: ExistsError; WriteError.
    """
    where = _own_name(where)
    if isinstance(where, Address):
        way = _uploading(where)
        return way.replacing_file(where, num_bytes, overwrite=overwrite, before_rename=before_rename)
    return atomic.replacing_file(
        where, num_bytes, overwrite=overwrite, sync=sync, before_rename=before_rename
    )


def write_file(where: Location, data: bytes | bytearray, *, overwrite: bool = False) -> None:
    """Make `data` the whole content of `where`.

    Raises: ExistsError; WriteError.
    """
    with replacing_file(where, len(data), overwrite=overwrite) as output:
        output.reserve()
        output.write_at(0, data)


def check_folder_destination(where: Location, *, overwrite: bool = False) -> None:
    """Find out whether a folder can be written to `where`, before work whose result would be lost.

    Raises: ExistsError when it has content; RefusedError where some of that was read; WriteError.
    """
    where = _own_name(where)
    if isinstance(where, Address):
        _uploading(where).check_folder(where, overwrite=overwrite)
    else:
        atomic_folder.check_folder_destination(where, overwrite=overwrite)


def check_shared_destination(where: Location) -> None:
    """Find out whether several processes can write one folder there.

    Raises: RefusedError.
    """
    if isinstance(where, Address):
        _uploading(where).check_shared(where)


def replacing_folder(
    where: Location,
    num_bytes: int,
    *,
    overwrite: bool = False,
    sync: bool = True,
    before_commit: Callable[[], None] | None = None,
) -> AbstractContextManager[OutputFolder]:
    """A folder of about `num_bytes` bytes that becomes, or is updated in, `where`.

    The block must end with `commit`. On any error before it the old set is untouched. `before_commit`: what
    is called right before readers see the new set, and may still refuse.

    Raises: ExistsError; WriteError.
    """
    where = _own_name(where)
    if isinstance(where, Address):
        return _uploading(where).replacing_folder(where, overwrite=overwrite, before_commit=before_commit)
    return atomic_folder.replacing_folder(
        where, num_bytes, overwrite=overwrite, sync=sync, before_commit=before_commit
    )


def data_stream(
    folder: Location, name: str, about_bytes: int, *, sync: bool = True
) -> AbstractContextManager[io.IOBase]:
    """New data `name` in `folder`, the `place` of an `OutputFolder` that another process has open.

    It is written from end to end, about `about_bytes` of it, and complete when the block ends.

    Raises: WriteError, and OSError on a disk.
    """
    if isinstance(folder, Address):
        return _uploading(folder).data_stream(folder, name, about_bytes)
    return atomic_folder.data_stream(folder / name, sync=sync)


def _own_name(where: Location) -> Location:
    """`where`, which must be the name of something of its own, and not of a member of an archive.

    Raises: RefusedError.
    """
    *archives, (whole, _) = split_member(where)
    is_there = isinstance(where, Path) and os.path.lexists(where)
    for archive, _ in archives if not is_there else ():
        if is_named_as_archive(archive) or (isinstance(archive, Path) and os.path.isfile(archive)):
            raise RefusedError(
                "nothing is written into an archive",
                str(where),
                "write a file of its own, then pack it (zip -0, or tar -rf)",
            )
    return whole


def _uploading(address: Address) -> Uploading:
    """How something comes to `address`; what that takes is imported only then."""
    from ptsave.storage.upload import uploading

    return uploading(address)

"""The directory of an archive that is being recognised: read once, however many formats ask for it."""

from __future__ import annotations

from ptsave.errors import UnreadableError
from ptsave.formats.zip.reader import ZipDirectory, read_directory
from ptsave.own_process import no_garbage_collection
from ptsave.storage.files import InputFile

ZIP_MAGIC = b"PK\3\4"


def directory_of(file: InputFile) -> ZipDirectory:
    """The directory of the archive that fills `file`.

    Raises: as `read_directory`.
    """
    found = file.memo.get("zip directory")
    if not isinstance(found, ZipDirectory):
        with no_garbage_collection():
            found = file.memo["zip directory"] = read_directory(file)
    return found


def sniffed_directory(file: InputFile, head: bytes) -> ZipDirectory | None:
    """The directory, or None where the file is not an archive, or is a damaged one."""
    if not head.startswith(ZIP_MAGIC):
        return None
    try:
        return directory_of(file)
    except UnreadableError:
        return None

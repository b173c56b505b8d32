"""The CRC-32 of an archive's records, checked against what the archive says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ptsave.core.finding import Finding, Kind
from ptsave.core.storage import Storage
from ptsave.errors import CorruptError
from ptsave.formats.zip.reader import ZipDirectory
from ptsave.storage.scan import crc32_of


def check_crcs(directory: ZipDirectory) -> Iterator[Finding]:
    """Findings on all records of one archive."""
    return check_storages((name, directory.storage(name)) for name in directory.entries)


def check_storages(labelled: Iterable[tuple[str, Storage]]) -> Iterator[Finding]:
    """One finding for each storage that is damaged, by its label, and one for all that are not."""
    matching = silent = damaged = 0
    for label, storage in labelled:
        if storage.crc32 is None and storage.file is not None:
            silent += storage.num_bytes > 0  # stored as it is: there is nothing to find out by reading it
            continue
        try:
            found = crc32_of(storage)
        except CorruptError as error:
            damaged += 1
            yield Finding("bytes", "fail", label, Kind.UNREADABLE, facts={"why": error.what})
            continue
        if storage.crc32 is None:
            silent += storage.num_bytes > 0
        elif found == storage.crc32:
            matching += 1
        else:
            damaged += 1
            why = "its bytes do not match their CRC-32"
            yield Finding("bytes", "fail", label, Kind.DAMAGED, facts={"why": why})
    if silent:
        yield Finding("bytes", "skipped", "", Kind.NO_CRC, silent)
    if matching and not damaged:
        yield Finding("bytes", "ok", "", Kind.CRCS_MATCH, matching)

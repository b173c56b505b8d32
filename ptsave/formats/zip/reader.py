"""Zip archives as torch, NumPy and zip tools write them, read so that no two readers can disagree.

Every field that two readers might take from two places must say the same in both: the directory and
each local header, the 32-bit fields and zip64's, the end record and the directory's length. Whatever
differs is refused, so there is only one way to understand an archive that is accepted.

Source: PKWARE APPNOTE.TXT 6.3.10; miniz 3.0.2 as PyTorch builds it (it reads the first of two entries of
one name, finds names without regard to case, never checks a CRC); CPython's `zipfile` (reads the last).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from zlib import crc32 as crc32_of

from ptsave.core.storage import Storage
from ptsave.errors import CorruptError, LimitError
from ptsave.formats.zip.directory import find_directory, parse_directory
from ptsave.formats.zip.fields import DAMAGED, DEFLATED, STORED, Archive, ZipEntry
from ptsave.formats.zip.inflate import InflatedStorage
from ptsave.formats.zip.local import DESCRIPTOR_BYTES, LOCAL_BYTES, LocalHeaders, check_local_headers
from ptsave.storage.files import InputFile
from ptsave.storage.windows import FileStorage

__all__ = ["DEFLATED", "STORED", "ZipDirectory", "ZipEntry", "read_directory"]


@dataclass(slots=True, eq=False)
class ZipDirectory:
    """An archive whose directory has been read and found to agree with itself."""

    file: InputFile
    entries: dict[str, ZipEntry]
    """By name, in the directory's order; folders are left out."""
    headers: LocalHeaders | None
    """The local headers that are still to be checked; None where all were."""
    known_unclaimed_bytes: int
    first_name: str
    """Of the directory's first line, which may be a folder's; empty where there is none."""
    unmarked_names: frozenset[str]
    """Names beyond ASCII that are not marked as UTF-8: zipfile takes them for code page 437."""
    _storages: dict[str, Storage] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def unclaimed_bytes(self) -> int:
        """Bytes between the entries that belong to none of them.

        Raises: CorruptError, UnreadableError where local headers are still to be checked.
        """
        return self.known_unclaimed_bytes if self.headers is None else self.headers.unclaimed_bytes()

    def data_offset(self, name: str) -> int:
        """Where the first byte of the record `name` lies in the file; its local header has been checked.

        Raises: CorruptError, UnreadableError.
        """
        entry = self.entry(name)
        if self.headers is not None:
            self.headers.locate(entry)
        return entry.data_offset

    def entry(self, name: str) -> ZipEntry:
        """The record `name`.

        Raises: CorruptError when there is none.
        """
        try:
            return self.entries[name]
        except KeyError:
            raise CorruptError(f"has no record {name!r}", str(self.file.path), DAMAGED) from None

    def storage(self, name: str) -> Storage:
        """The bytes of the record `name`; the same object each time.

        Raises: CorruptError when there is none.
        """
        found = self._storages.get(name)
        if found is not None:
            return found
        entry = self.entry(name)
        made: Storage
        if entry.method == STORED and self.headers is not None:
            made = RecordStorage(self.file, self.headers, entry)
        elif entry.method == STORED:
            made = FileStorage(self.file, entry.data_offset, entry.num_bytes, entry.crc32)
        else:
            made = InflatedStorage(
                self.file, self.data_offset(name), entry.compressed_bytes, entry.num_bytes, entry.crc32
            )
        with self._lock:
            return self._storages.setdefault(name, made)

    def read(self, name: str, cap_bytes: int) -> bytes:
        """All bytes of the record `name`, its CRC-32 checked where the archive states one.

        Raises: LimitError when it has more than `cap_bytes`; CorruptError when there is no such record,
        or its bytes are damaged.
        """
        entry = self.entry(name)
        where = f"{self.file.path}, record {name!r}"
        if entry.num_bytes > cap_bytes:
            raise LimitError("record_bytes", cap_bytes, entry.num_bytes, where)
        buffer = bytearray(entry.num_bytes)
        self.storage(name).read_into(0, memoryview(buffer))
        data = bytes(buffer)
        if entry.crc32 is not None and crc32_of(data) != entry.crc32:
            raise CorruptError("damaged: the bytes do not match their CRC-32", where, DAMAGED)
        return data


class RecordStorage(Storage):
    """A stored record of an archive on another machine, whose local header is checked when it is read."""

    file: InputFile

    def __init__(self, file: InputFile, headers: LocalHeaders, entry: ZipEntry) -> None:
        self.file = file
        self.num_bytes = entry.num_bytes
        self.crc32 = entry.crc32
        self._headers = headers
        self._entry = entry

    @property
    def offset_bytes(self) -> int:  # type: ignore[override]
        """Where in `file` the record begins. Raises: CorruptError, UnreadableError."""
        self._headers.locate(self._entry)
        return self._entry.data_offset

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        at = self.offset_bytes + offset_bytes
        if offset_bytes < 0 or offset_bytes + len(buffer) > self.num_bytes:
            raise self.file.too_short(at, len(buffer))
        self.file.read_into(at, buffer)

    def remote_place(self) -> tuple[int, int]:
        return id(self.file), self._headers.span(self._entry)[0]

    def expect(self, offset_bytes: int, num_bytes: int) -> None:
        if self._entry.data_offset >= 0:
            self.file.expect([(self._entry.data_offset + offset_bytes, num_bytes)])
            return
        # where it begins is not known yet: it ends before the next header, or before its descriptor
        header, end = self._headers.span(self._entry)
        begin = max(end - self.num_bytes - DESCRIPTOR_BYTES, header)
        extra = min(DESCRIPTOR_BYTES, end - begin - self.num_bytes)
        self.file.expect([(header, LOCAL_BYTES), (begin + offset_bytes, num_bytes + extra)])


def read_directory(file: InputFile, offset_bytes: int = 0, num_bytes: int | None = None) -> ZipDirectory:
    """Read the directory of the archive that fills `file`, or the window of it that is named.

    Time and memory grow with the number of entries that the directory really holds, never with a number
    written in it. The archive must begin at the window's first byte and end at its last: torch does not
    take a file with a prefix for an archive, and what follows the end is damage or a second archive.

    Raises: CorruptError when any two of its statements differ; LimitError past MAX_ENTRIES or
    MAX_DIRECTORY_BYTES; UnreadableError for encryption, splitting and methods other than 0 and 8.
    """
    size = file.size_bytes - offset_bytes if num_bytes is None else num_bytes
    if offset_bytes < 0 or size < 0 or offset_bytes + size > file.size_bytes:
        raise file.too_short(offset_bytes, size)
    archive = Archive(file, offset_bytes, size)
    count, directory_offset, directory_bytes = find_directory(archive)
    block = archive.read(directory_offset, directory_bytes)
    listed, positions = parse_directory(archive, block, count)
    headers, unclaimed = None, 0
    if num_bytes is None and not file.holds(offset_bytes, size):
        headers = LocalHeaders(archive, block, listed, positions, directory_offset)
    else:
        unclaimed = check_local_headers(archive, block, listed, positions, directory_offset)
    entries = {entry.name: entry for entry in listed if not entry.name.endswith("/")}
    unmarked = frozenset(entry.name for entry in listed if entry.is_unmarked)
    return ZipDirectory(file, entries, headers, unclaimed, listed[0].name if listed else "", unmarked)

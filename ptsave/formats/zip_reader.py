"""Zip archives as torch, NumPy and zip tools write them, read so that no two readers can disagree.

Every field that two readers might take from two places must say the same in both: the directory and
each local header, the 32-bit fields and zip64's, the end record and the directory's length. Whatever
differs is refused, so there is only one way to understand an archive that is accepted.

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3 to 4.5; miniz 3.0.2 as PyTorch builds it (finds the last
end record, ignores prefixes, writes zip64 end records always, data descriptors of 16 or 24 bytes, and
an extra field "FB" as padding); CPython's `zipfile`.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from struct import Struct
from zlib import crc32 as crc32_of

from ptsave.core.files import InputFile
from ptsave.core.storage import FileStorage, Storage
from ptsave.errors import CorruptError, LimitError, UnreadableError
from ptsave.formats.inflate import InflatedStorage, check_inflated_size

MAX_ENTRIES = 400_000
"""Cap on the entries of one archive."""
MAX_DIRECTORY_BYTES = 128 * 1024 * 1024
"""Cap on the size of an archive's directory."""

STORED = 0
DEFLATED = 8

_END = Struct("<4s4H2LH")  # signature, 2 disks, 2 counts, directory's bytes and offset, comment length
_END64 = Struct("<4sQ2H2L4Q")  # signature, bytes that follow, 2 versions, 2 disks, 2 counts, bytes, offset
_LOCATOR64 = Struct("<4sLQL")  # signature, disk, offset of _END64, number of disks
_ENTRY = Struct("<4s6H3L5H2L")
_LOCAL = Struct("<4s5H3LH")  # all but the length of the extra field
_LOCAL_BYTES = 30
_LISTED = Struct("<5H3LH")  # the part of an entry in the directory that a local header repeats
_EXTRA = Struct("<2H")
_ENTRY_SIGNATURE = b"PK\1\2"
_LOCAL_SIGNATURE = b"PK\3\4"
_DESCRIPTOR_SIGNATURE = b"PK\7\x08"
_EXTRA_ZIP64 = 0x0001
_EXTRA_UNICODE_PATH = 0x7075
_FULL_16 = 0xFFFF
_FULL_32 = 0xFFFFFFFF

_ODD_PART = re.compile(r"(?:\A|/)(?:\.{0,2}/|\.{1,2}\Z)")
"""A part of a path that is empty, `.` or `..`, so that one file has two names."""

_FLAG_DESCRIPTOR = 0x0008
_FLAG_UTF8 = 0x0800
_FLAGS_KNOWN = 0x0006 | _FLAG_DESCRIPTOR | _FLAG_UTF8  # 0x0006: how hard deflate tried
_FLAGS_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_ATTRIBUTE_FOLDER = 0x10

_NEAR_BYTES = 16 * 1024
_FAR_READ_BYTES = 512
_NEAR_READ_BYTES = 64 * 1024

_DAMAGED = "the file is damaged or was made to mislead; copy or download it again"


@dataclass(slots=True, eq=False)
class ZipEntry:
    """One record of an archive."""

    name: str
    method: int
    """STORED or DEFLATED."""
    crc32: int | None
    """Of the record's bytes; None where the archive does not say (a field of 0 beside some bytes)."""
    compressed_bytes: int
    num_bytes: int
    header_offset: int
    """Of the local header, from the beginning of the file, in bytes."""
    data_offset: int
    """Of the first data byte, from the beginning of the file, in bytes."""


@dataclass(slots=True, eq=False)
class ZipDirectory:
    """An archive whose directory has been read and found to agree with itself."""

    file: InputFile
    entries: dict[str, ZipEntry]
    """By name, in the directory's order; folders are left out."""
    unclaimed_bytes: int
    """Bytes between the entries that belong to none of them."""
    _storages: dict[str, Storage] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def entry(self, name: str) -> ZipEntry:
        """The record `name`.

        Raises: CorruptError when there is none.
        """
        try:
            return self.entries[name]
        except KeyError:
            raise CorruptError(f"has no record {name!r}", str(self.file.path), _DAMAGED) from None

    def storage(self, name: str) -> Storage:
        """The bytes of the record `name`; the same object each time.

        Raises: CorruptError when there is none.
        """
        found = self._storages.get(name)
        if found is not None:
            return found
        entry = self.entry(name)
        made: Storage
        if entry.method == STORED:
            made = FileStorage(self.file, entry.data_offset, entry.num_bytes, entry.crc32)
        else:
            made = InflatedStorage(
                self.file, entry.data_offset, entry.compressed_bytes, entry.num_bytes, entry.crc32
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
            raise CorruptError("damaged: the bytes do not match their CRC-32", where, _DAMAGED)
        return data


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
    archive = _Archive(file, offset_bytes, size)
    count, directory_offset, directory_bytes = _find_directory(archive)
    if directory_bytes > MAX_DIRECTORY_BYTES:
        raise LimitError("directory_bytes", MAX_DIRECTORY_BYTES, directory_bytes, str(file.path))
    if count > MAX_ENTRIES:
        raise LimitError("entries", MAX_ENTRIES, count, str(file.path))
    block = archive.read(directory_offset, directory_bytes)
    listed, positions = _parse_directory(archive, block, count)
    unclaimed = _check_local_headers(archive, block, listed, positions, directory_offset)
    entries = {entry.name: entry for entry in listed if not entry.name.endswith("/")}
    return ZipDirectory(file, entries, unclaimed)


@dataclass(frozen=True, slots=True)
class _Archive:
    """The window of a file that an archive fills; offsets are from the window's beginning."""

    file: InputFile
    offset_bytes: int
    num_bytes: int

    def read(self, offset_bytes: int, num_bytes: int) -> bytes:
        return self.file.read_at(self.offset_bytes + offset_bytes, num_bytes)

    def corrupt(self, what: str, name: str | None = None) -> CorruptError:
        where = str(self.file.path)
        return CorruptError(what, where if name is None else f"{where}, record {name!r}", _DAMAGED)


def _find_directory(archive: _Archive) -> tuple[int, int, int]:
    """The number of entries, the directory's offset and its length, from the end record(s).

    The end record is the last one in the archive, as miniz and CPython look for it, and its comment must
    reach the archive's last byte. A zip64 end record is used whenever its locator is there.
    """
    tail_bytes = min(archive.num_bytes, _END.size + _LOCATOR64.size + _END64.size)
    tail = archive.read(archive.num_bytes - tail_bytes, tail_bytes)
    found = len(tail) - _END.size
    if found < 0 or tail[found : found + 4] != b"PK\5\6":
        tail_bytes = min(archive.num_bytes, _END.size + 0xFFFF + _LOCATOR64.size)
        tail = archive.read(archive.num_bytes - tail_bytes, tail_bytes)
        found = tail.rfind(b"PK\5\6", 0, max(len(tail) - _END.size + 4, 0))
        if found < 0:
            raise CorruptError(
                "truncated: the zip archive has no end record",
                str(archive.file.path),
                "copy or download the file again",
            )
    _, disk, first_disk, here, count, num_bytes, offset, comment_bytes = _END.unpack_from(tail, found)
    extra = len(tail) - found - _END.size - comment_bytes
    if extra != 0:
        what = f"{extra} bytes follow the end of" if extra > 0 else f"{-extra} bytes are missing from"
        raise archive.corrupt(f"{what} the zip archive")
    end = archive.num_bytes - len(tail) + found
    locator = end - _LOCATOR64.size
    if locator >= 0:
        signature, disk64, at, disks = _LOCATOR64.unpack(archive.read(locator, _LOCATOR64.size))
        if signature == b"PK\6\7":
            if disk64 != 0 or disks > 1:
                raise _split(archive)
            narrow = (disk, first_disk, here, count, num_bytes, offset)
            wide = _read_end64(archive, at, locator)
            for value, value64, full in zip(narrow, wide, _FULL_NARROW, strict=True):
                if value not in (full, value64):
                    raise archive.corrupt("the zip archive's two end records differ")
            disk, first_disk, here, count, num_bytes, offset = wide
            end = at
    if disk != 0 or first_disk != 0:
        raise _split(archive)
    if here != count:
        raise archive.corrupt("the zip end record's two counts of entries differ")
    if offset + num_bytes != end:
        raise archive.corrupt("the zip directory does not end where the end record begins")
    if not count * _ENTRY.size <= num_bytes:
        raise archive.corrupt(f"the zip directory of {num_bytes} bytes cannot hold {count} entries")
    return count, offset, num_bytes


_FULL_NARROW = (_FULL_16, _FULL_16, _FULL_16, _FULL_16, _FULL_32, _FULL_32)


def _split(archive: _Archive) -> UnreadableError:
    return UnreadableError(
        "is one part of a split zip archive", str(archive.file.path), "join the parts first (zip -s 0)"
    )


def _read_end64(archive: _Archive, at: int, locator: int) -> tuple[int, int, int, int, int, int]:
    """(disk, first disk, entries here, entries, directory's bytes, directory's offset)."""
    if at + _END64.size > locator:
        raise archive.corrupt("the zip64 end record lies outside the archive")
    signature, length, _, _, *values = _END64.unpack(archive.read(at, _END64.size))
    if signature != b"PK\6\6" or at + 12 + length != locator:
        raise archive.corrupt("the zip64 locator does not point to the zip64 end record")
    disk, first_disk, here, count, num_bytes, offset = values
    return disk, first_disk, here, count, num_bytes, offset


def _parse_directory(archive: _Archive, block: bytes, count: int) -> tuple[list[ZipEntry], list[int]]:
    """The entries with `data_offset` still unknown, and the position of each in `block`."""
    entries: list[ZipEntry] = []
    positions: list[int] = []
    unpack = _ENTRY.unpack_from
    end = len(block)
    at = 0
    for _ in range(count):
        if at + _ENTRY.size > end:
            raise archive.corrupt("the zip directory ends inside an entry")
        fields = unpack(block, at)
        signature, _, _, flags, method, _, _, crc, packed, unpacked = fields[:10]
        name_bytes, extra_bytes, comment_bytes, disk, _, attributes, offset = fields[10:]
        name_end = at + _ENTRY.size + name_bytes
        after = name_end + extra_bytes + comment_bytes
        if signature != _ENTRY_SIGNATURE or after > end:
            raise archive.corrupt(f"the zip directory's entry {len(entries)} is malformed")
        raw_name = block[at + _ENTRY.size : name_end]
        name = raw_name.decode() if raw_name.isascii() else _decode(archive, raw_name, flags)
        if not name or "\\" in name or "\0" in name or _has_odd_part(name):
            raise archive.corrupt("a zip entry's name is not a plain relative path", name)
        if extra_bytes or packed == _FULL_32 or unpacked == _FULL_32 or offset == _FULL_32:
            extra = _extra_fields(archive, block[name_end : name_end + extra_bytes], name)
            if _EXTRA_UNICODE_PATH in extra and extra[_EXTRA_UNICODE_PATH][5:] != raw_name:
                raise archive.corrupt("a zip entry has two names", name)
            unpacked, packed, offset = _widen(archive, (unpacked, packed, offset), extra, name)
        if flags & ~_FLAGS_KNOWN or method not in (STORED, DEFLATED) or disk != 0:
            raise _unsupported(archive, flags, method, disk, name)
        if method == STORED and packed != unpacked:
            raise archive.corrupt("a stored zip entry has two sizes", name)
        if unpacked and (attributes & _ATTRIBUTE_FOLDER or name[-1] == "/"):
            raise archive.corrupt("a zip entry is marked as a folder, yet has bytes", name)
        if method == DEFLATED:
            check_inflated_size(packed, unpacked, f"{archive.file.path}, record {name!r}")
        known = crc if crc or not unpacked else None
        entries.append(ZipEntry(name, method, known, packed, unpacked, offset, -1))
        positions.append(at)
        at = after
    if at != end:
        raise archive.corrupt(f"the zip directory holds more than the {count} entries that it counts")
    # miniz finds names without regard to case, so two that differ in case only are the same name
    if len({entry.name.lower() for entry in entries}) != count:
        times = Counter(entry.name.lower() for entry in entries)
        twice = next(entry.name for entry in entries if times[entry.name.lower()] > 1)
        raise archive.corrupt("the zip archive has two entries of one name", twice)
    return entries, positions


def _has_odd_part(name: str) -> bool:
    # the first tests are quick, and no for nearly all names
    return (name[0] in "./" or "/." in name or "//" in name) and _ODD_PART.search(name) is not None


def _decode(archive: _Archive, raw_name: bytes, flags: int) -> str:
    """A name that is not ASCII: UTF-8 where it is (torch wrote it unmarked once), else code page 437."""
    try:
        return raw_name.decode()
    except UnicodeDecodeError:
        if flags & _FLAG_UTF8:
            raise archive.corrupt("a zip entry's name is not the UTF-8 that it claims to be") from None
        return raw_name.decode("cp437")


def _extra_fields(archive: _Archive, data: bytes, name: str) -> dict[int, bytes]:
    """The extra fields by their number; trailing zeros, which some alignment tools leave, are ignored."""
    found: dict[int, bytes] = {}
    at = 0
    while at + _EXTRA.size <= len(data):
        number, length = _EXTRA.unpack_from(data, at)
        at += _EXTRA.size
        if at + length > len(data):
            raise archive.corrupt("a zip entry's extra field is malformed", name)
        if number in found and number in (_EXTRA_ZIP64, _EXTRA_UNICODE_PATH):
            raise archive.corrupt("a zip entry has two extra fields of one kind", name)
        found[number] = data[at : at + length]
        at += length
    if data[at:].strip(b"\0"):
        raise archive.corrupt("a zip entry's extra field is malformed", name)
    return found


def _widen(
    archive: _Archive, values: tuple[int, int, int], extra: dict[int, bytes], name: str
) -> tuple[int, int, int]:
    """`values` (size, compressed size, offset) with those that are full replaced from zip64's field."""
    wide = extra.get(_EXTRA_ZIP64, b"")
    widened = []
    at = 0
    for value in values:
        if value == _FULL_32:
            if at + 8 > len(wide):
                raise archive.corrupt("a zip entry lacks a size or offset in its zip64 field", name)
            value = int.from_bytes(wide[at : at + 8], "little")
            at += 8
        widened.append(value)
    unpacked, packed, offset = widened
    return unpacked, packed, offset


def _unsupported(archive: _Archive, flags: int, method: int, disk: int, name: str) -> UnreadableError:
    where = f"{archive.file.path}, record {name!r}"
    if flags & _FLAGS_ENCRYPTED:
        return UnreadableError("a zip entry is encrypted", where, "decrypt the archive first")
    if disk != 0:
        return _split(archive)
    if flags & ~_FLAGS_KNOWN:
        return UnreadableError(f"a zip entry has unknown flags 0x{flags:04x}", where, _DAMAGED)
    return UnreadableError(
        f"a zip entry is compressed by method {method}",
        where,
        "only stored and deflated entries are read; unpack and save the checkpoint again",
    )


def _check_local_headers(
    archive: _Archive, block: bytes, entries: list[ZipEntry], positions: list[int], directory_offset: int
) -> int:
    """Hold every local header and data descriptor against the directory; fill in `data_offset`.

    Returns the number of bytes that lie between entries.
    """
    order: list[int] | range = range(len(entries))
    if any(a.header_offset > b.header_offset for a, b in pairwise(entries)):
        order = sorted(order, key=lambda i: entries[i].header_offset)
    base = archive.offset_bytes
    expected = 0  # where the entry before ends
    unclaimed = 0
    head, start, stop = b"", 0, 0  # a piece of the archive, and where it lies
    for rank, i in enumerate(order):
        entry, position = entries[i], positions[i]
        offset = entry.header_offset
        if offset != expected:
            if rank == 0:
                raise archive.corrupt(f"{offset} bytes lie before the first zip entry", entry.name)
            if offset < expected:
                raise archive.corrupt("two zip entries overlap", entry.name)
            unclaimed += offset - expected
        name_bytes = block[position + 28] | block[position + 29] << 8
        name_end = offset + _LOCAL_BYTES + name_bytes
        if name_end > directory_offset:
            raise archive.corrupt("a zip entry's local header lies outside the archive", entry.name)
        if offset < start or name_end > stop:
            next_offset = entries[order[rank + 1]].header_offset if rank + 1 < len(order) else offset
            want = _NEAR_READ_BYTES if next_offset - offset < _NEAR_BYTES else _FAR_READ_BYTES
            head = archive.read(offset, min(max(want, name_end - offset), directory_offset - offset))
            start, stop = offset, offset + len(head)
        at = offset - start
        local = head[at : at + 28]  # all but the extra field's length
        described = block[position + 8] & _FLAG_DESCRIPTOR
        if (
            head[at + _LOCAL_BYTES : name_end - start]
            != block[position + _ENTRY.size : position + _ENTRY.size + name_bytes]
        ):
            raise archive.corrupt("a zip entry has another name in its local header", entry.name)
        data = name_end + (head[at + 28] | head[at + 29] << 8)
        # the two usual cases at the price of one comparison each
        if described:
            usual = (
                local
                == _LOCAL_SIGNATURE
                + block[position + 6 : position + 16]
                + _ZEROS
                + (block[position + 28 : position + 30])
            )
        else:
            usual = local == _LOCAL_SIGNATURE + block[position + 6 : position + 30]
        if not usual:
            extra = (name_end, data - name_end)
            _check_local_header(archive, entry, local, block[position + 6 : position + 30], extra)
        end = data + entry.compressed_bytes
        if end > directory_offset:
            raise archive.corrupt("a zip entry's data lies outside the archive", entry.name)
        if described:
            if end + _DESCRIPTOR_BYTES > stop:
                head = archive.read(end, min(_FAR_READ_BYTES, directory_offset - end))
                start, stop = end, end + len(head)
            tail = head[end - start : end - start + _DESCRIPTOR_BYTES]
            if tail[:16] == _DESCRIPTOR_SIGNATURE + block[position + 16 : position + 28]:
                end += 16
            else:
                end += _descriptor_bytes(archive, entry, tail)
        entry.data_offset = base + data
        entry.header_offset = base + offset
        expected = end
    return unclaimed + directory_offset - expected


_ZEROS = bytes(12)
_DESCRIPTOR_BYTES = 24


def _check_local_header(
    archive: _Archive, entry: ZipEntry, local: bytes, listed: bytes, extra: tuple[int, int]
) -> None:
    """A local header that is not simply the directory's entry: times may differ, and some of the sizes
    may come later (in the descriptor) or stand in the zip64 field (`extra`: its offset and length)."""
    signature, _, flags, method, _, _, crc, packed, unpacked, name_bytes = _LOCAL.unpack(local)
    _, flags_listed, method_listed, _, _, _, _, _, name_bytes_listed = _LISTED.unpack(listed)
    if _FULL_32 in (packed, unpacked):
        fields = _extra_fields(archive, archive.read(*extra), entry.name)
        unpacked, packed, _ = _widen(archive, (unpacked, packed, 0), fields, entry.name)
    later = (0,) if flags & _FLAG_DESCRIPTOR else ()
    if (
        (signature, flags, method) != (_LOCAL_SIGNATURE, flags_listed, method_listed)
        or name_bytes != name_bytes_listed
        or crc not in (entry.crc32 or 0, *later)
        or packed not in (entry.compressed_bytes, *later)
        or unpacked not in (entry.num_bytes, *later)
    ):
        raise archive.corrupt("a zip entry's local header and directory differ", entry.name)


def _descriptor_bytes(archive: _Archive, entry: ZipEntry, tail: bytes) -> int:
    """The length of the data descriptor at the beginning of `tail`, in one of its four forms."""
    crc = (entry.crc32 or 0).to_bytes(4, "little")
    for width in (8, 4):
        if max(entry.compressed_bytes, entry.num_bytes) >> (8 * width):
            continue
        sizes = entry.compressed_bytes.to_bytes(width, "little") + entry.num_bytes.to_bytes(width, "little")
        for signature in (_DESCRIPTOR_SIGNATURE, b""):
            if tail.startswith(signature + crc + sizes):
                return len(signature + crc + sizes)
    raise archive.corrupt("a zip entry's data descriptor and directory differ", entry.name)

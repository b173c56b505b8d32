"""The end records and the directory of a zip archive.

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.12 to 4.3.16; miniz 3.0.2 and CPython's `zipfile` for how
the end record is found.
"""

from __future__ import annotations

import re
from collections import Counter
from struct import Struct

from ptsave.core.caps import room
from ptsave.errors import CorruptError, LimitError, UnreadableError
from ptsave.formats.zip.fields import (
    DAMAGED,
    DEFLATED,
    EXTRA_UNICODE_PATH,
    FLAG_DESCRIPTOR,
    FULL_32,
    LISTED,
    STORED,
    UNFINISHED,
    Archive,
    ZipEntry,
    extra_fields,
    widen,
)
from ptsave.formats.zip.inflate import check_inflated_size, check_inflated_total

MAX_ENTRIES = 250_000
"""Cap on the entries of one archive in a small file."""
MAX_DIRECTORY_BYTES = 64 * 1024 * 1024
"""Cap on the size of an archive's directory in a small file."""
MAX_VERSION = 63
"""Of the zip format, times ten; what CPython's zipfile reads at most."""

_END = Struct("<4s4H2LH")  # signature, 2 disks, 2 counts, directory's bytes and offset, comment length
_END64 = Struct("<4sQ2H2L4Q")  # signature, bytes that follow, 2 versions, 2 disks, 2 counts, bytes, offset
_LOCATOR64 = Struct("<4sLQL")  # signature, disk, offset of _END64, number of disks
_LISTED_SIGNATURE = b"PK\1\2"
_FULL_16 = 0xFFFF
_FULL_NARROW = (_FULL_16, _FULL_16, _FULL_16, _FULL_16, FULL_32, FULL_32)

_ODD_PART = re.compile(r"(?:\A|/)(?:\.{0,2}/|\.{1,2}\Z)")
"""A part of a path that is empty, `.` or `..`, so that one file has two names."""

_FLAG_UTF8 = 0x0800
_FLAGS_KNOWN = 0x0006 | FLAG_DESCRIPTOR | _FLAG_UTF8  # 0x0006: how hard deflate tried
_FLAGS_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_ATTRIBUTE_FOLDER = 0x10


def find_directory(archive: Archive) -> tuple[int, int, int]:
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
                "truncated: the zip archive has no end record, which a save writes last",
                str(archive.file.path),
                UNFINISHED,
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
    if not count * LISTED.size <= num_bytes:
        raise archive.corrupt(f"the zip directory of {num_bytes} bytes cannot hold {count} entries")
    times = room(archive.file.stored_bytes)
    if num_bytes > times * MAX_DIRECTORY_BYTES:
        raise LimitError("directory_bytes", times * MAX_DIRECTORY_BYTES, num_bytes, str(archive.file.path))
    if count > times * MAX_ENTRIES:
        raise LimitError("entries", times * MAX_ENTRIES, count, str(archive.file.path))
    return count, offset, num_bytes


def _split(archive: Archive) -> UnreadableError:
    return UnreadableError(
        "is one part of a split zip archive", str(archive.file.path), "join the parts first (zip -s 0)"
    )


def _read_end64(archive: Archive, at: int, locator: int) -> tuple[int, int, int, int, int, int]:
    """(disk, first disk, entries here, entries, directory's bytes, directory's offset)."""
    if at + _END64.size > locator:
        raise archive.corrupt("the zip64 end record lies outside the archive")
    signature, length, _, _, *values = _END64.unpack(archive.read(at, _END64.size))
    if signature != b"PK\6\6" or at + 12 + length != locator:
        raise archive.corrupt("the zip64 locator does not point to the zip64 end record")
    disk, first_disk, here, count, num_bytes, offset = values
    return disk, first_disk, here, count, num_bytes, offset


def parse_directory(archive: Archive, block: bytes, count: int) -> tuple[list[ZipEntry], list[int]]:
    """The entries with `data_offset` still unknown, and the position of each in `block`."""
    entries: list[ZipEntry] = []
    positions: list[int] = []
    unpack = LISTED.unpack_from
    end = len(block)
    at = 0
    deflated_bytes = inflated_bytes = 0
    for _ in range(count):
        if at + LISTED.size > end:
            raise archive.corrupt("the zip directory ends inside an entry")
        fields = unpack(block, at)
        signature, _, version, flags, method, _, _, crc, packed, unpacked = fields[:10]
        name_bytes, extra_bytes, comment_bytes, disk, _, attributes, offset = fields[10:]
        name_end = at + LISTED.size + name_bytes
        after = name_end + extra_bytes + comment_bytes
        if signature != _LISTED_SIGNATURE or after > end:
            raise archive.corrupt(f"the zip directory's entry {len(entries)} is malformed")
        raw_name = block[at + LISTED.size : name_end]
        is_ascii = raw_name.isascii()
        name = raw_name.decode() if is_ascii else _decode(archive, raw_name, flags)
        if not is_plain_path(name):
            raise archive.corrupt("a zip entry's name is not a plain relative path", name)
        if extra_bytes or packed == FULL_32 or unpacked == FULL_32 or offset == FULL_32:
            extra = extra_fields(archive, block[name_end : name_end + extra_bytes], name)
            if EXTRA_UNICODE_PATH in extra and extra[EXTRA_UNICODE_PATH][5:] != raw_name:
                raise archive.corrupt("a zip entry has two names", name)
            unpacked, packed, offset = widen(archive, (unpacked, packed, offset), extra, name)
        if version & 0xFF > MAX_VERSION:
            where = f"{archive.file.path}, record {name!r}"
            raise UnreadableError("a zip entry needs a newer zip reader than there is", where, DAMAGED)
        if flags & ~_FLAGS_KNOWN or method not in (STORED, DEFLATED) or disk != 0:
            raise _unsupported(archive, flags, method, disk, name)
        if method == STORED and packed != unpacked:
            raise archive.corrupt("a stored zip entry has two sizes", name)
        if unpacked and (attributes & _ATTRIBUTE_FOLDER or name[-1] == "/"):
            raise archive.corrupt("a zip entry is marked as a folder, yet has bytes", name)
        if method == DEFLATED:
            check_inflated_size(packed, unpacked, f"{archive.file.path}, record {name!r}")
            deflated_bytes += packed
            inflated_bytes += unpacked
        known = crc if crc or not unpacked else None
        is_utf8 = is_ascii or name.encode() == raw_name
        unmarked = is_utf8 and not is_ascii and not flags & _FLAG_UTF8
        entries.append(ZipEntry(name, method, known, packed, unpacked, offset, -1, unmarked, is_utf8))
        positions.append(at)
        at = after
    deflated_bytes = min(deflated_bytes, archive.file.stored_bytes)  # they may have been inflated themselves
    check_inflated_total(deflated_bytes, inflated_bytes, str(archive.file.path))
    if at != end:
        raise archive.corrupt(f"the zip directory holds more than the {count} entries that it counts")
    if len({entry.name.lower() for entry in entries}) != count:
        times = Counter(_found_as(entry.name) for entry in entries)
        twice = next((entry.name for entry in entries if times[_found_as(entry.name)] > 1), None)
        if twice is not None:
            raise archive.corrupt("the zip archive has two entries of one name", twice)
    return entries, positions


def _found_as(name: str) -> str:
    """What a name is looked up by: miniz has no regard for case, numpy.load tells W.npy from w.npy."""
    return name if name.endswith(".npy") else name.lower()


def is_plain_path(name: str) -> bool:
    """Whether an entry's name is relative, stays below its folder, and has no second spelling."""
    if not name or "\\" in name or "\0" in name:
        return False
    # the first tests are quick, and no for nearly all names
    return not ((name[0] in "./" or "/." in name or "//" in name) and _ODD_PART.search(name))


def _decode(archive: Archive, raw_name: bytes, flags: int) -> str:
    """A name that is not ASCII: UTF-8 where it is (torch wrote it unmarked once), else code page 437."""
    try:
        return raw_name.decode()
    except UnicodeDecodeError:
        if flags & _FLAG_UTF8:
            raise archive.corrupt("a zip entry's name is not the UTF-8 that it claims to be") from None
        return raw_name.decode("cp437")


def _unsupported(archive: Archive, flags: int, method: int, disk: int, name: str) -> UnreadableError:
    where = f"{archive.file.path}, record {name!r}"
    if flags & _FLAGS_ENCRYPTED:
        return UnreadableError("a zip entry is encrypted", where, "decrypt the archive first")
    if disk != 0:
        return _split(archive)
    if flags & ~_FLAGS_KNOWN:
        return UnreadableError(f"a zip entry has unknown flags 0x{flags:04x}", where, DAMAGED)
    return UnreadableError(
        f"a zip entry is compressed by method {method}",
        where,
        "only stored and deflated entries are read; unpack and save the checkpoint again",
    )

"""What the modules that read zip archives share: an archive, its entries, its extra fields.

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.12 (directory), 4.5 (extra fields).
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from ptsave.errors import CorruptError
from ptsave.storage.files import InputFile

STORED = 0
DEFLATED = 8
FULL_32 = 0xFFFFFFFF
"""In a field of 32 bits: see the zip64 field."""
FLAG_DESCRIPTOR = 0x0008
"""CRC and sizes follow the data; the local header need not have them."""
LISTED = Struct("<4s6H3L5H2L")
"""An entry of the directory, without its name, extra fields and comment."""
DAMAGED = "the file is damaged or was made to mislead; copy or download it again"
UNFINISHED = (
    "the save, copy or download did not finish: use the checkpoint before it, or copy or download it again"
)
EXTRA_UNICODE_PATH = 0x7075

_EXTRA = Struct("<2H")
_EXTRA_ZIP64 = 0x0001


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
    is_unmarked: bool = False
    """Whether the name is beyond ASCII, and not marked as UTF-8."""
    is_utf8: bool = True
    """Whether the archive spells the name in UTF-8; else it is of code page 437."""


@dataclass(frozen=True, slots=True)
class Archive:
    """The window of a file that an archive fills; offsets are from the window's beginning."""

    file: InputFile
    offset_bytes: int
    num_bytes: int

    def read(self, offset_bytes: int, num_bytes: int) -> bytes:
        return self.file.read_at(self.offset_bytes + offset_bytes, num_bytes)

    def corrupt(self, what: str, name: str | None = None) -> CorruptError:
        where = str(self.file.path)
        return CorruptError(what, where if name is None else f"{where}, record {name!r}", DAMAGED)


def extra_fields(archive: Archive, data: bytes, name: str) -> dict[int, bytes]:
    """The extra fields by their number; trailing zeros, which some alignment tools leave, are ignored."""
    found: dict[int, bytes] = {}
    at = 0
    while at + _EXTRA.size <= len(data):
        number, length = _EXTRA.unpack_from(data, at)
        at += _EXTRA.size
        if at + length > len(data):
            raise archive.corrupt("a zip entry's extra field is malformed", name)
        if number in found and number in (_EXTRA_ZIP64, EXTRA_UNICODE_PATH):
            raise archive.corrupt("a zip entry has two extra fields of one kind", name)
        found[number] = data[at : at + length]
        at += length
    if data[at:].strip(b"\0"):
        raise archive.corrupt("a zip entry's extra field is malformed", name)
    return found


def widen(
    archive: Archive, values: tuple[int, int, int], extra: dict[int, bytes], name: str
) -> tuple[int, int, int]:
    """`values` (size, compressed size, offset) with those that are full replaced from zip64's field."""
    wide = extra.get(_EXTRA_ZIP64, b"")
    widened = []
    at = 0
    for value in values:
        if value == FULL_32:
            if at + 8 > len(wide):
                raise archive.corrupt("a zip entry lacks a size or offset in its zip64 field", name)
            value = int.from_bytes(wide[at : at + 8], "little")
            at += 8
        widened.append(value)
    unpacked, packed, offset = widened
    return unpacked, packed, offset

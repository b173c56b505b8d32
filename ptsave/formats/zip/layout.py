"""The frame of a zip archive of stored records whose places are known before their bytes are.

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3 to 4.5; PyTorch's `caffe2/serialize/inline_container.cc`
(the extra field "FB" that aligns a record).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

ALIGN_BYTES = 64
"""Where every record begins, as in torch's own files."""
PAGE_BYTES = 4096
"""Where large records begin, so that they can be mapped and file systems with reflinks can share them."""
CRC32_AT, LISTED_CRC32_AT = 14, 16
"""Where the four bytes of a record's CRC-32 stand in its local header, and in its line in the directory."""
LARGE_BYTES = 64 * 1024

_FLAG_UTF8 = 0x0800
_DATE = (1 << 5) | 1
"""1980-01-01, the first day that a zip can name: the same input gives the same bytes."""
_FULL_16 = 0xFFFF
_FULL_32 = 0xFFFFFFFF
_VERSION, _VERSION_64 = 20, 45
_LOCAL_BYTES, _LISTED_BYTES, _END_BYTES, _END64_BYTES = 30, 46, 22, 56 + 20
"""Of the fixed parts: a local header, a line in the directory, the end record, zip64's two end records."""


@dataclass(slots=True)
class Entry:
    """One stored record."""

    name: str
    num_bytes: int
    header_offset: int
    """Of its local header, in bytes."""
    data_offset: int
    crc32: int = 0

    @property
    def header_bytes(self) -> int:
        return self.data_offset - self.header_offset

    def local_header(self, crc32: int) -> bytes:
        """Everything from `header_offset` to `data_offset`, now that the record's CRC-32 is known."""
        self.crc32 = crc32
        name = self.name.encode()
        size = self.num_bytes
        zip64 = struct.pack("<2H2Q", 1, 16, size, size) if size >= _FULL_32 else b""
        padding = self.header_bytes - _LOCAL_BYTES - len(name) - len(zip64) - 4
        extra = zip64 + b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
        size = min(size, _FULL_32)
        fixed = struct.pack(
            "<4s5H3L2H",
            b"PK\3\4",
            _VERSION_64 if zip64 else _VERSION,
            _FLAG_UTF8,
            0,
            0,
            _DATE,
            self.crc32,
            size,
            size,
            len(name),
            len(extra),
        )
        return fixed + name + extra

    def directory_entry(self) -> bytes:
        """Its line in the directory."""
        name = self.name.encode()
        values = [self.num_bytes] * 2 if self.num_bytes >= _FULL_32 else []
        if self.header_offset >= _FULL_32:
            values.append(self.header_offset)
        extra = struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""
        version = _VERSION_64 if values else _VERSION
        size = min(self.num_bytes, _FULL_32)
        fixed = struct.pack(
            "<4s6H3L5H2L",
            b"PK\1\2",
            version,
            version,
            _FLAG_UTF8,
            0,
            0,
            _DATE,
            self.crc32,
            size,
            size,
            len(name),
            len(extra),
            0,
            0,
            0,
            0,
            min(self.header_offset, _FULL_32),
        )
        return fixed + name + extra


class Frame:
    """Entries one after the other, each aligned, and the directory behind them."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.end = 0
        """Where the next entry's header, or the directory, begins."""
        self._listed_bytes = 0

    def add(self, name: str, num_bytes: int) -> Entry:
        """Set room aside for a record of `num_bytes`."""
        name_bytes = len(name.encode())
        is_large = num_bytes >= _FULL_32
        start = self.end + _LOCAL_BYTES + name_bytes + 4 + (20 if is_large else 0)
        start += -start % (PAGE_BYTES if num_bytes >= LARGE_BYTES else ALIGN_BYTES)
        entry = Entry(name, num_bytes, self.end, start)
        self.entries.append(entry)
        wide = 16 * is_large + 8 * (self.end >= _FULL_32)
        self._listed_bytes += _LISTED_BYTES + name_bytes + (4 + wide if wide else 0)
        self.end = start + num_bytes
        return entry

    @property
    def num_bytes(self) -> int:
        """Of the whole archive."""
        wide = _END64_BYTES if self._is_wide else 0
        return self.end + self._listed_bytes + wide + _END_BYTES

    @property
    def _is_wide(self) -> bool:
        return max(self.end, self._listed_bytes) >= _FULL_32 or len(self.entries) >= _FULL_16

    def directory(self) -> bytes:
        """The directory and the end records, once every CRC-32 is known."""
        body = b"".join(entry.directory_entry() for entry in self.entries)
        assert len(body) == self._listed_bytes
        count, offset = len(self.entries), self.end
        end64 = b""
        if self._is_wide:
            end64 = struct.pack(
                "<4sQ2H2L4Q",
                b"PK\6\6",
                44,
                _VERSION_64,
                _VERSION_64,
                0,
                0,
                count,
                count,
                len(body),
                offset,
            ) + struct.pack("<4sLQL", b"PK\6\7", 0, offset + len(body), 1)
        end = struct.pack(
            "<4s4H2LH",
            b"PK\5\6",
            0,
            0,
            min(count, _FULL_16),
            min(count, _FULL_16),
            min(len(body), _FULL_32),
            min(offset, _FULL_32),
            0,
        )
        return body + end64 + end

"""Every local header and data descriptor of a zip archive, checked against the directory.

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7 and 4.3.9; caffe2/serialize/inline_container.cc and
miniz 3.0.2: torch leaves CRC and sizes out of the local header and writes descriptors of 16 bytes, of 24
where an entry or its offset passes 4 GiB, and pads with an extra field "FB".
"""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import pairwise
from struct import Struct

from ptsave.formats.zip.fields import FLAG_DESCRIPTOR, FULL_32, LISTED, Archive, ZipEntry, extra_fields, widen

_LOCAL = Struct("<4s5H3LH")  # all but the length of the extra field
LOCAL_BYTES = 30
_REPEATED = Struct("<5H3LH")  # the part of an entry in the directory that a local header repeats
_LOCAL_SIGNATURE = b"PK\3\4"
_DESCRIPTOR_SIGNATURE = b"PK\7\x08"
DESCRIPTOR_BYTES = 24
_ZEROS = bytes(12)

_NEAR_BYTES = 16 * 1024
_FAR_READ_BYTES = 512
_NEAR_READ_BYTES = 64 * 1024


def check_local_headers(
    archive: Archive,
    block: bytes,
    entries: list[ZipEntry],
    positions: list[int],
    directory_offset: int,
    begin: int = 0,
) -> int:
    """Check every local header and data descriptor against the directory; fill in `data_offset`.

    `begin`: where the first entry must be. Returns the number of bytes that lie between entries.
    """
    order: list[int] | range = range(len(entries))
    if any(a.header_offset > b.header_offset for a, b in pairwise(entries)):
        order = sorted(order, key=lambda i: entries[i].header_offset)
    base = archive.offset_bytes
    expected = begin  # where the entry before ends
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
        name_end = offset + LOCAL_BYTES + name_bytes
        if name_end > directory_offset:
            raise archive.corrupt("a zip entry's local header lies outside the archive", entry.name)
        if offset < start or name_end > stop:
            next_offset = entries[order[rank + 1]].header_offset if rank + 1 < len(order) else offset
            want = _NEAR_READ_BYTES if next_offset - offset < _NEAR_BYTES else _FAR_READ_BYTES
            head = archive.read(offset, min(max(want, name_end - offset), directory_offset - offset))
            start, stop = offset, offset + len(head)
        at = offset - start
        local = head[at : at + 28]  # all but the extra field's length
        described = block[position + 8] & FLAG_DESCRIPTOR
        if (
            head[at + LOCAL_BYTES : name_end - start]
            != block[position + LISTED.size : position + LISTED.size + name_bytes]
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
            if end + DESCRIPTOR_BYTES > stop:
                head = archive.read(end, min(_FAR_READ_BYTES, directory_offset - end))
                start, stop = end, end + len(head)
            tail = head[end - start : end - start + DESCRIPTOR_BYTES]
            if tail[:16] == _DESCRIPTOR_SIGNATURE + block[position + 16 : position + 28]:
                end += 16
            else:
                end += _descriptor_bytes(archive, entry, end, tail)
        entry.data_offset = base + data
        entry.header_offset = base + offset
        expected = end
    return unclaimed + directory_offset - expected


class LocalHeaders:
    """The local headers of an archive that lies on another machine: each is checked when its record is read.

    To read them all when the archive is opened would take a request for each record.
    """

    def __init__(
        self,
        archive: Archive,
        block: bytes,
        entries: list[ZipEntry],
        positions: list[int],
        directory_offset: int,
    ) -> None:
        self._archive = archive
        self._block = block
        self._place = {id(entry): at for entry, at in zip(entries, positions, strict=True)}
        order = sorted(entries, key=lambda entry: entry.header_offset)
        if order and order[0].header_offset:
            what = f"{order[0].header_offset} bytes lie before the first zip entry"
            raise archive.corrupt(what, order[0].name)
        ends = [*(entry.header_offset for entry in order[1:]), directory_offset]
        self._span: dict[int, tuple[int, int]] = {}
        for entry, end in zip(order, ends, strict=True):
            least = LOCAL_BYTES + len(entry.name) + entry.compressed_bytes
            if end - entry.header_offset < least:
                raise archive.corrupt("two zip entries overlap", entry.name)
            self._span[id(entry)] = entry.header_offset, end
        self._entries = order
        self._lock = threading.Lock()
        self._unclaimed: dict[int, int] = {}

    def span(self, entry: ZipEntry) -> tuple[int, int]:
        """Where the local header of `entry` begins and where the next one does, in the file."""
        begin, end = self._span[id(entry)]
        return self._archive.offset_bytes + begin, self._archive.offset_bytes + end

    def locate(self, entry: ZipEntry) -> None:
        """Check the local header of `entry`, and fill in its `data_offset`.

        Raises: CorruptError, UnreadableError.
        """
        if entry.data_offset >= 0:
            return
        begin, end = self._span[id(entry)]
        found = replace(entry, header_offset=begin)
        left = check_local_headers(self._archive, self._block, [found], [self._place[id(entry)]], end, begin)
        with self._lock:
            self._unclaimed[id(entry)] = left
            entry.header_offset, entry.data_offset = found.header_offset, found.data_offset

    def unclaimed_bytes(self) -> int:
        """The number of bytes that lie between entries; looks at every local header."""
        new = [entry for entry in self._entries if entry.data_offset < 0]
        self._archive.file.expect((self.span(entry)[0], LOCAL_BYTES) for entry in new)
        for entry in self._entries:
            self.locate(entry)
        return sum(self._unclaimed.values())


def _check_local_header(
    archive: Archive, entry: ZipEntry, local: bytes, listed: bytes, extra: tuple[int, int]
) -> None:
    """A local header that is not simply the directory's entry: times may differ, and some of the sizes
    may come later (in the descriptor) or stand in the zip64 field (`extra`: its offset and length)."""
    signature, _, flags, method, _, _, crc, packed, unpacked, name_bytes = _LOCAL.unpack(local)
    _, flags_listed, method_listed, _, _, _, _, _, name_bytes_listed = _REPEATED.unpack(listed)
    if FULL_32 in (packed, unpacked):
        fields = extra_fields(archive, archive.read(*extra), entry.name)
        unpacked, packed, _ = widen(archive, (unpacked, packed, 0), fields, entry.name)
    later = (0,) if flags & FLAG_DESCRIPTOR else ()
    if (
        (signature, flags, method) != (_LOCAL_SIGNATURE, flags_listed, method_listed)
        or name_bytes != name_bytes_listed
        or crc not in (entry.crc32 or 0, *later)
        or packed not in (entry.compressed_bytes, *later)
        or unpacked not in (entry.num_bytes, *later)
    ):
        raise archive.corrupt("a zip entry's local header and directory differ", entry.name)


def _descriptor_bytes(archive: Archive, entry: ZipEntry, at: int, tail: bytes) -> int:
    """The length of the data descriptor at `at`, where `tail` begins, in one of its four forms."""
    crc = (entry.crc32 or 0).to_bytes(4, "little")
    for width in (8, 4):
        if max(entry.compressed_bytes, entry.num_bytes) >> (8 * width):
            continue
        sizes = entry.compressed_bytes.to_bytes(width, "little") + entry.num_bytes.to_bytes(width, "little")
        if tail.startswith(_DESCRIPTOR_SIGNATURE + crc + sizes):
            return 4 + len(crc + sizes)
        # the signature is optional; right before, it says that the data should have ended 4 bytes earlier
        if tail.startswith(crc + sizes) and archive.read(at - 4, 4) != _DESCRIPTOR_SIGNATURE:
            return len(crc + sizes)
    raise archive.corrupt("a zip entry's data descriptor and directory differ", entry.name)

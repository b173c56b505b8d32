"""The form of a torch zip that holds one tensor: all its bytes, less those that differ between tensors.

A checkpoint of many ranks has a hundred thousand such archives of a few shapes. Whoever has checked one of
them need not take the next one apart: where all bytes that say something are the same, so is what they say.
Only the storage's bytes, its CRC-32 and the archive's identity may differ.
"""

from __future__ import annotations

from dataclasses import dataclass

from ptsave.core.nodes import TensorEntry
from ptsave.formats.pickle.inert import Unpickled
from ptsave.formats.zip.directory import find_directory, parse_directory
from ptsave.formats.zip.fields import FLAG_DESCRIPTOR, Archive
from ptsave.formats.zip.reader import ZipDirectory
from ptsave.storage.files import InputFile
from ptsave.storage.windows import FileStorage

MAX_FORM_BYTES = 16 * 1024
"""Cap on what an archive has beside its storage. Torch makes 1.6 KiB of it, ptsave up to 5 KiB of padding."""
_SHORT_BYTES = 4096
"""Shorter archives are read whole: one read in place of two."""

_CRC_BYTES = 4
_CRC_IN_LOCAL = 14
_CRC_IN_LISTED = 16
_FLAGS_IN_LISTED = 8
"""Where the fields of a local header and of a line of the directory lie in it.

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7 and 4.3.12."""
_DESCRIPTOR_SIGNATURE = b"PK\7\x08"


@dataclass(frozen=True, slots=True)
class Form:
    """What archives of one shape and dtype have in common.

    Positions are in the archive without the storage's bytes.
    """

    num_bytes: int
    """Of the archive."""
    head_bytes: int
    """Before the storage."""
    tail_bytes: int
    """After it."""
    fixed: tuple[tuple[int, bytes], ...]
    """The bytes at each position that say something."""
    same: tuple[tuple[int, int], ...]
    """The two places of each CRC-32 that may differ, the storage's first."""
    identity: tuple[int, int]
    """Where the archive's identity lies, which torch reads as text."""
    loaded: Unpickled
    """What the archive says, of the first one's storage."""

    def head_of(self, file: InputFile, offset_bytes: int) -> bytes:
        """What the archive at `offset_bytes` has before its storage; nothing where it is of another form."""
        head = file.read_at(offset_bytes, self.head_bytes)
        is_alike = all(head.startswith(text[: max(len(head) - at, 0)], at) for at, text in self.fixed)
        return head if is_alike else b""

    def read(self, file: InputFile, offset_bytes: int, head: bytes = b"") -> Unpickled | None:
        """What the archive at `offset_bytes` says; None where it is of another form.

        `head`: what it has before its storage, where that was read.
        """
        if self.num_bytes <= _SHORT_BYTES:
            whole = file.read_at(offset_bytes, self.num_bytes)
            bare = whole[: self.head_bytes] + whole[self.num_bytes - self.tail_bytes :]
        else:
            bare = head or file.read_at(offset_bytes, self.head_bytes)
            bare += file.read_at(offset_bytes + self.num_bytes - self.tail_bytes, self.tail_bytes)
        for at, text in self.fixed:
            if not bare.startswith(text, at):
                return None
        if not bare[slice(*self.identity)].isascii():
            return None
        for one, other in self.same:
            if bare[one : one + _CRC_BYTES] != bare[other : other + _CRC_BYTES]:
                return None
        stated = self.same[0][0]
        crc = int.from_bytes(bare[stated : stated + _CRC_BYTES], "little")
        first: TensorEntry = self.loaded.root
        num_bytes = first.storage.num_bytes
        storage = FileStorage(
            file, offset_bytes + self.head_bytes, num_bytes, crc if crc or not num_bytes else None
        )
        entry = TensorEntry(
            first.name,
            first.dtype,
            first.shape,
            first.strides,
            storage,
            first.offset,
            first.kind,
            first.requires_grad,
        )
        return Unpickled(entry, self.loaded.globals, self.loaded.end, self.loaded.notes, self.loaded.dropped)


def form_of(
    directory: ZipDirectory, offset_bytes: int, num_bytes: int, loaded: Unpickled, identity: str
) -> Form | None:
    """The form of the archive in the `num_bytes` from `offset_bytes`, which has been read and checked.

    `loaded`: what it says, a tensor; `identity`: the record that only tells it from others. None where it
    is long, or its CRC-32s are not where torch puts them.
    """
    storage = loaded.root.storage
    held = next(entry for name, entry in directory.entries.items() if directory.storage(name) is storage)
    head_bytes = held.data_offset - offset_bytes
    tail_bytes = num_bytes - head_bytes - held.num_bytes
    if head_bytes + tail_bytes > MAX_FORM_BYTES:
        return None
    archive = Archive(directory.file, offset_bytes, num_bytes)
    bare = archive.read(0, head_bytes) + archive.read(num_bytes - tail_bytes, tail_bytes)

    def place(offset: int) -> int:
        """The position in `bare` of a byte of the archive."""
        return offset if offset < head_bytes else offset - held.num_bytes

    count, begin, length = find_directory(archive)
    listed, positions = parse_directory(archive, archive.read(begin, length), count)
    holes: list[tuple[int, int]] = []
    same: list[tuple[int, int]] = []
    text = (0, 0)
    for name in (held.name, identity):
        if name not in directory.entries:
            continue
        entry = directory.entries[name]
        line = place(begin + next(at for it, at in zip(listed, positions, strict=True) if it.name == name))
        data = entry.data_offset - offset_bytes
        stated = line + _CRC_IN_LISTED
        if bare[line + _FLAGS_IN_LISTED] & FLAG_DESCRIPTOR:
            repeated = place(data + entry.compressed_bytes) + len(_DESCRIPTOR_SIGNATURE)
            if not bare.startswith(_DESCRIPTOR_SIGNATURE, repeated - len(_DESCRIPTOR_SIGNATURE)):
                return None
        else:
            repeated = place(entry.header_offset - offset_bytes) + _CRC_IN_LOCAL
        if bare[stated : stated + _CRC_BYTES] != bare[repeated : repeated + _CRC_BYTES]:
            return None
        same.append((stated, repeated))
        holes += [(at, at + _CRC_BYTES) for at in same[-1]]
        if entry is not held:
            text = (place(data), place(data) + entry.compressed_bytes)
            holes.append(text)
    return Form(num_bytes, head_bytes, tail_bytes, _around(holes, bare), tuple(same), text, loaded)


def _around(holes: list[tuple[int, int]], bare: bytes) -> tuple[tuple[int, bytes], ...]:
    """What lies between the holes, with its places."""
    ends = [0, *(end for _, end in sorted(holes))]
    begins = [*(begin for begin, _ in sorted(holes)), len(bare)]
    return tuple((at, bare[at:end]) for at, end in zip(ends, begins, strict=True))

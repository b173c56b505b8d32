"""The members of torch's tar files, read as CPython's `tarfile` reads them, which is what torch uses.

tarfile takes the last of several members of one name, follows links between them, and lets an extended
header (PAX, GNU) give a member another name or size. So all that could mean a second reading is refused: a
file has torch's own members, each a regular file under its plain name, once.

Source: CPython's Lib/tarfile.py (`TarInfo.frombuf`, `_proc_member`, `_proc_pax`, `TarFile._getmember`);
torch 0.1.9's serialization.py (the members that it wrote).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ptsave.errors import CorruptError
from ptsave.storage.files import InputFile

if TYPE_CHECKING:
    import tarfile

BLOCK_BYTES = 512
NEEDED = ("storages", "tensors", "pickle")
_CHECKSUM_AT = 148
_CHECKSUM_STARTS = b"01234567+- \t\n\r\v\f\x1c\x1d\x1e\x1f\0\x80\xff"
"""What the field of the checksum can begin with: a number as text, or tarfile's base 256."""
_NAMES = (*NEEDED, "sys_info")
_MAX_HEADERS = 16
"""A file has four members, each with at most one extended header, and one for all."""
_MAX_EXTENDED_BYTES = 4096
_PAX_RECORD = re.compile(rb"(\d{1,4}) (?:mtime|atime|ctime|uid|gid|uname|gname|comment)=[^\n]*\n")
"""What an extended header may say without giving its member another name, size or place."""
_HINT = "the file is damaged or was made to mislead; copy or download it again"


class MemberBytes(NamedTuple):
    """Where a member's bytes lie."""

    begin: int
    end: int
    """Offsets in the file, in bytes."""


def is_tar(head: bytes) -> bool:
    """Whether torch, which tries tar before its legacy format, takes a file that begins so for a tar file."""
    if len(head) < BLOCK_BYTES or head[_CHECKSUM_AT] not in _CHECKSUM_STARTS:
        return False  # nearly all files: importing tarfile takes longer than opening most of them
    import tarfile

    try:
        tarfile.TarInfo.frombuf(head[:BLOCK_BYTES], "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def holds_torch(file: InputFile) -> bool:
    """Whether one of the first members has one of torch's names, in the eyes of tarfile."""
    try:
        return any(info.name in NEEDED for info, _ in _headers(file))
    except CorruptError:
        return False


def members(file: InputFile) -> dict[str, MemberBytes]:
    """torch's members by name.

    Raises: CorruptError where there is any doubt about which bytes they are.
    """
    import tarfile

    where = str(file.path)
    found: dict[str, MemberBytes] = {}
    for info, begin in _headers(file):
        if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE):
            _check_extended(file, begin, info.size)
        elif info.name not in _NAMES or info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            what = f"the tar archive has a member {info.name[:40]!r} that torch does not write"
            raise CorruptError(what, where, _HINT)
        elif info.name in found:
            raise CorruptError(f"the tar archive has two members {info.name!r}", where, _HINT)
        else:
            found[info.name] = MemberBytes(begin, begin + info.size)
    if missing := [name for name in NEEDED if name not in found]:
        raise CorruptError(f"the tar archive has no member {missing[0]!r}", where, _HINT)
    return found


def _headers(file: InputFile) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Each header, with the offset of the bytes that follow it."""
    import tarfile

    at = 0
    for _ in range(_MAX_HEADERS):
        if at + BLOCK_BYTES > file.size_bytes:
            return
        block = file.read_at(at, BLOCK_BYTES)
        if not block.strip(b"\0"):
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError):
            raise CorruptError(f"the tar header at byte {at} is malformed", str(file.path), _HINT) from None
        begin = at + BLOCK_BYTES
        if info.size < 0 or begin + info.size > file.size_bytes:
            raise file.too_short(begin, max(info.size, 0))
        yield info, begin
        at = begin + -(-info.size // BLOCK_BYTES) * BLOCK_BYTES
    raise CorruptError("the tar archive has more members than torch writes", str(file.path), _HINT)


def _check_extended(file: InputFile, begin: int, size: int) -> None:
    """An extended header holds nothing but times, owners and comments."""
    data = file.read_at(begin, min(size, _MAX_EXTENDED_BYTES))
    at = 0
    while at < len(data):
        record = _PAX_RECORD.match(data, at)
        if record is None or int(record[1]) != len(record[0]):
            break
        at += len(record[0])
    if at != size:
        what = "an extended tar header says more than the time and the owner of its member"
        raise CorruptError(what, str(file.path), _HINT)

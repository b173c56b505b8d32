"""The members of a tar archive, where all readers agree on them.

Tar has grown by conventions that readers obey or do not: names and sizes in headers before a member's own,
sparse files, links, a second archive behind the first. What only some of them obey is refused, with its name.

Source: POSIX.1-2024, pax (ustar and pax formats); GNU tar 1.35, "Basic Tar Format"; CPython's Lib/tarfile.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptsave.core.caps import room
from ptsave.errors import CorruptError, LimitError, UnreadableError
from ptsave.formats.torch.tar_members import BLOCK_BYTES, NEEDED
from ptsave.formats.zip.directory import is_plain_path
from ptsave.storage.files import InputFile

if TYPE_CHECKING:
    import tarfile

MAX_HEADERS = 20_000
"""Cap on the headers of an archive in a small file."""
MAX_EXTENDED_BYTES = 64 * 1024
"""Cap on a header before a member's own: a name of 4 KiB, times, owners, attributes."""
MAX_PADDING_BYTES = 4 * 1024**2
"""Cap on the zeros behind an archive; tar fills up a record, of 10 KiB where nobody said otherwise."""

_POSIX_MAGIC = b"ustar\0"
_MAGIC_AT, _PREFIX_AT = 257, 345
_PAX_RECORD = re.compile(rb"(\d{1,5}) ([^=\n]+)=")
_RENAMES = frozenset(("path", "size", "linkpath", "hdrcharset", "SCHILY.realsize"))
_SPARSE = ("GNU.sparse.", "SCHILY.realsize")
_CHARSETS = (b"BINARY", b"ISO-IR 10646 2000 UTF-8")
_WIDE_BYTES = 8**11
"""What an ordinary header cannot say that a member has."""
_HINT = "no usual tool writes such a file; do not open it with any program, and get it again from its source"
_REPACK = "unpack it and pack it again, for example with tar --format=pax -cf"


@dataclass(frozen=True)
class TarMember:
    """A regular file in an archive."""

    offset_bytes: int
    num_bytes: int


@dataclass
class _Told:
    """What the headers before a member's own say of it."""

    name: str | None = None
    size: int | None = None
    is_pax: bool = False


class TarDirectory:
    """All members of an archive that is a whole file."""

    def __init__(self, file: InputFile) -> None:
        """Read every header.

        Raises: CorruptError where two readers may differ; UnreadableError for what is not read; LimitError.
        """
        self._file = file
        self.members: dict[str, TarMember] = {}
        """By name, without the `./` before it."""
        self.links: dict[str, str] = {}
        """Members that are not regular files, and what they are."""
        self._walk()

    def _walk(self) -> None:
        import tarfile

        at, told = 0, _Told()
        most = MAX_HEADERS * room(self._file.stored_bytes)
        num_headers = 0
        while (info := self._header(at)) is not None:
            num_headers += 1
            if num_headers > most:
                raise LimitError("tar_headers", most, "more", str(self._file.path))
            begin = at + BLOCK_BYTES
            if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE):
                self._take_pax(info, begin, told)
            elif info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                self._take_long(info, begin, told)
            else:
                if told.size is not None:
                    if told.size != info.size and told.size < _WIDE_BYTES:
                        raise self._corrupt("a tar member has two sizes", info.name)
                    info.size = told.size
                if info.size < 0:
                    raise self._corrupt("a tar member's size is not a number", info.name)
                if begin + info.size > self._file.size_bytes:
                    raise self._file.too_short(begin, info.size)
                self._add(info, begin, told)
                told = _Told()
            at = begin + -(-info.size // BLOCK_BYTES) * BLOCK_BYTES
        if told != _Told():
            raise self._corrupt("the tar archive ends after an extended header")
        self._check_end(at)

    def _header(self, at: int) -> tarfile.TarInfo | None:
        """The header at byte `at`; None at the archive's end."""
        import tarfile

        if at + BLOCK_BYTES > self._file.size_bytes:
            raise CorruptError(
                "truncated: the tar archive has no end, which is written last",
                str(self._file.path),
                "copy or download the file again",
            )
        block = self._file.read_at(at, BLOCK_BYTES)
        if not block.strip(b"\0"):
            return None
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError):
            raise self._corrupt(f"the tar header at byte {at} is malformed") from None
        is_posix = block[_MAGIC_AT : _MAGIC_AT + len(_POSIX_MAGIC)] == _POSIX_MAGIC
        if block[_PREFIX_AT] and not is_posix and info.type != tarfile.GNUTYPE_SPARSE:
            # the beginning of the name in one format, times or nothing in others
            raise self._corrupt(f"the tar header at byte {at} has a field that not all readers know")
        return info

    def _add(self, info: tarfile.TarInfo, begin: int, told: _Told) -> None:
        import tarfile

        name = info.name if told.name is None else told.name
        if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
            name = name.removeprefix("./")
            if not is_plain_path(name) or name.endswith("/"):
                raise self._corrupt("a tar member's name is not a plain relative path", name)
            if name in self.members or name in self.links:
                raise self._corrupt("the tar archive has two members of one name", name)
            if name in NEEDED:
                raise self._corrupt("torch.load takes the archive for one of its own, by its member", name)
            self.members[name] = TarMember(begin, info.size)
            return
        what = {
            tarfile.DIRTYPE: "a folder",
            tarfile.SYMTYPE: "a symbolic link",
            tarfile.LNKTYPE: "a hard link",
            tarfile.FIFOTYPE: "a pipe",
            tarfile.CHRTYPE: "a device",
            tarfile.BLKTYPE: "a device",
        }.get(info.type)
        where = f"{self._file.path}, member {name[:80]!r}"
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise UnreadableError("a tar member is sparse", where, _REPACK)
        if what is None:
            raise UnreadableError(f"a tar member is of the unknown type {info.type!r}", where, _REPACK)
        if info.size:
            raise self._corrupt(f"{what} in the tar archive has bytes", name)
        if info.type != tarfile.DIRTYPE:
            self.links[name.removeprefix("./")] = what

    def _take_long(self, info: tarfile.TarInfo, begin: int, told: _Told) -> None:
        """GNU tar's way to give the next member a long name; a long target of a link changes nothing here."""
        import tarfile

        text = self._extended(info, begin)
        if info.type == tarfile.GNUTYPE_LONGNAME:
            if told.name is not None or told.is_pax:
                raise self._corrupt("a tar member has two extended headers")
            told.name = _decoded(text.partition(b"\0")[0])

    def _take_pax(self, info: tarfile.TarInfo, begin: int, told: _Told) -> None:
        """POSIX's way to say more of the next member, or of all that follow."""
        import tarfile

        is_of_all = info.type == tarfile.XGLTYPE
        if told.is_pax or told.name is not None:
            raise self._corrupt("a tar member has two extended headers")
        fields = self._fields(self._extended(info, begin))
        for key in fields:
            if key.startswith(_SPARSE):
                raise UnreadableError("a tar member is sparse", str(self._file.path), _REPACK)
        if is_of_all and not _RENAMES.isdisjoint(fields):
            raise self._corrupt("an extended tar header gives all members one name or size")
        if is_of_all:
            return
        told.is_pax = True
        if fields.get("hdrcharset", b"BINARY") not in _CHARSETS:
            raise UnreadableError("a tar member's name is not in UTF-8", str(self._file.path), _REPACK)
        if "path" in fields:
            told.name = _decoded(fields["path"])
        if "size" in fields:
            text = fields["size"]
            if not text.isdigit() or len(text) > 20:
                raise self._corrupt("a tar member's size is not a number")
            told.size = int(text)

    def _fields(self, text: bytes) -> dict[str, bytes]:
        """The records of an extended header: `LENGTH KEY=VALUE` and a line's end each."""
        fields: dict[str, bytes] = {}
        at = 0
        while at < len(text):
            record = _PAX_RECORD.match(text, at)
            end = at + int(record[1]) if record is not None else 0
            if record is None or end > len(text) or end <= record.end() or text[end - 1] != 0x0A:
                raise self._corrupt("an extended tar header is malformed")
            key = _decoded(record[2])
            if key in fields:
                raise self._corrupt("an extended tar header says one thing twice", key)
            fields[key] = text[record.end() : end - 1]
            at = end
        return fields

    def _extended(self, info: tarfile.TarInfo, begin: int) -> bytes:
        if not 0 <= info.size <= MAX_EXTENDED_BYTES:
            where = str(self._file.path)
            raise LimitError("tar_extended_bytes", MAX_EXTENDED_BYTES, info.size, where)
        return self._file.read_at(begin, info.size)

    def _check_end(self, at: int) -> None:
        """What follows the last member is padding."""
        left = self._file.size_bytes - at
        if left > MAX_PADDING_BYTES or self._file.read_at(at, left).strip(b"\0"):
            raise self._corrupt("something follows the end of the tar archive, which some programs read on")

    def _corrupt(self, what: str, name: str | None = None) -> CorruptError:
        where = str(self._file.path)
        return CorruptError(what, where if name is None else f"{where}, member {name[:80]!r}", _HINT)


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")

"""Archives of any files, and the members of them that are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from ptsave.core.address import inside
from ptsave.core.names import hint_for
from ptsave.errors import MissingFileError, UnreadableError
from ptsave.formats.base import HEAD_BYTES
from ptsave.formats.torch.tar_members import is_tar
from ptsave.formats.wrapped.compression import inflated
from ptsave.formats.wrapped.tar import TarDirectory
from ptsave.formats.zip.fields import STORED
from ptsave.formats.zip.local import LOCAL_BYTES
from ptsave.formats.zip.reader import ZipDirectory
from ptsave.formats.zip.sniff import ZIP_MAGIC, directory_of
from ptsave.storage.files import Extent, InputFile
from ptsave.storage.windows import WindowFile

_EXTRA_BYTES = 64
"""A usual upper limit of the extra field in a local header."""


@dataclass
class ZipArchive:
    """A zip archive, of stored and deflated members."""

    directory: ZipDirectory
    kind: ClassVar[str] = "zip"

    def __post_init__(self) -> None:
        self.file = self.directory.file
        self.sizes = {name: entry.num_bytes for name, entry in self.directory.entries.items()}
        """How many bytes each member has, by its name."""
        self.links: Mapping[str, str] = {}
        """Members that cannot be read, and what they are."""

    def open(self, name: str) -> InputFile:
        """The member `name`: a window, or unpacked. The archive's file must be open as long as it is.

        Raises: CorruptError, LimitError, UnreadableError; WriteError where it has to be unpacked.
        """
        entry = self.directory.entry(name)
        lies = WindowFile(
            self.file,
            inside(self.file.path, name),
            self.directory.data_offset(name),
            entry.compressed_bytes,
            entry.crc32 if entry.method == STORED else None,
        )
        return lies if entry.method == STORED else inflated(lies, entry.num_bytes, entry.crc32)

    def is_compressed(self, name: str) -> bool:
        """Whether a member has to be unpacked."""
        return self.directory.entry(name).method != STORED

    def extents(self, names: Iterable[str]) -> Iterable[Extent]:
        """Where the members' first bytes lie, in an archive on another machine."""
        headers = self.directory.headers
        if headers is None:
            return
        for name in names:
            begin, end = headers.span(self.directory.entry(name))
            yield begin, min(LOCAL_BYTES + len(name) + _EXTRA_BYTES + HEAD_BYTES, end - begin)


@dataclass
class TarArchive:
    """A tar archive, whose members are not compressed; it has the methods of ZipArchive."""

    file: InputFile
    kind: ClassVar[str] = "tar"

    def __post_init__(self) -> None:
        directory = TarDirectory(self.file)
        self._members = directory.members
        self.sizes = {name: member.num_bytes for name, member in self._members.items()}
        self.links: Mapping[str, str] = directory.links

    def open(self, name: str) -> InputFile:
        member = self._members[name]
        path = inside(self.file.path, name)
        return WindowFile(self.file, path, member.offset_bytes, member.num_bytes)

    def is_compressed(self, name: str) -> bool:
        return False

    def extents(self, names: Iterable[str]) -> Iterable[Extent]:
        for name in names:
            member = self._members[name]
            yield member.offset_bytes, min(HEAD_BYTES, member.num_bytes)

    def at(self, offset_bytes: int) -> tuple[str, int, int] | None:
        """The member in which a byte of the file lies, and where that begins and ends."""
        for name, member in self._members.items():
            if member.offset_bytes <= offset_bytes < member.offset_bytes + member.num_bytes:
                return name, member.offset_bytes, member.offset_bytes + member.num_bytes
        return None


Archive: TypeAlias = ZipArchive | TarArchive


def archive_of(file: InputFile, head: bytes) -> Archive | None:
    """`file`, which begins with `head`, as an archive; None where it is not one.

    Raises: CorruptError, LimitError, UnreadableError where it is one that is not read.
    """
    if head.startswith(ZIP_MAGIC):
        return ZipArchive(directory_of(file))
    return TarArchive(file) if is_tar(head) else None


def spelled(archive: Archive, names: Iterable[str]) -> list[str]:
    """The names of these members as a user writes them."""
    return [str(inside(archive.file.path, name)) for name in names]


def check_member(archive: Archive, name: str) -> str:
    """The member that a user calls `name`, as the archive calls it.

    Raises: MissingFileError; UnreadableError for what is no file.
    """
    plain = name.removeprefix("./")
    for found in (name, plain):
        if found in archive.sizes:
            return found
    where = str(inside(archive.file.path, name))
    if what := archive.links.get(plain):
        raise UnreadableError(f"the member is {what} in the archive", where, "name the file that it leads to")
    hint = hint_for(name, archive.sizes, "members")
    raise MissingFileError(f"the {archive.kind} archive has no member {name[:80]!r}", where, hint)

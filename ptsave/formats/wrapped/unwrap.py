"""From a file to the checkpoint in it, through at most one compression and one archive, in any order.

What is in there is found by content. Where an archive holds several checkpoints the user names one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from ptsave.core.checkpoint import Wrapping
from ptsave.errors import AmbiguousError, UnreadableError
from ptsave.formats import named
from ptsave.formats.base import HEAD_BYTES
from ptsave.formats.one_reading import check_begin, check_end
from ptsave.formats.torch.tar_members import is_tar
from ptsave.formats.wrapped.archives import (
    Archive,
    TarArchive,
    ZipArchive,
    archive_of,
    check_member,
    spelled,
)
from ptsave.formats.wrapped.compression import compression_of, unpacked
from ptsave.formats.zip.sniff import ZIP_MAGIC
from ptsave.storage.files import InputFile

MAX_LOOKS = 10_000
"""Cap on the members of an archive that are looked at, to find the one that is a checkpoint."""
MAX_REMOTE_LOOKS = 64
"""Cap on them where each look may take a request."""
MAX_NAMED = 20
"""How many candidates an error names."""

IsKnown = Callable[[InputFile, bytes], bool]
"""Whether a file, of which the beginning is given, is of a format that is read."""


@dataclass
class Unwrapped:
    """A checkpoint's own file, and what is around it."""

    file: InputFile
    wrappings: list[Wrapping] = field(default_factory=list)
    archive: Archive | None = None
    member: str = ""
    """Of `archive`."""
    files: ExitStack = field(default_factory=ExitStack)
    """Closes `file` and what it lies in."""

    def __enter__(self) -> Unwrapped:
        return self

    def __exit__(self, *error: object) -> None:
        self.files.close()


def unwrap(file: InputFile, member: str, is_known: IsKnown) -> Unwrapped:
    """Find the checkpoint in `file`, or the one that is called `member` in it. Takes ownership of `file`.

    What is found may be of no known format. Where `file` itself is of one, or of none, it is what is found.

    Raises: AmbiguousError where there are several; MissingFileError without such a member; UnreadableError;
    CorruptError, LimitError; RefusedError without a library; WriteError for a temporary file.
    """
    with ExitStack() as on_failure:
        on_failure.callback(file.close)
        found = Unwrapped(file)
        head = _head(file)
        if not is_known(file, head):
            _through_compression(found, head, on_failure)
            _through_archive(found, member, is_known, on_failure)
            _through_compression(found, _head(found.file), on_failure)
            if isinstance(found.archive, TarArchive) and found.archive.file is file:
                file.before_tensors(partial(check_end, file, partial(_is_in_tar, found, found.archive)))
        if member and found.archive is None:
            raise UnreadableError(
                f"is not an archive of files, and has no member {member[:80]!r}",
                str(file.path),
                f"name the file alone: {file.path}",
            )
        found.files = on_failure.pop_all()
    return found


def is_archive(head: bytes) -> bool:
    """Whether a file that begins with `head` is an archive of files, or a torch zip."""
    return head.startswith(ZIP_MAGIC) or is_tar(head)


def _head(file: InputFile) -> bytes:
    return file.read_at(0, min(HEAD_BYTES, file.size_bytes))


def _through_compression(found: Unwrapped, head: bytes, on_failure: ExitStack) -> None:
    """Unpack the file, once: what was unpacked and is compressed again stays what it is."""
    outer, how = found.file, compression_of(head)
    if how is None or any(one.is_unpacked for one in found.wrappings):
        return
    check_begin(outer, head, how.name)
    inner = unpacked(outer, how)
    on_failure.callback(inner.close)
    check_end(outer, partial(_is_end_of, inner, outer))
    found.file = inner
    found.wrappings.append(Wrapping(how.name, "", inner.size_bytes, True))


def _is_end_of(inner: InputFile, outer: InputFile, begin: int, end: int) -> bool:
    """Whether some bytes of `outer` are the last ones of `inner`."""
    num_bytes = end - begin
    if num_bytes > inner.size_bytes:
        return False
    return inner.read_at(inner.size_bytes - num_bytes, num_bytes) == outer.read_at(begin, num_bytes)


def _is_in_tar(found: Unwrapped, archive: TarArchive, begin: int, end: int) -> bool:
    """Whether a zip archive's directory is that of a member, or lies in one that is compressed: then it is
    the end of what that holds, or nobody looked at it, which is told."""
    place = archive.at(begin)
    if place is None:
        return False
    name, first, after = place
    with archive.open(name) as member:
        head = _head(member)
    if head.startswith(ZIP_MAGIC):
        return end == after and begin > first
    if compression_of(head) is None or end > after:
        return False
    return name != found.member or _is_end_of(found.file, archive.file, begin, end)


def _through_archive(found: Unwrapped, member: str, is_known: IsKnown, on_failure: ExitStack) -> None:
    outer, head = found.file, _head(found.file)
    if is_known(outer, head):
        return
    archive = archive_of(outer, head)
    if archive is None:
        return
    if member:
        found.member = check_member(archive, member)
        found.file = archive.open(found.member)
    else:
        if isinstance(archive, ZipArchive) and (refusal := named.zip_refusal(archive.directory)):
            raise refusal
        found.member, found.file = _only(archive, is_known)
    on_failure.callback(found.file.close)
    found.archive = archive
    size, is_unpacked = found.file.size_bytes, archive.is_compressed(found.member)
    found.wrappings.append(Wrapping(archive.kind, found.member, size, is_unpacked))


def _only(archive: Archive, is_known: IsKnown) -> tuple[str, InputFile]:
    """The one member that is a checkpoint, open; where none is, the one that is compressed.

    Raises: AmbiguousError; UnknownFormatError; and what opening the members raises.
    """
    where = str(archive.file.path)
    names = [name for name, num_bytes in archive.sizes.items() if num_bytes]
    most = MAX_REMOTE_LOOKS if archive.file.is_remote else MAX_LOOKS
    if len(names) > most:
        what = f"the {archive.kind} archive has {len(names)} members, too many to look for a checkpoint in"
        raise AmbiguousError(what, where, f"name the member: {spelled(archive, ['MEMBER'])[0]}")
    archive.file.expect(archive.extents(names))
    known: list[str] = []
    packed: list[str] = []
    with ExitStack() as kept:
        for name in names:
            with ExitStack() as opened:
                file = opened.enter_context(archive.open(name))
                head = _head(file)
                if is_known(file, head):
                    known.append(name)
                elif compression_of(head) is not None and not archive.is_compressed(name):
                    packed.append(name)
                if known == [name]:
                    first = file
                    kept.push(opened.pop_all())
        if len(known) == 1:
            kept.pop_all()
            return known[0], first
    candidates = known or packed
    if len(candidates) == 1:
        return candidates[0], archive.open(candidates[0])
    if not candidates:
        raise named.archive_refusal(archive.kind, where, [*archive.sizes], is_searched=True)
    listed = spelled(archive, candidates)
    more = ", …" if len(listed) > MAX_NAMED else ""
    is_sharded = any(name.endswith(".index.json") for name in archive.sizes)
    raise AmbiguousError(
        f"the {archive.kind} archive holds {len(candidates)} checkpoints",
        where,
        f"name one: {', '.join(listed[:MAX_NAMED])}{more}"
        + ("; or unpack it, and name the folder with the index and its shards" if is_sharded else ""),
        candidates=listed,
    )

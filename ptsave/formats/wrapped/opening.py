"""Opening a checkpoint in an archive or a compressed file, with what was around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Finding, Kind
from ptsave.errors import UnknownFormatError
from ptsave.formats.wrapped.judge import judge_members
from ptsave.formats.wrapped.unwrap import IsKnown, Unwrapped, unwrap
from ptsave.formats.zip.checks import check_storages
from ptsave.storage.files import InputFile, unchanged


def open_wrapped(
    file: InputFile, member: str, is_known: IsKnown, open_bare: Callable[[InputFile], Checkpoint]
) -> Checkpoint:
    """Open the checkpoint in `file`, or the one that is called `member` in it; takes ownership of `file`.

    `open_bare`: opens a file that is what it is; of one that is of no format, the error says what it is.

    Raises: as `unwrap`, and what `open_bare` does.
    """
    with unchanged(file), unwrap(file, member, is_known) as found:
        try:
            checkpoint = open_bare(found.file)
        except UnknownFormatError as error:
            error.what = ", in a ".join((error.what, *(one.described for one in reversed(found.wrappings))))
            raise
        found.files.callback(checkpoint.close)
        checkpoint.wrappings = found.wrappings
        checkpoint.checks.append(partial(_check, found))
        if found.archive is not None:
            judge_members(found.archive, found.member, checkpoint, open_bare)
        own = checkpoint.files.pop_all()  # its file is closed before what it lies in
        checkpoint.files.callback(found.files.pop_all().close)
        checkpoint.files.push(own)
    return checkpoint


def _check(found: Unwrapped) -> Iterator[Finding]:
    """Check a stored member against its CRC-32; a compressed one was checked when it was unpacked."""
    for one in found.wrappings:
        if one.is_unpacked:
            yield Finding("bytes", "ok", "", Kind.UNPACKED, facts={"kind": one.kind})
        elif found.file.whole is not None:
            yield from check_storages([(f"member {one.member}", found.file.whole)])

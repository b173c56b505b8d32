"""The registry of formats, and the two questions asked of it: what is this, and how is that written.

To add a format: one file beside this one, one line in FILE_FORMATS or FOLDER_FORMATS.
"""

from __future__ import annotations

import os
from pathlib import Path

from ptsave.core.atomic import check_file_destination
from ptsave.core.atomic_folder import check_folder_destination
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.files import InputFile, InputFolder
from ptsave.core.nearest import hint_for
from ptsave.errors import MissingFileError, UsageError
from ptsave.formats import (
    dcp,
    named,
    npz,
    pt2,
    safetensors,
    sharded,
    torch_legacy,
    torch_tar,
    torch_zip,
    torchscript,
)
from ptsave.formats.base import HEAD_BYTES, FileFormat, FolderFormat, WriteOptions

FILE_FORMATS: tuple[FileFormat, ...] = (
    safetensors.FORMAT,
    torchscript.FORMAT,
    pt2.FORMAT,
    torch_zip.FORMAT,
    torch_legacy.FORMAT,
    torch_tar.FORMAT,
    *npz.FORMATS,
    sharded.INDEX_FORMAT,
)
FOLDER_FORMATS: tuple[FolderFormat, ...] = (*sharded.FORMATS, dcp.FORMAT)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open whatever checkpoint `path` is, recognised by content; nothing in it runs.

    Raises: MissingFileError, UnknownFormatError, CorruptError, LimitError.
    """
    target = Path(path)
    if "\0" in str(target):
        raise MissingFileError("no such file", repr(str(target)), "check the path")
    if os.path.isdir(target):  # unlike Path.is_dir, never raises: a name may be too long
        return _open_folder(InputFolder(target))
    file = InputFile(target)
    try:
        head = file.read_at(0, min(HEAD_BYTES, file.size_bytes))
        for known in FILE_FORMATS:
            if known.sniff(file, head):
                return known.read(file)
        raise named.refusal(file, head)
    except BaseException:
        file.close()
        raise


def destination_format(path: Path, name: str | None) -> FileFormat | FolderFormat:
    """The format to write at `path`: the one called `name`, else the one that the suffix chooses.

    Raises: UsageError when there is no such format, or it cannot be written.
    """
    writable = writable_formats()
    if name is not None:
        if name not in writable:
            raise UsageError(
                f"cannot write the format {name!r}", "--format", hint_for(name, writable, "formats")
            )
        return writable[name]
    for known in writable.values():
        if isinstance(known, FileFormat) and path.suffix.lower() in known.suffixes:
            return known
    raise UsageError(
        f"the suffix {path.suffix!r} does not say which format to write",
        str(path),
        f"name it with --format: {', '.join(writable)}",
    )


def writable_formats() -> dict[str, FileFormat | FolderFormat]:
    """Every format that ptsave writes, by name."""
    formats: tuple[FileFormat | FolderFormat, ...] = (*FILE_FORMATS, *FOLDER_FORMATS)
    return {known.name: known for known in formats if known.write is not None}


def check_destination(path: Path, target: FileFormat | FolderFormat, options: WriteOptions) -> None:
    """Find out early whether `path` can be written, before work whose result would be lost.

    Raises: ExistsError, WriteError.
    """
    if isinstance(target, FileFormat):
        check_file_destination(path, overwrite=options.overwrite)
    else:
        check_folder_destination(path, overwrite=options.overwrite)


def _open_folder(folder: InputFolder) -> Checkpoint:
    for known in FOLDER_FORMATS:
        if known.sniff(folder):
            return known.read(folder)
    raise named.folder_refusal(folder)

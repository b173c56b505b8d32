"""The registry of the formats that are read. The formats that are written are in `formats.writers`.

To add a format: one folder beside this file, one line in FILE_FORMATS or FOLDER_FORMATS.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

from ptsave.core.address import Address, located
from ptsave.core.checkpoint import Checkpoint
from ptsave.errors import UnreadableError
from ptsave.formats import named
from ptsave.formats.base import HEAD_BYTES, FileFormat, FolderFormat
from ptsave.formats.folder_files import fingerprint
from ptsave.formats.one_reading import check_one_reading
from ptsave.formats.pickle.inert import names_in_errors
from ptsave.formats.programs import sniff as program_sniff
from ptsave.formats.safetensors import read as safetensors_read
from ptsave.formats.safetensors.main_file import CONFIG
from ptsave.formats.torch import legacy, tar
from ptsave.formats.torch import read as torch_read
from ptsave.formats.zip.sniff import ZIP_MAGIC
from ptsave.storage.files import InputFile, InputFolder, unchanged
from ptsave.storage.local.folder import LocalFolder
from ptsave.storage.opening import open_outer


def _lazy_file(name: str, module: str, *begins: bytes, constant: str = "FORMAT") -> FileFormat:
    """The format that `module` has as `constant`. It is imported for the files that begin as it does."""
    return FileFormat(
        name,
        lambda file, head: head.startswith(begins) and _constant(module, constant).sniff(file, head),
        lambda file: _constant(module, constant).read(file),
    )


def _lazy_folder(name: str, module: str, *, constant: str = "FORMAT") -> FolderFormat:
    """The format that `module` has as `constant`. It is imported for folders alone."""
    return FolderFormat(
        name,
        lambda folder: _constant(module, constant).sniff(folder),
        lambda folder: _constant(module, constant).read(folder),
    )


def _constant(module: str, name: str) -> Any:
    return getattr(import_module(f"{__name__}.{module}"), name)


_ONNX = b"\x08"
_JSON = (b" ", b"\t", b"\r", b"\n", b"{")
MEMBER_FORMATS: tuple[FileFormat, ...] = (
    safetensors_read.FORMAT,
    replace(
        _lazy_file(program_sniff.TORCHSCRIPT, "programs.torchscript"), sniff=program_sniff.is_torchscript
    ),
    replace(_lazy_file(program_sniff.PT2, "programs.pt2"), sniff=program_sniff.is_pt2),
    torch_read.FORMAT,
    legacy.FORMAT,
    tar.FORMAT,
    _lazy_file("npz", "npz.read", ZIP_MAGIC, constant="NPZ"),
    _lazy_file("npy", "npz.read", b"\x93NUMPY", constant="NPY"),
    _lazy_file("gguf", "gguf.read", b"GGUF"),
    _lazy_file("onnx", "onnx.read", _ONNX, constant="MEMBER_FORMAT"),
)
"""What a file may be that lies in another: there is no folder around it."""
FILE_FORMATS: tuple[FileFormat, ...] = (
    *MEMBER_FORMATS[:-1],
    _lazy_file("onnx", "onnx.read", _ONNX),
    _lazy_file("sharded-index", "safetensors.sharded_read", *_JSON, constant="INDEX_FORMAT"),
)
FOLDER_FORMATS: tuple[FolderFormat, ...] = (
    _lazy_folder("safetensors-sharded", "safetensors.sharded_read", constant="SAFETENSORS_FORMAT"),
    _lazy_folder("pt-sharded", "safetensors.sharded_read", constant="TORCH_FORMAT"),
    _lazy_folder("dcp-safetensors", "dcp.unconsolidated"),
    _lazy_folder("dcp", "dcp.read"),
)

MAX_TRIES = 10
"""How often a folder is opened that is saved over again and again."""


def open_checkpoint(
    path: str | os.PathLike[str] | Address, *, at_a_glance: bool = False, in_part: bool = False
) -> Checkpoint:
    """Open whatever checkpoint `path` is, a path or an address, recognised by content; nothing in it runs.

    `at_a_glance`: no tensor of it will be read; what takes a request for each may be left out. `in_part`: one
    of several processes opens it, each of which reads some of it.

    Raises: MissingFileError, UnknownFormatError, CorruptError, LimitError.
    """
    with names_in_errors():
        checkpoint = _open(path, at_a_glance, in_part)
        checkpoint.named = located(path)
        return checkpoint


def _open(path: str | os.PathLike[str] | Address, at_a_glance: bool, in_part: bool) -> Checkpoint:
    found, member = open_outer(located(path))
    if isinstance(found, InputFolder):
        found.is_glanced_at, found.is_read_in_part = at_a_glance, in_part
        return _open_folder(found)
    try:
        with unchanged(found):
            is_known = _known(found, found.read_at(0, min(HEAD_BYTES, found.size_bytes))) is not None
    except BaseException:
        found.close()
        raise
    if is_known and not member:
        return open_file(found)
    from ptsave.formats.wrapped.opening import open_wrapped  # what that takes is imported only here

    return open_wrapped(
        found,
        member,
        lambda file, head: _known(file, head, FILE_FORMATS if file is found else MEMBER_FORMATS) is not None,
        lambda file: open_file(file, FILE_FORMATS if file is found else MEMBER_FORMATS),
    )


def open_file(file: InputFile, formats: Sequence[FileFormat] = FILE_FORMATS) -> Checkpoint:
    """Open whatever checkpoint a file is, itself and not something in it; takes ownership of it.

    Raises: UnknownFormatError, CorruptError, LimitError.
    """
    try:
        with unchanged(file):
            head = file.read_at(0, min(HEAD_BYTES, file.size_bytes))
            known = _known(file, head, formats)
            if known is None:
                raise named.refusal(file, head)
            check_one_reading(file, head, known.name)
            return _holding(known.read(file), file)
    except BaseException:
        file.close()
        raise


def _known(file: InputFile, head: bytes, formats: Sequence[FileFormat] = FILE_FORMATS) -> FileFormat | None:
    """The one of `formats` that a file is of, which begins with `head`; found out once."""
    found = file.memo.get("format")
    if not isinstance(found, FileFormat):
        found = next((known for known in formats if known.sniff(file, head)), None)
        file.memo["format"] = found
    return found


def _holding(checkpoint: Checkpoint, held: InputFile | InputFolder) -> Checkpoint:
    """`checkpoint`, which knows what it was read from; a folder is let go of with it."""
    if isinstance(held, InputFolder):
        checkpoint.files.callback(held.close)
    if not checkpoint.held:  # an index knows its folder
        checkpoint.held = (held,)
    return checkpoint


def _open_folder(folder: InputFolder) -> Checkpoint:
    """Open a folder; again where it was saved over meanwhile, since its parts may then be of two saves."""
    path = folder.path
    if isinstance(path, Address):  # each of its files is pinned to one version
        return _read_folder(folder)
    folder.close()
    tries = 0
    while True:
        tries += 1
        before = fingerprint(path)
        try:
            checkpoint = _read_folder(LocalFolder(path))
        except UnreadableError:
            if tries == MAX_TRIES or fingerprint(path) == before:
                raise
        else:
            if tries == MAX_TRIES or fingerprint(path) == before:
                return checkpoint
            checkpoint.close()


def _read_folder(folder: InputFolder) -> Checkpoint:
    try:
        for known in FOLDER_FORMATS:
            if known.sniff(folder):
                checkpoint = _holding(known.read(folder), folder)
                read = folder.opened - {CONFIG}
                checkpoint.siblings = [name for name in folder.names if name not in read]
                from ptsave.formats.folder_rest import judge_rest  # what that takes only folders need

                try:
                    judge_rest(folder, checkpoint, open_file)
                except BaseException:
                    checkpoint.close()
                    raise
                return checkpoint
        raise named.folder_refusal(folder)
    except BaseException:
        folder.close()
        raise

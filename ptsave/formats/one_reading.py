"""Files that a second real reader would take for something else.

torch.load goes by a file's first bytes: a zip archive where they are `PK\\3\\4`, else a tar archive where
they are a tar header, else a pickle, which it runs. torch.jit.load, torch.export.load and Python's zipfile
look for a zip archive at the file's end, whatever it begins with. So one file can be two.

Source: torch/serialization.py (`load`, `_is_zipfile`, `_legacy_load`); miniz 3.0.2,
`mz_zip_reader_locate_header_sig`; CPython's Lib/zipfile (`_EndRecData`); numpy/lib/_npyio_impl.py (`load`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from struct import Struct
from typing import Any

from ptsave.core.nodes import Opaque
from ptsave.errors import CorruptError
from ptsave.formats.pickle.inert import begin
from ptsave.formats.torch import legacy, tar
from ptsave.formats.torch.legacy import MAGIC_NUMBER
from ptsave.formats.torch.objects import torch_shapes
from ptsave.formats.torch.tar_members import is_tar
from ptsave.formats.zip.sniff import ZIP_MAGIC
from ptsave.storage.files import InputFile
from ptsave.storage.windows import FileStorage

_TAR, _LEGACY = tar.FORMAT.name, legacy.FORMAT.name
_END = Struct("<4s4H2LH")
_END64_BYTES = 56
_LISTED_SIGNATURE = b"PK\1\2"
_MAX_TAIL_BYTES = _END.size + 0xFFFF
_HINT = "no program writes such a file; do not open it with any program, and get it again from its source"


def check_one_reading(file: InputFile, head: bytes, format_name: str) -> None:
    """Refuse a file of the format `format_name` that is of another one for another reader.

    Raises: CorruptError.
    """
    if head.startswith(ZIP_MAGIC):
        return  # the zip reader checks its beginning and its end against each other
    check_begin(file, head, format_name)
    file.before_tensors(partial(check_end, file))


def check_begin(file: InputFile, head: bytes, format_name: str) -> None:
    """Refuse a file that begins as something that torch.load reads otherwise. Raises: CorruptError."""
    where = str(file.path)
    if format_name != _TAR and is_tar(head):
        raise CorruptError(
            "the file also begins as a tar archive, and torch.load reads it as one", where, _HINT
        )
    if format_name not in (_TAR, _LEGACY):
        root, names = begin(FileStorage(file, 0, file.size_bytes), torch_shapes(_any_id), where)
        if names or root == MAGIC_NUMBER:
            what = "the file also begins as a pickle, and torch.load reads it as one"
            what += f"; it would use {next(iter(names))}" if names else ""
            raise CorruptError(what, where, _HINT)


def check_end(file: InputFile, is_inside: Callable[[int, int], bool] = lambda begin, end: False) -> None:
    """Refuse a file that ends as a zip archive.

    `is_inside`: whether the directory that lies there, of which begin and end are given, is of an archive
    that lies in the file, and is read as what it is.

    Raises: CorruptError.
    """
    found = _zip_at_end(file)
    if found is None or (found[0] >= 0 and is_inside(*found)):
        return
    raise CorruptError(
        "the file also ends as a zip archive, and zip readers (torch.jit.load) read it as one",
        str(file.path),
        _HINT,
    )


def _any_id(persistent_id: Any) -> Opaque:
    return Opaque("persistent id", (persistent_id,))


def _zip_at_end(file: InputFile) -> tuple[int, int] | None:
    """Where the directory and the end record lie that zip readers find at a file's end: where they begin, -1
    where they are not beside each other, and where they end; None where there are none."""
    tail_bytes = min(file.size_bytes, _MAX_TAIL_BYTES)
    begin = file.size_bytes - tail_bytes
    tail = file.read_at(begin, tail_bytes)
    at = len(tail)
    while (at := tail.rfind(b"PK\5\6", 0, at)) >= 0:
        if at + _END.size > len(tail):
            continue
        *_, num_bytes, offset, comment_bytes = _END.unpack_from(tail, at)
        end = min(begin + at + _END.size + comment_bytes, file.size_bytes)
        for directory in (begin + at - num_bytes, offset):
            if 0 <= directory <= file.size_bytes - 4 and file.read_at(directory, 4) == _LISTED_SIGNATURE:
                return directory if directory + num_bytes == begin + at else -1, end
        if file.read_at(max(begin + at - 20, 0), 4) == b"PK\6\7":  # zip64: the sizes stand elsewhere
            return begin + at - 20 - _END64_BYTES, end
    return None

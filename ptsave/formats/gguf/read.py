"""GGUF files (llama.cpp): a header with metadata and a table of tensors, then their bytes, aligned.

Tensors of torch's dtypes are tensors; quantized ones are listed as their types (`gguf.Q4_K`), with their
blocks as bytes. Sizes are in torch's order, the reverse of ggml's.

Source: ggml's docs/gguf.md; llama.cpp's ggml/src/gguf.cpp and gguf-py/gguf/gguf_reader.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

from ptsave.core.accounts import Part
from ptsave.core.caps import check_metadata, room
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import counted
from ptsave.core.nodes import TensorEntry, contiguous_strides
from ptsave.core.storage import Storage, SwappedStorage
from ptsave.errors import LimitError, UnreadableError
from ptsave.formats.base import FileFormat
from ptsave.formats.gguf.cursor import TEXT, Cursor
from ptsave.formats.gguf.types import BLOCKS, DTYPES
from ptsave.formats.kinds.packed import MAX_OBJECTS, packed
from ptsave.own_process import no_garbage_collection
from ptsave.storage.files import InputFile
from ptsave.storage.windows import FileStorage

NAME = "gguf"
MAGIC = b"GGUF"
MAX_THINGS = 100_000
"""Cap on the tensors, and on the metadata's keys, of a small file."""
MAX_RANK = 64
"""Cap on the dimensions of one tensor; torch's own."""
MAX_ALIGNMENT = 2**20
_ALIGNMENT = 32
"""The default alignment of tensors, in bytes."""
_INT64_MAX = 2**63 - 1


class _Info(NamedTuple):
    """One tensor in the header's table."""

    name: str
    shape: tuple[int, ...]
    type: int
    begin: int
    """In the file."""


def sniff(file: InputFile, head: bytes) -> bool:
    """Whether the file begins with the magic number of GGUF."""
    return head[:4] == MAGIC


def read(file: InputFile) -> Checkpoint:
    """Open a GGUF file as a flat dict of its tensors; its metadata are texts, all but texts as JSON.

    Raises: CorruptError, LimitError; UnreadableError for the first version.
    """
    with ExitStack() as on_failure:
        on_failure.callback(file.close)
        cursor, version = _begin(file)
        num_tensors, num_keys = cursor.number("Q"), cursor.number("Q")
        for what, count in (("tensors", num_tensors), ("keys", num_keys)):
            most = MAX_THINGS * room(file.stored_bytes)
            if count > most:
                raise LimitError(f"gguf_{what}", most, count, str(file.path))
        with no_garbage_collection():
            metadata, alignment, num_files = _metadata(cursor, num_keys)
            check_metadata(metadata, file.stored_bytes, str(file.path))
            infos = _infos(cursor, num_tensors, alignment)
            tensors, ends = _tensors(file, cursor, infos)
        order = "big" if cursor.order == ">" else "little"
        checkpoint = Checkpoint(
            NAME, file.path, tensors, metadata, notes=[f"GGUF of version {version}, {order}-endian"]
        )
        if num_files > 1:
            others = counted(num_files - 1, "other file", "other files")
            checkpoint.dropped.append(f"what is in the {others} of the model, of which this is one")
        checkpoint.parts.append(lambda: _gaps(file, ends, alignment))
        checkpoint.files = on_failure.pop_all()
    return checkpoint


FORMAT = FileFormat(NAME, sniff, read)


def _begin(file: InputFile) -> tuple[Cursor, int]:
    """A cursor after the version, and the version, from which the byte order is known."""
    cursor = Cursor(file, len(MAGIC), "<")
    version = cursor.number("I")
    if version & 0xFFFF == 0:
        cursor = Cursor(file, len(MAGIC), ">")
        version = cursor.number("I")
    if version not in (2, 3):
        hint = "convert it with llama.cpp, or update ptsave if a newer program wrote it"
        raise UnreadableError(f"the file is GGUF of version {version}", str(file.path), hint)
    return cursor, version


def _metadata(cursor: Cursor, count: int) -> tuple[dict[str, str], int, int]:
    """The metadata as texts, the alignment of tensors (bytes), and the number of the model's files."""
    found: dict[str, str] = {}
    alignment, num_files = _ALIGNMENT, 1
    for _ in range(count):
        key = cursor.text()
        kind = cursor.number("I")
        if key in found:
            raise cursor.corrupt(f"two values under {key[:80]!r}")
        value = cursor.value(kind)
        if key == "general.alignment":
            is_sound = type(value) is int and 0 < value <= MAX_ALIGNMENT and not value & (value - 1)
            if not is_sound:
                raise cursor.corrupt(f"the alignment {str(value)[:80]}")
            alignment = value
        if key == "split.count" and type(value) is int:
            num_files = value
        found[key] = value if kind == TEXT else json.dumps(value, ensure_ascii=False)
    return found, alignment, num_files


def _infos(cursor: Cursor, count: int, alignment: int) -> list[_Info]:
    """The header's table of tensors, in its order; each is checked."""
    spelled: list[tuple[str, tuple[int, ...], int, int]] = []
    for _ in range(count):
        name, rank = cursor.text(), cursor.number("I")
        if rank > MAX_RANK:
            raise LimitError("rank", MAX_RANK, rank, f"tensor {name[:80]!r}")
        sizes = [cursor.number("Q") for _ in range(rank)]
        if prod(filter(None, sizes)) > _INT64_MAX // 16:
            raise cursor.corrupt(f"tensor {name[:80]!r} has a shape that no tensor can have")
        spelled.append((name, tuple(reversed(sizes)), cursor.number("I"), cursor.number("Q")))
    start = -(-cursor.at // alignment) * alignment
    infos = []
    names: set[str] = set()
    for name, shape, kind, offset in spelled:
        if not name or name in names:
            raise cursor.corrupt(f"two tensors are called {name[:80]!r}, or one has no name")
        if offset % alignment:
            raise cursor.corrupt(f"tensor {name[:80]!r} begins at {offset}, which is not aligned")
        names.add(name)
        infos.append(_Info(name, shape, kind, start + offset))
    return infos


def _tensors(
    file: InputFile, cursor: Cursor, infos: list[_Info]
) -> tuple[dict[str, Any], list[tuple[int, int]]]:
    """The tensors with the begin and the end of their bytes, in the file's order."""
    begins = sorted({info.begin for info in infos} | {file.size_bytes})
    following = dict(pairwise(begins))
    tensors: dict[str, Any] = {}
    ends: list[tuple[int, int]] = [(cursor.at, cursor.at)]
    num_objects = sum(info.type not in DTYPES for info in infos)
    if num_objects > (most := MAX_OBJECTS * room(file.stored_bytes)):
        raise LimitError("gguf_objects", most, num_objects, str(file.path))
    for info in infos:
        name, shape, kind, begin = info
        row = shape[-1] if shape else 1
        if kind in DTYPES:
            num_bytes = prod(shape) * DTYPES[kind].itemsize
        elif kind in BLOCKS:
            type_name, block, block_bytes = BLOCKS[kind]
            if row % block:
                raise cursor.corrupt(
                    f"tensor {name[:80]!r} has rows of {row}, and blocks of {block} elements"
                )
            num_bytes = prod(shape) // block * block_bytes
        else:  # of a newer version: as long as it can be
            num_bytes = following.get(begin, begin) - begin
        if begin + num_bytes > file.size_bytes:
            raise file.too_short(begin, num_bytes)
        ends.append((begin, begin + num_bytes))
        storage: Storage = FileStorage(file, begin, num_bytes)
        if kind in DTYPES:
            dtype = DTYPES[kind]
            if cursor.order == ">" and dtype.word_bytes > 1:
                storage = SwappedStorage(storage, dtype.word_bytes)
            tensors[name] = TensorEntry(name, dtype, shape, contiguous_strides(shape), storage, 0)
        elif kind in BLOCKS:
            byte_shape = (*shape[:-1], row // block * block_bytes)
            tensors[name] = packed(NAME, type_name, shape, storage, byte_shape)
        else:
            tensors[name] = packed(NAME, f"TYPE_{kind}", shape, storage)
    ends.sort()
    for (_, end), (begin, after) in pairwise(ends):
        if begin < end and after > begin:
            raise cursor.corrupt(f"two tensors share the bytes from {begin}")
    return tensors, ends


def _gaps(file: InputFile, ends: list[tuple[int, int]], alignment: int) -> Iterator[Part]:
    """The bytes between tensors, and after the last, that are longer than alignment needs."""
    at = 0
    for begin, end in [*ends, (file.size_bytes, file.size_bytes)]:
        if begin - at >= alignment and at:
            yield Part(f"bytes {at} to {begin}", FileStorage(file, at, begin - at))
        at = max(at, end)

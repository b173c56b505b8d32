"""Folders of torch.distributed.checkpoint's `HuggingFaceStorageWriter` before they are consolidated.

Each rank has a safetensors file with its chunks, whose offsets stand in `__metadata__`. There is no table
of contents: a tensor's shape is that of what its chunks span.

Source: torch/distributed/checkpoint/hf_storage.py and _hf_utils.py of torch 2.13 (`SHARDED_FILE_NAME`,
`CUSTOM_METADATA_KEY`, `HuggingFaceStorageReader.read_metadata`).
"""

from __future__ import annotations

import re
from contextlib import ExitStack

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import counted
from ptsave.core.nodes import TensorEntry
from ptsave.errors import CorruptError, LimitError
from ptsave.formats.base import FolderFormat
from ptsave.formats.dcp.chunks import Box, assemble, check_cover
from ptsave.formats.safetensors import chunk_offsets
from ptsave.formats.safetensors import read as safetensors_read
from ptsave.own_process import no_garbage_collection
from ptsave.storage.files import InputFile, InputFolder

MAX_FILES = 20_000
"""Cap on the files of one checkpoint."""

_FILE = re.compile(r"shard-(?P<rank>\d{5,6})-model-\d{5,6}-of-\d{5,6}\.safetensors")
_DAMAGED = "the folder is incomplete or mixes two checkpoints; copy it again"

Chunks = dict[str, list[tuple[Box, TensorEntry]]]


def sniff(folder: InputFolder) -> bool:
    """Files that are named for a rank and for their place among the model's files."""
    return any(map(_FILE.fullmatch, folder.names))


def read(folder: InputFolder) -> Checkpoint:
    """Open such a folder as a flat dict of tensors, each of them whole.

    Raises: CorruptError when a tensor's chunks leave a hole or overlap; LimitError.
    """
    ranks = {name: int(match["rank"]) for name in folder.names if (match := _FILE.fullmatch(name))}
    if len(ranks) > MAX_FILES:
        raise LimitError("rank_files", MAX_FILES, len(ranks), str(folder.path))
    chunks: Chunks = {}
    with ExitStack() as on_failure, no_garbage_collection():
        for name in ranks:
            file = folder.open(name)
            on_failure.callback(file.close)
            _read_file(file, chunks)
        root = {name: _whole(name, parts, str(folder.path)) for name, parts in chunks.items()}
        checkpoint = Checkpoint(FORMAT.name, folder.path, root)
        checkpoint.notes.append("the shapes are those that the chunks span, as no index says what they are")
        missing = sorted(set(range(1, max(ranks.values()) + 1)) - set(ranks.values()))
        if missing:
            checkpoint.notes.append(
                f"{counted(len(missing), 'rank has', 'ranks have')} no file (first: {missing[0]})"
            )
        checkpoint.files = on_failure.pop_all()
    return checkpoint


FORMAT = FolderFormat("dcp-safetensors", sniff, read)


def _read_file(file: InputFile, chunks: Chunks) -> None:
    """Add one rank's tensors to `chunks`."""
    where = str(file.path)
    tensors, metadata, _ = safetensors_read.read_header(file)
    if chunk_offsets.KEY not in metadata:
        raise CorruptError(
            f"the file has no {chunk_offsets.KEY}, which says where its chunks belong", where, _DAMAGED
        )
    table = chunk_offsets.table_of(metadata, where)
    for name, entry in tensors.items():
        offsets = chunk_offsets.offsets_of(table, name, len(entry.shape), where)
        chunks.setdefault(name, []).append((Box(offsets, entry.shape), entry))


def _whole(name: str, parts: list[tuple[Box, TensorEntry]], where: str) -> TensorEntry:
    first = parts[0][1]
    if any(entry.dtype is not first.dtype or len(entry.shape) != len(first.shape) for _, entry in parts):
        raise CorruptError(f"the chunks of {name!r} differ in dtype or rank", where, _DAMAGED)
    ends = [[offset + size for offset, size in zip(b.offsets, b.sizes, strict=True)] for b, _ in parts]
    shape = tuple(map(max, zip(*ends, strict=True)))
    check_cover(shape, [box for box, _ in parts], f"{where}, tensor {name!r}")
    return assemble(name, shape, parts)

"""Checkpoints of many ranks, of sparse files: headers, pickles and directories are real, tensors holes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ptsave.core.dtypes import BY_NAME
from ptsave.core.nodes import TensorEntry, contiguous_strides
from ptsave.core.storage import MemoryStorage
from ptsave.formats.pickle.emit import Emitter
from ptsave.formats.torch.archive import TorchArchive, emit_tensor
from ptsave.formats.torch.storage_plan import PlannedStorage, PlannedView

DTYPE = BY_NAME["float32"]
COLUMNS = 4096
MAX_SEPARATE_CHUNKS = 102_400
"""Past so many, 1 GiB of headers, the ranks' files, which are all alike, are hard links of one."""


@dataclass(frozen=True)
class Shape:
    """Of a checkpoint: every tensor is split by its rows over all ranks."""

    num_ranks: int
    num_tensors: int
    num_bytes: int = 2**40

    @property
    def rows(self) -> int:
        """Of one rank's part of one tensor."""
        return max(1, self.num_bytes // self.num_tensors // self.num_ranks // (COLUMNS * DTYPE.itemsize))

    @property
    def num_chunks(self) -> int:
        return self.num_ranks * self.num_tensors

    @property
    def names(self) -> list[str]:
        return [f"layers.{number}.weight" for number in range(self.num_tensors)]


class Item:
    """The torch zip of one rank's part of one tensor; they are all alike."""

    def __init__(self, shape: Shape) -> None:
        size = (shape.rows, COLUMNS)
        num_bytes = shape.rows * COLUMNS * DTYPE.itemsize
        storage = MemoryStorage(memoryview(b""))
        entry = TensorEntry("", DTYPE, size, contiguous_strides(size), storage, 0)
        part = PlannedStorage(storage, 0, num_bytes, {entry.view: entry}, DTYPE.storage_class, "0")
        place = PlannedView(part, 0, entry.strides)
        pickle = Emitter(lambda emitter, _: emit_tensor(emitter, entry, place)).pickle(entry)
        archive = TorchArchive(0, pickle, [part], is_item=True)
        header = archive.data[0].local_header(0)  # a CRC-32 of 0 says that there is none
        self.pieces = [*archive.pieces(), (archive.data[0].data_offset - len(header), header)]
        """(offset, bytes) of everything but the tensor."""
        self.num_bytes = archive.num_bytes
        self.step = archive.num_bytes + -archive.num_bytes % 64
        """From one item of a file to the next, in bytes."""


def file_name(rank: int) -> str:
    """Of a rank's file, as torch names it."""
    return f"__{rank}_0.distcp"


def write_files(folder: Path, shape: Shape) -> None:
    """The ranks' files; `.metadata` is torch's to write."""
    item = Item(shape)
    for rank in range(shape.num_ranks):
        path = folder / file_name(rank)
        if rank and shape.num_chunks > MAX_SEPARATE_CHUNKS:
            os.link(folder / file_name(0), path)
            continue
        with path.open("wb") as file:
            for number in range(shape.num_tensors):
                for offset, text in item.pieces:
                    file.seek(number * item.step + offset)
                    file.write(text)
            file.truncate(shape.num_tensors * item.step)

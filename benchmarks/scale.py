"""What a checkpoint of many ranks costs before a byte of it is read: `python -m benchmarks.scale`.

A folder is made of sparse files: every header, pickle and directory is real, and the tensors are holes. Then
a process opens it, and plans what one rank of another mesh would read of it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ptsave.core.dtypes import BY_NAME
from ptsave.core.gather import laid_out
from ptsave.core.nodes import TensorEntry, contiguous_strides
from ptsave.core.storage import MemoryStorage
from ptsave.formats import open_checkpoint
from ptsave.formats.chunks import Box, window
from ptsave.formats.pickle_emit import Call, Emitter, New, Table
from ptsave.formats.storage_plan import Part, Place
from ptsave.formats.torch_archive import TorchArchive, emit_tensor

METADATA = "torch.distributed.checkpoint.metadata"
FILESYSTEM = "torch.distributed.checkpoint.filesystem"
DTYPE = BY_NAME["float32"]
COLUMNS = 4096


@dataclass(frozen=True)
class Shape:
    """Of a checkpoint: every tensor is split by its rows over all ranks."""

    num_ranks: int
    num_tensors: int
    num_bytes: int

    @property
    def rows(self) -> int:
        """Of one rank's part of one tensor."""
        return max(1, self.num_bytes // self.num_tensors // self.num_ranks // (COLUMNS * DTYPE.itemsize))


def write(folder: Path, shape: Shape) -> None:
    """The folder, of sparse files."""
    size = (shape.rows, COLUMNS)
    num_bytes = shape.rows * COLUMNS * DTYPE.itemsize
    storage = MemoryStorage(memoryview(b""))
    entry = TensorEntry("", DTYPE, size, contiguous_strides(size), storage, 0)
    part = Part(storage, 0, num_bytes, {entry.view: entry}, DTYPE.storage_class, "0")
    place = Place(part, 0, entry.strides)
    pickle = Emitter(lambda emitter, _: emit_tensor(emitter, entry, place)).pickle(entry)
    probe = TorchArchive(0, pickle, [part], is_item=True)
    header = probe.data[0].local_header(0)  # a CRC-32 of 0 says that there is none
    pieces = [*probe.pieces(), (probe.data[0].data_offset - len(header), header)]
    step = probe.num_bytes + -probe.num_bytes % 64
    for rank in range(shape.num_ranks):
        with (folder / f"__{rank}_0.distcp").open("wb") as file:
            for number in range(shape.num_tensors):
                for offset, text in pieces:
                    file.seek(number * step + offset)
                    file.write(text)
            file.truncate(shape.num_tensors * step)
    names = [f"layers.{number}.weight" for number in range(shape.num_tensors)]
    state = {
        "state_dict_metadata": Table((name, _about(shape)) for name in names),
        "planner_data": Table((name, (name,)) for name in names),
        "storage_data": Table(_places(names, shape, step, probe.num_bytes)),
        "storage_meta": None,
        "version": "1.0.0",
    }
    (folder / ".metadata").write_bytes(Emitter(_none).pickle(New(METADATA, "Metadata", state)))


def _none(emitter: Emitter, entry: TensorEntry) -> None:
    raise AssertionError("the metadata holds no tensors")


def _size(*numbers: int) -> Call:
    return Call("torch", "Size", (numbers,))


def _about(shape: Shape) -> New:
    properties = (
        DTYPE,
        Call("torch.serialization", "_get_layout", ("torch.strided",)),
        False,
        Call(METADATA, "_MEM_FORMAT_ENCODING", (0,)),
        False,
    )
    chunks = [
        New(
            METADATA,
            "ChunkStorageMetadata",
            {"offsets": _size(rank * shape.rows, 0), "sizes": _size(shape.rows, COLUMNS)},
        )
        for rank in range(shape.num_ranks)
    ]
    state = {
        "properties": New(METADATA, "TensorProperties", properties),
        "size": _size(shape.num_ranks * shape.rows, COLUMNS),
        "chunks": chunks,
    }
    return New(METADATA, "TensorStorageMetadata", state)


def _places(names: list[str], shape: Shape, step: int, length: int) -> Iterator[tuple[New, New]]:
    for number, name in enumerate(names):
        for rank in range(shape.num_ranks):
            index = {"fqn": name, "offset": _size(rank * shape.rows, 0), "index": rank}
            info = {"relative_path": f"__{rank}_0.distcp", "offset": number * step, "length": length}
            yield New(METADATA, "MetadataIndex", index), New(FILESYSTEM, "_StorageInfo", info)


def measure(folder: Path) -> dict[str, float]:
    """Seconds to open, and to plan what the second of 192 ranks reads; the process's peak MiB."""
    begin = time.process_time()
    with open_checkpoint(folder) as checkpoint:
        opened = time.process_time()
        planned = 0
        for entry in checkpoint.tensors.values():
            rows = -(-entry.shape[0] // 192)
            count = max(0, min(rows, entry.shape[0] - rows))
            planned += laid_out(window(entry, Box((rows, 0), (count, entry.shape[1])))).num_bytes
        end = time.process_time()
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "open_s": round(opened - begin, 2),
        "plan_s": round(end - opened, 3),
        "peak_mib": peak_kib // 1024,
        "rank_gib": round(planned / 2**30, 2),
    }


def main() -> None:
    """Print one JSON line for each shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--tensors", type=int, nargs="+", default=[100, 400])
    parser.add_argument("--bytes", type=int, default=2**40)
    parser.add_argument("--measure", type=Path, help="a folder that is there (used by the script itself)")
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure)))
        return
    for num_ranks in arguments.ranks:
        for num_tensors in arguments.tensors:
            shape = Shape(num_ranks, num_tensors, arguments.bytes)
            with tempfile.TemporaryDirectory(prefix="ptsave-scale-") as temp:
                write(Path(temp), shape)
                metadata_mib = (Path(temp) / ".metadata").stat().st_size / 2**20
                argv = [sys.executable, "-m", "benchmarks.scale", "--measure", temp]
                found = json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout)
            shown = {"ranks": num_ranks, "tensors": num_tensors, "metadata_mib": round(metadata_mib, 1)}
            print(json.dumps(shown | found), flush=True)


if __name__ == "__main__":
    main()

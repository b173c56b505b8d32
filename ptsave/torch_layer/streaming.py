"""Other ways into memory than reading a tensor whole: mapped lazily, or streamed into one that is there."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping

import torch
from isal.isal_zlib import crc32

from ptsave.core.gather import contiguous
from ptsave.core.move import damaged
from ptsave.core.nodes import TensorEntry
from ptsave.core.storage import FileStorage
from ptsave.errors import LossyError
from ptsave.torch_layer.tensors import read_tensor, torch_dtype

STREAM_BYTES = 4 * 1024 * 1024
"""The size of a buffer on the way into a tensor that is already there; two are used in turn."""


def map_tensors(entries: Mapping[str, TensorEntry]) -> dict[str, torch.Tensor]:
    """Each entry as a CPU tensor over the file's own pages, read when they are touched.

    Writing to a tensor changes memory alone, never the file. Nothing is checked: that would read it all.
    The file may be replaced meanwhile (as ptsave replaces files), but must not be cut short in place.
    What does not lie in a file as it is (deflated, big-endian, unaligned) is read.
    """
    maps: dict[int, mmap.mmap] = {}
    tensors = {}
    for name, entry in entries.items():
        storage = entry.storage
        first, end = entry.byte_range
        if not isinstance(storage, FileStorage) or first == end:
            tensors[name] = read_tensor(entry)
            continue
        at = storage.offset_bytes + first
        if at % entry.dtype.itemsize:
            tensors[name] = read_tensor(entry)
            continue
        fd = storage.file.fd
        if fd not in maps:
            maps[fd] = mmap.mmap(fd, storage.file.size_bytes, access=mmap.ACCESS_COPY)
        flat = torch.frombuffer(maps[fd], dtype=torch.uint8, count=end - first, offset=at)
        tensors[name] = flat.view(torch_dtype(entry)).as_strided(entry.shape, entry.strides, 0)
    return tensors


def stream_into(
    targets: Mapping[str, torch.Tensor],
    entries: Mapping[str, TensorEntry],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Copy each entry into the tensor of its name, on whatever device and of whatever dtype that is.

    Needs two buffers of STREAM_BYTES besides the targets; for CUDA they are pinned, so that the next part
    is read while one is on its way. Shapes must be equal.

    Raises: LossyError naming a tensor of another shape; CorruptError naming one whose CRC-32 is wrong, of
    which parts have been copied by then.
    """
    cuda = any(target.is_cuda for target in targets.values())
    buffers = [torch.empty(STREAM_BYTES, dtype=torch.uint8, pin_memory=cuda) for _ in range(2)]
    events: list[torch.cuda.Event | None] = [None, None]
    turn = 0
    for name, target in targets.items():
        entry = entries[name]
        if tuple(target.shape) != entry.shape:
            raise LossyError(
                f"{name!r} has the shape {list(entry.shape)}, the model {list(target.shape)}",
                "",
                "check the config",
            )
        dtype = torch_dtype(entry)
        direct = target.is_contiguous()
        place = target.detach() if direct else torch.empty_like(target, memory_format=torch.contiguous_format)
        flat = place.view(-1)
        source, offset = contiguous(entry)
        item = entry.dtype.itemsize
        step = STREAM_BYTES // item
        whole = entry.is_contiguous and entry.byte_range == (0, entry.storage.num_bytes)
        expected = entry.storage.crc32 if whole else None
        crc = 0
        for start in range(0, entry.num_elements, step):
            count = min(step, entry.num_elements - start)
            event = events[turn]
            if event is not None:
                event.synchronize()
            buffer = buffers[turn][: count * item]
            view = buffer.numpy().data
            source.read_into(offset + start * item, view)
            if expected is not None:
                crc = crc32(view, crc)
            flat[start : start + count].copy_(buffer.view(dtype), non_blocking=cuda)
            if target.is_cuda:
                events[turn] = torch.cuda.Event()  # type: ignore[no-untyped-call]
                events[turn].record()  # type: ignore[union-attr]
            turn = 1 - turn
            if progress is not None:
                progress(count * item)
        if expected is not None and crc != expected:
            raise damaged("", entry.name, "CRC-32")
        if not direct:
            target.detach().copy_(place)
    if cuda:
        torch.cuda.synchronize()

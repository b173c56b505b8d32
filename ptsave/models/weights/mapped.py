"""Tensors over a file's own pages: nothing is read before it is touched."""

from __future__ import annotations

import mmap
from collections.abc import Mapping

import torch

from ptsave.core.nodes import UNRESOLVED, TensorEntry
from ptsave.core.storage import File, Storage
from ptsave.models.weights.tensors import is_dense, read_tensor, torch_dtype

ALLOCATOR_BYTES = 64
"""What the addresses of torch's own allocator on the CPU are multiples of. What kernels compute may depend on
it to the last bit. Source: c10::gAlignment."""
GROUPED_BYTES = 16
"""What torch asks of the rows of weights in three dimensions, of which a product takes one each (a mixture of
experts). Source: at::native, GroupedMMUtils.h."""


def map_tensors(
    entries: Mapping[str, TensorEntry], align_bytes: int | None = None
) -> dict[str, torch.Tensor]:
    """Each entry as a CPU tensor over the file's own pages, read when they are touched.

    Writing to a tensor changes memory alone, never the file. Nothing is checked: that would read it all.
    Tensors of one storage share their memory here too.

    The file may be replaced meanwhile, as ptsave replaces files; but whoever writes into it in place changes
    the tensors, and whoever cuts it short ends this process (SIGBUS) when it touches what is gone. So this
    is for those who ask for it and know their files; `ptsave load` reads and checks.

    What does not lie in a file as it is (deflated, big-endian, chunked, unaligned) is read, and checked. So
    is what does not lie at a multiple of `align_bytes`; None asks for what torch's functions insist on.

    Raises: CorruptError when the file has become shorter; LossyError for what is not a plain tensor.
    """
    maps: dict[int, mmap.mmap] = {}
    bytes_of: dict[int, torch.Tensor] = {}
    tensors = {}
    for name, entry in entries.items():
        dtype, storage = torch_dtype(entry), entry.storage
        num_bytes = storage.num_bytes
        if storage.file is None or storage.file.is_remote or num_bytes == 0 or entry.kind in UNRESOLVED:
            tensors[name] = read_tensor(entry)
            continue
        needed = align_bytes or (GROUPED_BYTES if len(entry.shape) > 2 else 1)
        begin = storage.file.fd_offset_bytes + storage.offset_bytes
        if (begin + entry.offset * dtype.itemsize) % needed or begin % dtype.itemsize:
            tensors[name] = read_tensor(entry)
            continue
        if id(storage) not in bytes_of:
            if storage.file.fd not in maps:
                maps[storage.file.fd] = _mapped(storage.file, storage)
            bytes_of[id(storage)] = torch.frombuffer(
                maps[storage.file.fd],
                dtype=torch.uint8,
                count=num_bytes,
                offset=begin,
            )
        memory = bytes_of[id(storage)].untyped_storage()
        tensors[name] = torch.empty(0, dtype=dtype).set_(memory, entry.offset, entry.shape, entry.strides)
    return tensors


def map_apart(entries: Mapping[str, TensorEntry], align_bytes: int | None = None) -> dict[str, torch.Tensor]:
    """`map_tensors` for a model that changes its tensors one by one: tensors that share memory are copied."""
    tensors = map_tensors(entries, align_bytes)
    seen: set[int] = set()
    for name, entry in entries.items():
        if id(entry.storage) in seen or not is_dense(entry):
            tensors[name] = tensors[name].clone(memory_format=torch.contiguous_format)
        seen.add(id(entry.storage))
    return tensors


def _mapped(file: File, storage: Storage) -> mmap.mmap:
    """The file, and what lies before it where it is a part of another, privately."""
    try:
        return mmap.mmap(file.fd, file.fd_offset_bytes + file.size_bytes, access=mmap.ACCESS_COPY)
    except ValueError:  # it ends before that by now
        raise file.too_short(storage.offset_bytes, storage.num_bytes) from None

"""TensorEntry → torch.Tensor, in fresh memory, checked on the way."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from isal.isal_zlib import crc32

from ptsave.core.digest import Hasher, hasher, prefix
from ptsave.core.dtypes import DType
from ptsave.core.move import damaged
from ptsave.core.nodes import Global, Opaque, TensorEntry
from ptsave.core.storage import BLOCK_BYTES
from ptsave.core.workers import NUM_THREADS
from ptsave.errors import LossyError
from ptsave.formats.quantized import is_quantized, parameters

T = TypeVar("T")
R = TypeVar("R")

MAX_STRIDED_WASTE = 2
"""A strided view keeps its strides while it spans at most this many times its own bytes."""


def read_tensors(
    entries: Mapping[str, TensorEntry],
    *,
    digests: Mapping[str, str] | None = None,
    algorithm: str = "xxh3_128",
    is_checked: bool = True,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Each entry as a CPU tensor of its own memory, with the entry's dtype, shape and strides.

    A few are read ahead on threads. Where the container has a CRC-32 or `digests` a digest of exactly the
    bytes that are read, they are held against it, unless `is_checked` is off.

    Raises: CorruptError naming the tensor; LossyError for what is not a plain tensor, or of a dtype that
    this torch lacks.
    """
    digests = digests or {}

    def read(item: tuple[str, TensorEntry]) -> tuple[str, torch.Tensor]:
        name, entry = item
        return name, read_tensor(entry, digests.get(entry.name), algorithm, is_checked)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        yield from _ahead(pool, read, entries.items())


def _ahead(pool: Executor, read: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` on a pool that is never more than NUM_THREADS tensors ahead of its consumer."""
    waiting: list[Future[R]] = []
    for item in items:
        waiting.append(pool.submit(read, item))
        if len(waiting) > NUM_THREADS:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


def read_tensor(
    entry: TensorEntry, digest: str | None = None, algorithm: str = "xxh3_128", is_checked: bool = True
) -> torch.Tensor:
    """One entry as a CPU tensor; see `read_tensors`."""
    dtype = torch_dtype(entry)
    first, end = entry.byte_range
    memory = torch.empty(end - first, dtype=torch.uint8)
    if end > first:
        _read_into(entry, first, memory.numpy().data, digest if is_checked else None, algorithm, is_checked)
    tensor = torch.empty(0, dtype=dtype).set_(memory.untyped_storage(), 0, entry.shape, entry.strides)
    if end - first > MAX_STRIDED_WASTE * entry.num_bytes or 0 in entry.strides:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    return tensor


def _read_into(
    entry: TensorEntry, first: int, memory: memoryview, digest: str | None, algorithm: str, is_checked: bool
) -> None:
    is_whole = first == 0 and len(memory) == entry.storage.num_bytes
    expected_crc32 = entry.storage.crc32 if is_whole and is_checked else None
    hash_: Hasher | None = None
    if digest is not None and entry.is_contiguous and expected_crc32 is None:
        hash_ = hasher(algorithm, prefix(entry.dtype, entry.shape))
    crc = 0
    for start in range(0, len(memory), BLOCK_BYTES):
        block = memory[start : start + BLOCK_BYTES]
        entry.storage.read_into(first + start, block)
        if expected_crc32 is not None:
            crc = crc32(block, crc)
        if hash_ is not None:
            hash_.update(block)
    if expected_crc32 not in (None, crc):
        raise damaged("", entry.name, "CRC-32")
    if hash_ is not None and hash_.hexdigest() != digest:
        raise damaged("", entry.name, f"recorded {algorithm} digest")


def to_torch(value: Any, name: str, is_checked: bool = True) -> Any:
    """Nested plain data with each entry as a tensor, each dtype as torch's.

    Raises: LossyError naming a value that is not plain data.
    """
    if isinstance(value, TensorEntry):
        return read_tensor(value, is_checked=is_checked)
    if isinstance(value, DType):
        return getattr(torch, value.name)
    if isinstance(value, dict):
        return type(value)((key, to_torch(item, f"{name}.{key}", is_checked)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        items = [to_torch(item, f"{name}.{i}", is_checked) for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if is_quantized(value):
        return _quantized(value, is_checked)
    if isinstance(value, (Opaque, Global)):
        raise LossyError(f"{name!r} is a {value.name}, which is not plain data", "", "it cannot be loaded")
    return value


def _quantized(value: Opaque, is_checked: bool) -> torch.Tensor:
    """The quantized tensor that `formats.quantized` describes."""
    integers = read_tensor(value.state["int_repr"], is_checked=is_checked)
    scale, zero_point, *axis = (to_torch(one, "", is_checked) for one in parameters(value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to do away with quantized tensors
        if axis:
            return torch._make_per_channel_quantized_tensor(integers, scale, zero_point, *axis)
        return torch._make_per_tensor_quantized_tensor(integers, scale, zero_point)


def torch_dtype(entry: TensorEntry) -> torch.dtype:
    """The torch dtype of `entry`.

    Raises: LossyError when this torch has none of that name, or the entry is no plain tensor.
    """
    if entry.kind not in ("tensor", "parameter"):
        raise LossyError(
            f"{entry.name!r} is {entry.kind}, not a plain tensor", "", "convert it to a dense tensor"
        )
    dtype = getattr(torch, entry.dtype.name, None)
    if not isinstance(dtype, torch.dtype):
        raise LossyError(
            f"{entry.name!r} has the dtype {entry.dtype.name}, which torch {torch.__version__} lacks",
            "",
            "use a newer torch, or convert with --dtype",
        )
    return dtype

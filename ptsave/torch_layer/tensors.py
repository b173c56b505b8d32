"""TensorEntry → torch.Tensor, in fresh memory, checked on the way."""

from __future__ import annotations

import ctypes
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from typing import Any

import torch

from ptsave.core.digest import DEFAULT
from ptsave.core.dtypes import DType
from ptsave.core.fetch import fetch, fetching
from ptsave.core.nodes import Global, Opaque, TensorEntry
from ptsave.core.workers import NUM_THREADS
from ptsave.errors import LossyError
from ptsave.formats.quantized import is_quantized, parameters

MAX_STRIDED_WASTE = 2
"""A strided view keeps its strides while it spans at most this many times its own bytes."""


def read_tensors(
    entries: Mapping[str, TensorEntry],
    *,
    digests: Mapping[str, str] | None = None,
    algorithm: str = DEFAULT,
    is_checked: bool = True,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Each entry as a CPU tensor of its own memory, with the entry's dtype, shape and strides.

    A few are read ahead on threads, large ones in parts. Where the container has a CRC-32 or `digests` a
    digest of exactly the bytes that are read, they are held against it, unless `is_checked` is off.

    Raises: CorruptError naming the tensor; LossyError for what is not a plain tensor, or of a dtype that
    this torch lacks.
    """
    digests = digests or {}
    ahead: deque[tuple[str, Callable[[], torch.Tensor]]] = deque()
    with fetching() as pool:
        for name, entry in entries.items():
            finish = _begin(pool, entry, digests.get(entry.name), algorithm, is_checked)
            ahead.append((name, finish))
            if len(ahead) > NUM_THREADS:
                done, finish = ahead.popleft()
                yield done, finish()
        while ahead:
            done, finish = ahead.popleft()
            yield done, finish()


def read_tensor(
    entry: TensorEntry, digest: str | None = None, algorithm: str = DEFAULT, is_checked: bool = True
) -> torch.Tensor:
    """One entry as a CPU tensor; see `read_tensors`."""
    with fetching() as pool:
        return _begin(pool, entry, digest, algorithm, is_checked)()


def _begin(
    pool: Executor, entry: TensorEntry, digest: str | None, algorithm: str, is_checked: bool
) -> Callable[[], torch.Tensor]:
    """Begin to read one entry; returns what waits for it and gives the tensor.

    The memory is torch's own, and ordinary: huge pages halve the time on an idle machine of one's own, but
    in a virtual machine whose free memory goes back to its host they took three times as long.
    """
    dtype = torch_dtype(entry)
    first, end = entry.byte_range
    memory = torch.empty(end - first, dtype=torch.uint8)
    wait = fetch(pool, entry, memory_of(memory), digest, algorithm, is_checked) if end > first else None

    def finish() -> torch.Tensor:
        if wait is not None:
            wait()
        tensor = torch.empty(0, dtype=dtype).set_(memory.untyped_storage(), 0, entry.shape, entry.strides)
        return tensor if is_dense(entry) else tensor.clone(memory_format=torch.contiguous_format)

    return finish


def is_dense(entry: TensorEntry) -> bool:
    """Whether a tensor with the entry's strides holds each element once, and little else."""
    first, end = entry.byte_range
    return entry.num_bytes <= end - first <= MAX_STRIDED_WASTE * entry.num_bytes and 0 not in entry.strides


def memory_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, where they lie: what is written there is written to the tensor.

    The tensor must outlive it.
    """
    num_bytes = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_ubyte * num_bytes).from_address(tensor.data_ptr())).cast("B")


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

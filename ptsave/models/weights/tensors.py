"""TensorEntry → torch.Tensor, in fresh memory, checked on the way."""

from __future__ import annotations

import ctypes
import io
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from typing import Any

import torch

from ptsave.core.dtypes import DType
from ptsave.core.nodes import Global, Opaque, TensorEntry
from ptsave.core.tree import CYCLE, map_leaves, walk
from ptsave.core.values.digest import DEFAULT
from ptsave.core.values.resolved import resolved
from ptsave.errors import LossyError, quoted
from ptsave.formats.kinds.objects import is_meta, is_nested, parameter_data, parts_by_name
from ptsave.formats.kinds.quantized import integers_of, is_quantized, parameters
from ptsave.formats.pickle.shapes import Payload
from ptsave.own_process import without_warnings
from ptsave.storage.fetch import fetch, fetching

MAX_AHEAD = 2
"""How many tensors are read ahead of the one that is used: each takes its memory."""
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

    A subclass is a plain tensor here, a conjugate or negative view the values that it stands for.

    A few are read ahead on threads, large ones in parts. Where the container has a CRC-32 or `digests` a
    digest of exactly the bytes that are read, they are checked against it, unless `is_checked` is off.

    Raises: CorruptError naming the tensor; LossyError for a dtype that this torch lacks.
    """
    digests = digests or {}
    for entry in entries.values():
        entry.expect()
    ahead: deque[tuple[str, Callable[[], torch.Tensor]]] = deque()
    with fetching() as pool:
        for name, entry in entries.items():
            finish = _begin(pool, entry, digests.get(entry.name), algorithm, is_checked)
            ahead.append((name, finish))
            if len(ahead) > MAX_AHEAD:
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
    entry = resolved(entry)
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
    """Nested plain data with each entry as a tensor, each dtype as torch's; what is shared stays shared.

    Raises: LossyError where a value in `name` is not plain data; LimitError as `map_leaves` does.
    """
    return map_leaves(value, lambda leaf: _to_torch(leaf, name, is_checked))


def _to_torch(value: Any, name: str, is_checked: bool) -> Any:
    if isinstance(value, TensorEntry):
        return read_tensor(value, is_checked=is_checked)
    if isinstance(value, DType):
        return getattr(torch, value.name)
    value = parameter_data(value)
    if is_quantized(value):
        return _quantized(value, name, is_checked)
    if isinstance(value, Opaque) and value.name in _SPARSE:
        return _sparse(value, name, is_checked)
    if is_nested(value):
        return _nested(value, name, is_checked)
    if is_meta(value):
        dtype, size, stride, requires_grad = parts_by_name(value)
        made = torch.empty_strided(size, stride, dtype=getattr(torch, dtype.name), device="meta")
        return made.requires_grad_(requires_grad)
    if isinstance(value, Opaque) and value.name == "_io.BytesIO":
        return _bytes_io(value, name)
    if isinstance(value, io.BytesIO):  # each reader begins where it was
        copied = io.BytesIO(value.getvalue())
        copied.seek(value.tell())
        return copied
    if isinstance(value, (Opaque, Global)):
        hint = f"`ptsave convert --drop {quoted(name)}` leaves it out"
        raise LossyError(f"{name!r} is a {value.name}, which is not plain data", "", hint)
    return value


def refused_part(value: Any) -> Opaque | Global | None:
    """What in nested data `to_torch` refuses, if anything; nothing is read."""
    for _, node in walk(value):
        leaf: Any = parameter_data(node)
        if not isinstance(leaf, (Opaque, Global)) or leaf is CYCLE or is_quantized(leaf):
            continue
        if leaf.name not in (*_SPARSE, "_io.BytesIO") and not is_nested(leaf) and not is_meta(leaf):
            return leaf
    return None


def _quantized(value: Opaque, name: str, is_checked: bool) -> torch.Tensor:
    """The quantized tensor that `formats.kinds.quantized` describes.

    Raises: LossyError where its parts do not go together.
    """
    integers = read_tensor(integers_of(value), is_checked=is_checked)
    scale, zero_point, *axis = (to_torch(one, "", is_checked) for one in parameters(value))
    with without_warnings():  # torch means to do away with quantized tensors
        try:
            if "packed" in value.state:
                return _packed(value, integers, (scale, zero_point, *axis))
            if axis:
                return torch._make_per_channel_quantized_tensor(integers, scale, zero_point, *axis)
            return torch._make_per_tensor_quantized_tensor(integers, scale, zero_point)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            what = f"the quantized tensor {name!r} is damaged: {error}"
            raise LossyError(what, "", "save it again") from error


def _packed(value: Opaque, integers: torch.Tensor, parameters: tuple[Any, ...]) -> torch.Tensor:
    """A quantized tensor with several elements to a byte; the reader has checked its bounds."""
    state = value.state
    scheme = getattr(torch, state["qscheme"])
    rebuild: Any = torch._utils._rebuild_qtensor
    typed: Any = torch.storage.TypedStorage
    dtype = getattr(torch, state["dtype"].name)
    storage = typed(wrap_storage=integers.untyped_storage(), dtype=dtype, _internal=True)
    view = (state["offset"], state["size"], state["stride"])
    return rebuild(storage, *view, (scheme, *parameters), False, {})  # type: ignore[no-any-return]


_SPARSE = ("torch.sparse_coo", "torch.sparse_csr", "torch.sparse_csc", "torch.sparse_bsr", "torch.sparse_bsc")


def _sparse(value: Opaque, name: str, is_checked: bool) -> torch.Tensor:
    """The sparse tensor that `formats.torch.unusual` describes.

    Raises: LossyError where its parts do not go together.
    """
    parts = {key: to_torch(part, name, is_checked) for key, part in value.state.items()}
    try:
        if value.name == "torch.sparse_coo":
            indices, values, size = parts["indices"], parts["values"], parts["size"]
            flag = parts.get("is_coalesced")
            return torch.sparse_coo_tensor(indices, values, size, is_coalesced=flag, check_invariants=True)
        pointers, indices, values, size = parts.values()
        layout = getattr(torch, value.name.removeprefix("torch."))
        return torch.sparse_compressed_tensor(
            pointers, indices, values, size, layout=layout, check_invariants=True
        )
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise LossyError(f"the sparse tensor {name!r} is damaged: {error}", "", "save it again") from error


def _nested(value: Opaque, name: str, is_checked: bool) -> torch.Tensor:
    """The nested tensor whose rows lie in one buffer.

    Raises: LossyError where one does not lie inside it.
    """
    buffer, *parts = (to_torch(part, name, is_checked) for part in parts_by_name(value))
    if not _are_inside(buffer, *parts):
        raise LossyError(f"the nested tensor {name!r} is damaged", "", "save it again")
    return torch._nested_view_from_buffer(buffer, *parts)


def _are_inside(
    buffer: torch.Tensor, sizes: torch.Tensor, strides: torch.Tensor, offsets: torch.Tensor
) -> bool:
    """Whether each row lies in the buffer, in Python's integers, which do not overflow; torch does not look.

    Source: aten/src/ATen/NestedTensorImpl.cpp.
    """
    if buffer.dim() != 1 or not buffer.is_contiguous() or offsets.dim() != 1 or offsets.dtype != torch.int64:
        return False
    if not len(offsets):
        return not sizes.numel() and not strides.numel()
    if sizes.dim() != 2 or sizes.shape != strides.shape or len(sizes) != len(offsets):
        return False
    if sizes.dtype != torch.int64 or strides.dtype != torch.int64:
        return False
    for size, stride, offset in zip(sizes.tolist(), strides.tolist(), offsets.tolist(), strict=True):
        if min(*size, *stride, offset, 0) < 0:
            return False
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 not in size and last >= len(buffer):
            return False
    return True


def _bytes_io(value: Opaque, name: str) -> io.BytesIO:
    """The buffer of bytes that `io.BytesIO` pickles as (bytes, position, attributes)."""
    content = value.state[0] if isinstance(value.state, tuple) and len(value.state) == 3 else None
    if isinstance(content, Payload) and content.name == "builtins.bytes":
        held = bytearray(content.storage.num_bytes)
        content.storage.read_into(0, memoryview(held))
        content = bytes(held)
    if not isinstance(content, bytes) or type(value.state[1]) is not int or value.state[1] < 0:
        raise LossyError(f"{name!r} is a BytesIO that holds no bytes", "", "save it again")
    buffer = io.BytesIO(content)
    buffer.seek(value.state[1])
    return buffer


def torch_dtype(entry: TensorEntry) -> torch.dtype:
    """The torch dtype of `entry`.

    Raises: LossyError when this torch has none of that name.
    """
    dtype = getattr(torch, entry.dtype.name, None)
    if not isinstance(dtype, torch.dtype):
        raise LossyError(
            f"{entry.name!r} has the dtype {entry.dtype.name}, which torch {torch.__version__} lacks",
            "",
            "use a newer torch, or cast it with `ptsave convert --dtype`",
        )
    return dtype

"""What tells the values of a live state apart: 16 bytes for each, alike on every rank for the same value."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from xxhash import xxh3_128

from ptsave.torch_layer.live import is_plain
from ptsave.torch_layer.spread import is_spread
from ptsave.torch_layer.tensors import memory_of

BLOCK_BYTES = 64 * 1024 * 1024
"""How much of a device's tensor is on the host at a time."""


class Item(NamedTuple):
    """What the ranks tell each other of a value."""

    digest: bytes
    num_bytes: int
    """Of its tensors."""
    kind: str
    is_spread: bool


def item_of(value: Any, kind: str) -> Item:
    """What is told of a live value: plain data, a tensor, or one that is spread over ranks.

    Of a spread one the digest is of how it is spread, not of what it holds.
    """
    if is_spread(value):
        mesh = value.device_mesh
        words = (tuple(value.shape), str(value.dtype), mesh.mesh.flatten().tolist(), str(value.placements))
        num_bytes = value.numel() * value.element_size()
        return Item(xxh3_128(repr(words).encode()).digest(), num_bytes, kind, True)
    found = xxh3_128()
    num_bytes = _feed(found, value)
    return Item(found.digest(), num_bytes, kind, False)


def part_of(value: Any) -> tuple[Any, bytes]:
    """Which part of a spread tensor this rank holds, and the digest of that."""
    from ptsave.torch_layer.parallel.materialise import box_of  # which imports torch.distributed

    with torch.no_grad():
        return box_of(value), item_of(value.to_local(), "").digest


def _feed(found: xxh3_128, value: Any) -> int:
    """Digest a value; returns the bytes of the tensors in it."""
    if isinstance(value, torch.Tensor):
        return _feed_tensor(found, value)
    if isinstance(value, Mapping):
        found.update(b"{%d" % len(value))
        return sum(_feed(found, part) for pair in value.items() for part in pair)
    if isinstance(value, (list, tuple)):
        found.update((b"[%d" if isinstance(value, list) else b"(%d") % len(value))
        return sum(_feed(found, part) for part in value)
    found.update(f"{type(value).__name__} {value!r}\n".encode("utf-8", "surrogatepass"))
    return 0


def _feed_tensor(found: xxh3_128, tensor: torch.Tensor) -> int:
    tensor = tensor.detach()
    found.update(f"{tensor.dtype}{list(tensor.shape)}{tensor.layout}".encode())
    if tensor.is_meta:
        return 0
    if not is_plain(tensor):  # sparse, quantized, a subclass
        file = io.BytesIO()
        torch.save(tensor.cpu(), file)
        found.update(file.getbuffer())
        return len(file.getbuffer())
    flat = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    for begin in range(0, flat.numel(), BLOCK_BYTES):
        block = flat[begin : begin + BLOCK_BYTES].cpu()
        found.update(memory_of(block))
    return flat.numel()

"""What tells the values of a live state apart: 16 bytes for each, alike on every rank for the same value."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from xxhash import xxh3_128

from ptsave.models.weights.live import is_plain
from ptsave.models.weights.sharded import is_sharded
from ptsave.models.weights.tensors import memory_of

BLOCK_BYTES = 64 * 1024 * 1024
"""How much of a device's tensor is on the host at a time."""
MIXED_WORDS = 1024 * 1024
"""How many words of 8 bytes are mixed at a time, which takes four times as much of the device's memory."""


class Item(NamedTuple):
    """What the ranks tell each other of a value."""

    digest: bytes
    num_bytes: int
    """Of its tensors."""
    kind: str
    is_sharded: bool


def item_of(value: Any, kind: str) -> Item:
    """What is told of a live value: plain data, a tensor, or one that is sharded over ranks.

    Of a sharded one the digest is of how it is sharded, not of what it holds.
    """
    if is_sharded(value):
        mesh = value.device_mesh
        words = (tuple(value.shape), str(value.dtype), mesh.mesh.flatten().tolist(), str(value.placements))
        num_bytes = value.numel() * value.element_size()
        return Item(xxh3_128(repr(words).encode()).digest(), num_bytes, kind, True)
    found = xxh3_128()
    num_bytes = _feed(found, value)
    return Item(found.digest(), num_bytes, kind, False)


def part_of(value: Any) -> tuple[Any, bytes]:
    """Which part of a sharded tensor this rank holds, and the digest of that."""
    from ptsave.models.weights.own_shard import box_of  # which imports torch.distributed

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
    if flat.is_cuda:
        found.update(b"%d" % mixed(flat))
        return flat.numel()
    for begin in range(0, flat.numel(), BLOCK_BYTES):
        block = flat[begin : begin + BLOCK_BYTES].cpu()
        found.update(memory_of(block))
    return flat.numel()


def mixed(data: torch.Tensor) -> int:
    """64 bits that tell contiguous bytes apart, made where the bytes are: a GPU's memory is much faster than
    the way to the host.

    Each word of 8 bytes, with its place, goes through the finaliser of SplitMix64, and the results are added.
    Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators (2014).
    """
    num_whole = data.numel() // 8 * 8
    tail = torch.zeros(8, dtype=torch.uint8, device=data.device)
    tail[: data.numel() - num_whole] = data[num_whole:]
    whole = data[:num_whole]
    if whole.storage_offset() % 8 or whole.data_ptr() % 8:
        whole = whole.clone()
    total = torch.full((1,), data.numel(), dtype=torch.int64, device=data.device)
    begin = 0
    for block in (*torch.split(whole.view(torch.int64), MIXED_WORDS), tail.view(torch.int64)):
        word = torch.arange(begin + 1, begin + 1 + block.numel(), device=data.device)
        word.mul_(_GOLDEN).add_(block)
        for shift, factor in ((30, _FIRST), (27, _SECOND)):
            word.bitwise_xor_((word >> shift).bitwise_and_((1 << (64 - shift)) - 1)).mul_(factor)
        word.bitwise_xor_((word >> 31).bitwise_and_((1 << 33) - 1))
        total += word.sum()
        begin += block.numel()
    return int(total.item())


_GOLDEN, _FIRST, _SECOND = (
    number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
"""As signed integers, which torch has."""

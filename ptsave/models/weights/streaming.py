"""Tensors streamed into those of a model that is there, on any device, with little memory besides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from ptsave.core.nodes import TensorEntry, contiguous_strides
from ptsave.core.record import Digests
from ptsave.core.values.gather import laid_out
from ptsave.core.values.resolved import resolved
from ptsave.errors import LossyError
from ptsave.models.weights.live import refused_kind
from ptsave.models.weights.tensors import is_dense, memory_of, torch_dtype
from ptsave.storage.fetch import Wait, fetch, fetching
from ptsave.storage.scan import Check
from ptsave.storage.workers import num_threads

STREAM_BYTES = 4 * 1024 * 1024
"""The size of a buffer on the way into a tensor that cannot be read into; two are used in turn."""

Progress = Callable[[int], None]


def stream_into(
    targets: nn.Module | Mapping[str, torch.Tensor],
    entries: Mapping[str, TensorEntry],
    *,
    digests: Digests | None = None,
    is_checked: bool = True,
    progress: Progress | None = None,
) -> None:
    """Copy each entry into the tensor of its name, on whatever device and of whatever dtype that is.

    `targets` is a module, whose state dict it is then, or a state dict: tensors that are there, and stay the
    same objects over the same memory. One that several names are tied to is filled once, from the first of
    them that `entries` has. `entries` are a checkpoint's tensors (`Checkpoint.tensors`, or a part, renamed);
    more of them than targets do no harm. `digests` speaks of them by their own names (`entry.name`).

    Contiguous CPU tensors of the entry's dtype are read into directly, on threads. The rest goes through two
    buffers of STREAM_BYTES; for CUDA they are pinned, so that the next part is read while one is on its way.
    Nothing else is held. CRC-32s and digests are checked in the same pass unless `is_checked` is off.

    Raises: LossyError naming a target that has no entry, another shape, no memory of its own (meta, expanded)
    or is not a plain tensor; nothing has been written then. CorruptError and UnreadableError; the tensors
    before the named one have been written, and part of it.
    """
    pairs = _pairs(targets, entries)
    for _, entry in pairs:
        entry.expect()
    pairs.sort(key=lambda pair: pair[1].storage.remote_place() or (0, 0))  # neighbours arrive together
    expected = digests or Digests("")
    ahead: list[tuple[Wait, int]] = []
    others = []

    def finish(wait: Wait, num_bytes: int) -> None:
        wait()
        if progress is not None:
            progress(num_bytes)

    storages: set[int] = set()
    most_ahead = num_threads()
    with fetching() as pool:
        for target, entry in pairs:
            address = target.untyped_storage().data_ptr()
            if not _is_direct(target, entry) or address in storages:  # views of one storage: in turn
                others.append((target, entry))
                continue
            storages.add(address)
            target.view(-1)[:0].view(torch.uint8).zero_()  # tells autograd that the values change
            digest = expected.tensors.get(entry.name)
            if entry.num_bytes:
                wait = fetch(pool, entry, memory_of(target), digest, expected.algorithm, is_checked)
                ahead.append((wait, entry.num_bytes))
            if len(ahead) > most_ahead:
                finish(*ahead.pop(0))
        for one in ahead:
            finish(*one)
    if others:
        _Buffers(any(target.is_cuda for target, _ in others)).carry(others, expected, is_checked, progress)


def stream_to(
    device: str,
    entries: Mapping[str, TensorEntry],
    dtypes: Mapping[str, torch.dtype],
    *,
    digests: Digests | None = None,
    is_checked: bool = True,
) -> dict[str, torch.Tensor]:
    """Each entry as a tensor on `device`, of the dtype of its name in `dtypes`, with no copy on the CPU.

    Raises: what `stream_into` raises.
    """
    tensors = {}
    for name, entry in entries.items():
        strides = entry.strides if is_dense(entry) else contiguous_strides(entry.shape)
        tensors[name] = torch.empty_strided(entry.shape, strides, dtype=dtypes[name], device=device)
    stream_into(tensors, entries, digests=digests, is_checked=is_checked)
    return tensors


def _pairs(
    targets: nn.Module | Mapping[str, torch.Tensor], entries: Mapping[str, TensorEntry]
) -> list[tuple[torch.Tensor, TensorEntry]]:
    """Each target, once, and what goes there, row by row.

    Raises: LossyError.
    """
    if isinstance(targets, nn.Module):
        state = targets.state_dict(keep_vars=True)
        targets = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    names: dict[int, list[str]] = {}
    for each, target in targets.items():
        names.setdefault(id(target), []).append(each)
    pairs = []
    for tied in names.values():
        there = [name for name in tied if name in entries]
        if not there:
            raise LossyError(f"the checkpoint has no {tied[0]!r}", "", "check the names")
        name = there[0]
        target, entry = targets[name], entries[name]
        torch_dtype(entry)
        if (kind := refused_kind(target)) is not None:
            raise LossyError(f"{name!r} is {kind} in the model", "", "give the model plain tensors first")
        if tuple(target.shape) != entry.shape:
            raise LossyError(
                f"{name!r} has the shape {list(entry.shape)}, the model {list(target.shape)}",
                "",
                "check the config",
            )
        if any(step == 0 and size > 1 for size, step in zip(target.shape, target.stride(), strict=True)):
            raise LossyError(f"{name!r} is an expanded view in the model", "", "make it contiguous first")
        if target.is_inference() and not torch.is_inference_mode_enabled():
            raise LossyError(f"{name!r} was made in inference mode", "", "load inside of it")
        pairs.append((target.detach(), laid_out(resolved(entry))))
    return pairs


def _is_direct(target: torch.Tensor, entry: TensorEntry) -> bool:
    """Whether the entry's bytes are those that the target has to hold."""
    is_plain = target.device.type == "cpu" and target.is_contiguous()
    return is_plain and target.dtype is torch_dtype(entry) and not (target.is_conj() or target.is_neg())


class _Buffers:
    """Two buffers that are filled in turn, each when what it held has arrived."""

    def __init__(self, is_pinned: bool) -> None:
        self.is_pinned = is_pinned
        self.memory = [torch.empty(STREAM_BYTES, dtype=torch.uint8, pin_memory=is_pinned) for _ in range(2)]
        self.events: list[torch.cuda.Event | None] = [None, None]
        self.turn = 0

    def carry(
        self,
        pairs: list[tuple[torch.Tensor, TensorEntry]],
        digests: Digests,
        is_checked: bool,
        progress: Progress | None,
    ) -> None:
        """Copy each entry (row-major) into its target."""
        for target, entry in pairs:
            check = Check(entry, digests.tensors.get(entry.name), digests.algorithm, is_checked)
            offset = entry.byte_range[0]
            for block in blocks(target, STREAM_BYTES // entry.dtype.itemsize):
                num_bytes = block.numel() * entry.dtype.itemsize
                view = self._next(num_bytes)
                window = memory_of(view)
                entry.storage.read_into(offset, window)
                check.sums.update(window)
                self._send(view.view(torch_dtype(entry)).view(block.shape), block)
                offset += num_bytes
                if progress is not None:
                    progress(num_bytes)
            check.finish()
        for event in self.events:
            if event is not None:
                event.synchronize()

    def _next(self, num_bytes: int) -> torch.Tensor:
        """The buffer whose turn it is, as soon as it is free."""
        event = self.events[self.turn]
        if event is not None:
            event.synchronize()
        return self.memory[self.turn][:num_bytes]

    def _send(self, view: torch.Tensor, block: torch.Tensor) -> None:
        block.copy_(view, non_blocking=self.is_pinned)
        if block.is_cuda:
            event = self.events[self.turn] = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(block.device))
        self.turn = 1 - self.turn


def blocks(target: torch.Tensor, most: int) -> Iterator[torch.Tensor]:
    """Views of `target` of at most that many elements, which follow each other in row-major order."""
    if target.numel() <= most:
        if target.numel():
            yield target
    elif target.is_contiguous():
        yield from torch.split(target.view(-1), most)
    else:
        rows = most // (target.numel() // target.shape[0])
        if rows:
            yield from torch.split(target, rows)
        else:
            for row in target:
                yield from blocks(row, most)

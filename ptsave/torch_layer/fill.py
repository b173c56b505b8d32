"""Checkpoint → live model: fitted key by key, each storage read once, ties kept."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.digest import HEX_DIGITS, tensor_digest
from ptsave.core.keys import Expected, KeyReport, compare
from ptsave.core.nodes import TensorEntry
from ptsave.core.record import Digests, Record
from ptsave.core.select import Selection, named_as
from ptsave.errors import LossyError
from ptsave.torch_layer.streaming import map_tensors
from ptsave.torch_layer.tensors import read_tensor, read_tensors, to_torch

Warn = Callable[[str], None]
Tensors = Iterable[tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class Parts:
    """What of each tensor a model takes: all of it, unless the model is spread over ranks."""

    cut: Callable[[TensorEntry, torch.Tensor], TensorEntry] = lambda entry, want: entry
    """The part of an entry that the model's tensor of its name holds here."""
    join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda tensor, want: tensor
    """That part, once it is read, as the tensor that the model expects."""


WHOLE = Parts()


def expected_of(model: nn.Module) -> dict[str, Expected]:
    """What `model.state_dict()` holds under each name; the model may be on the meta device.

    Buffers that it leaves out come last.
    """
    first: dict[int, str] = {}
    expected = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not _is_tensor(value):
            continue
        tied_to = first.setdefault(id(value), name)
        lazy = nn.parameter.is_lazy(value)
        expected[name] = Expected(
            None if lazy else tuple(value.shape),
            str(value.dtype).removeprefix("torch."),
            tied_to if tied_to != name else None,
        )
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name not in expected:
            shape, dtype = tuple(buffer.shape), str(buffer.dtype).removeprefix("torch.")
            expected[name] = Expected(shape, dtype, is_recomputed=True)
    return expected


def extra_of(model: nn.Module) -> set[str]:
    """The names of the state dict that do not hold plain tensors: `get_extra_state`'s, quantized weights."""
    state = model.state_dict(keep_vars=True)
    return {name for name, value in state.items() if not _is_tensor(value)}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_quantized


def fill(
    model: nn.Module,
    source: Checkpoint,
    selection: Selection,
    device: str,
    warn: Warn,
    *,
    is_checked: bool = True,
    is_mapped: bool = False,
    parts: Parts = WHOLE,
) -> KeyReport:
    """Put the tensors of `selection` into `model` (built on the meta device) and move it to `device`.

    The model keeps its own dtypes, as `load_state_dict` has it; what is cast is said through `warn`. Only
    tensors that are read whole are held against their checksums. With `is_mapped`, tensors that stay as they
    are lie in the file's own pages, and none is held against anything.

    Raises: LossyError when a name is missing, unexpected or of another shape; CorruptError for a tensor that
    does not match its checksum, unless `is_checked` is off.
    """
    state = model.state_dict(keep_vars=True)
    selection = named_as(selection, state)
    report = compare(expected_of(model), selection.tensors, extra_of(model), selection.extra)
    if not report.fits:
        raise misfit(report, source.path)
    if report.recast:
        name, want, found = report.recast[0]
        warn(f"{len(report.recast)} tensors are cast to the model's dtype ({name}: {found} → {want})")
    _compare_recomputed(model, report.recomputed, selection, warn)
    is_skeleton = any(isinstance(value, torch.Tensor) and value.is_meta for value in state.values())
    read = partial(_read, source=source, is_checked=is_checked, is_mapped=is_mapped)
    filled: Any = OrderedDict(_values(state, selection, device, warn, read, parts))
    filled.update((name, to_torch(selection.extra[name], name, is_checked)) for name in extra_of(model))
    filled._metadata = selection.metadata or getattr(state, "_metadata", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what `assign` means to do
        model.load_state_dict(filled, strict=True, assign=is_skeleton)
    model.to(device)
    return report


def _values(
    state: Mapping[str, Any],
    selection: Selection,
    device: str,
    warn: Warn,
    read: Callable[[Mapping[str, TensorEntry], Mapping[str, TensorEntry]], Tensors],
    parts: Parts,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the state dict, read once; names that the model ties get one and the same object."""
    groups: dict[int, list[str]] = {}
    for name, value in state.items():
        if _is_tensor(value):
            groups.setdefault(id(value), []).append(name)
    chosen: dict[str, list[str]] = {}
    for names in groups.values():
        there = [name for name in names if name in selection.tensors]
        _warn_if_untied(there, selection, warn)
        chosen[there[0]] = names
    whole = {name: selection.tensors[name].named(selection.original[name]) for name in chosen}
    entries = {name: parts.cut(entry, state[name]) for name, entry in whole.items()}
    for first, tensor in read(entries, whole):
        want = state[first]
        tensor = parts.join(tensor.to(device=device, dtype=want.dtype), want)
        if isinstance(want, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=want.requires_grad)
        for name in chosen[first]:
            yield name, tensor


def _read(
    entries: Mapping[str, TensorEntry],
    whole: Mapping[str, TensorEntry],
    *,
    source: Checkpoint,
    is_checked: bool,
    is_mapped: bool,
) -> Tensors:
    """The tensors of `entries`, which are those of `whole` or parts of them."""
    if is_mapped:
        return map_tensors(entries).items()
    digests = _digests_for((e for name, e in entries.items() if e is whole[name]), source.record)
    return read_tensors(entries, digests=digests.tensors, algorithm=digests.algorithm, is_checked=is_checked)


def _digests_for(entries: Iterable[TensorEntry], record: Record | None) -> Digests:
    """The recorded digests that speak for `entries`."""
    digests = record.digests if record is not None else None
    if record is None or digests is None or digests.algorithm not in HEX_DIGITS:
        return Digests("")
    known = (e.name for e in entries if e.name in digests.tensors and not record.was_cast(e.dtype))
    return Digests(digests.algorithm, {name: digests.tensors[name] for name in known})


def _compare_recomputed(model: nn.Module, names: Sequence[str], selection: Selection, warn: Warn) -> None:
    """Say so when a buffer that the model makes by itself is another one in the file."""
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for name in names:
        found = read_tensor(selection.tensors[name])
        own = buffers[name].cpu().to(found.dtype)
        if found.shape != own.shape or not torch.equal(found, own):
            warn(f"{name!r} in the file is not what the model computes by itself: kept the model's own")


def _warn_if_untied(names: list[str], selection: Selection, warn: Warn) -> None:
    """Say so when the file holds different values under names that are one parameter in the model."""
    first = selection.tensors[names[0]]
    for name in names[1:]:
        other = selection.tensors[name]
        if other.view != first.view and tensor_digest(other) != tensor_digest(first):
            warn(f"{names[0]!r} and {name!r} are one parameter in the model, two in the file: took the first")


def misfit(report: KeyReport, where: Path) -> LossyError:
    """The error for a state dict that does not fit, with every key that is in the way."""
    hint = "build the model that the weights belong to (`ptsave verify -c` proposes renames)"
    if report.nearest:
        name, near = next(iter(report.nearest.items()))
        hint = f"{name!r} may be {near!r} in the file; `ptsave convert --rename` renames"
    return LossyError(
        f"the checkpoint does not fit the model: {report.summary()}",
        str(where),
        hint,
        missing=list(report.missing),
        unexpected=list(report.unexpected),
        mismatched=[{"name": m.name, "expected": m.expected, "found": m.found} for m in report.mismatched],
        nearest=dict(report.nearest),
    )

"""Checkpoint → live model: fitted key by key, each storage read once, ties kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptsave.core.accounts import Extras, settle_left_out
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.digest import recorded_digests, tensor_digest
from ptsave.core.keys import Expected, KeyReport, compare
from ptsave.core.nodes import TensorEntry
from ptsave.core.select import Selection, left_out_of, named_as
from ptsave.core.verdict import Counted
from ptsave.errors import LossyError
from ptsave.torch_layer.live import is_plain
from ptsave.torch_layer.mapped import map_apart
from ptsave.torch_layer.streaming import stream_into, stream_to
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
    extras: Extras = "fail",
) -> KeyReport:
    """Put the tensors of `selection` into `model` (built on the meta device) and move it to `device`.

    The model keeps its own dtypes, as `load_state_dict` has it; what is cast is said through `warn`. Only
    tensors that are read whole are held against their checksums. With `is_mapped`, tensors that stay as they
    are lie in the file's own pages, and none is held against anything: for those who know that the file stays
    as it is. A model that has memory already is filled in place, with nothing held beside it, and one on
    another device through a small buffer.

    Raises: LossyError when what is taken holds weights that no state dict has, unless `extras` is "drop", or
    when a name is missing, unexpected or of another shape, and the model is as it was;
    CorruptError for a tensor that does not match its checksum, unless `is_checked` is off, and a model that
    had memory already is filled in part.
    """
    said: list[str] = []
    settle_left_out(left_out_of(source, selection.where), extras, [], said, str(source.path))
    for note in said:
        warn(note)
    state = model.state_dict(keep_vars=True)
    selection = named_as(selection, state)
    report = compare(expected_of(model), selection.tensors, extra_of(model), selection.extra)
    if not report.fits:
        raise misfit(report, source.path)
    if report.recast:
        name, want, found = report.recast[0]
        cast = Counted(len(report.recast), "tensor is cast", "tensors are cast")
        warn(f"{cast} to the model's dtype ({name}: {found} → {want})")
    _compare_recomputed(model, report.recomputed, selection, warn)
    chosen = _chosen(state, selection, warn)
    whole = {names[0]: selection.tensors[names[0]].named(selection.original[names[0]]) for names in chosen}
    extra = extra_of(model)
    if parts is WHOLE and not extra and _only_copies(model, state):
        model.to(device)
        state = model.state_dict(keep_vars=True)
        digests = recorded_digests(whole.values(), source.record)
        targets = {name: state[name] for name in whole}
        stream_into(targets, whole, digests=digests, is_checked=is_checked and not is_mapped)
        source.check_unchanged()
        return report
    is_skeleton = any(isinstance(value, torch.Tensor) and value.is_meta for value in state.values())
    entries = {name: parts.cut(entry, state[name]) for name, entry in whole.items()}
    digests = recorded_digests((e for name, e in entries.items() if e is whole[name]), source.record)
    tensors: Tensors
    if is_mapped:
        tensors = map_apart(entries).items()
    elif parts is WHOLE and torch.device(device).type != "cpu":
        dtypes = {name: state[name].dtype for name in entries}
        tensors = stream_to(device, entries, dtypes, digests=digests, is_checked=is_checked).items()
    else:
        tensors = read_tensors(
            entries, digests=digests.tensors, algorithm=digests.algorithm, is_checked=is_checked
        )
    filled: Any = OrderedDict()
    for names, (name, tensor) in zip(chosen, tensors, strict=True):
        want = state[name]
        tensor = parts.join(tensor.to(device=device, dtype=want.dtype), want)
        if isinstance(want, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=want.requires_grad)
        filled.update(dict.fromkeys(names, tensor))
    filled.update((name, to_torch(selection.extra[name], name, is_checked)) for name in extra)
    filled._metadata = selection.metadata or getattr(state, "_metadata", None)
    model.load_state_dict(filled, strict=True, assign=is_skeleton)
    model.to(device)
    source.check_unchanged()
    return report


def _only_copies(model: nn.Module, state: Mapping[str, Any]) -> bool:
    """Whether `load_state_dict` does nothing but copy each value into the tensor of its name.

    The model must have memory, and no code of its own to load with.
    """
    own = {id(tensor) for tensor in chain(model.parameters(), model.buffers())}
    return (
        type(model).load_state_dict is nn.Module.load_state_dict
        and all(has_no_loading_code(module) for module in model.modules())
        and all(id(value) in own and is_plain(value) for value in state.values())
    )


def has_no_loading_code(module: nn.Module) -> bool:
    """Whether a module, but for those in it, loads its own tensors as torch's own modules do."""
    load = type(module)._load_from_state_dict
    if module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks:
        return False
    # torch's own layers (batch norm) only make up for keys that are missing, and none is.
    return load is nn.Module._load_from_state_dict or load.__module__.startswith("torch.nn.modules.")


def _chosen(state: Mapping[str, Any], selection: Selection, warn: Warn) -> list[list[str]]:
    """The names of each tensor of the state dict, all that are tied to it, one that the file has first."""
    groups: dict[int, list[str]] = {}
    for name, value in state.items():
        if _is_tensor(value):
            groups.setdefault(id(value), []).append(name)
    chosen = []
    for names in groups.values():
        there = [name for name in names if name in selection.tensors]
        _warn_if_untied(there, selection, warn)
        chosen.append([there[0], *(name for name in names if name != there[0])])
    return chosen


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

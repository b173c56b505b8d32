"""Checkpoint → live model: fitted key by key, each storage read once, ties kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ptsave.config.toml import ModelSpec
from ptsave.core.accounts import settle_left_out
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import counted, first_names
from ptsave.core.nodes import TensorEntry
from ptsave.core.parts.fits import insist, misfit, way_out
from ptsave.core.parts.keys import EXACT, KeyReport, Wanted
from ptsave.core.parts.placeholders import placeholders, refuse
from ptsave.core.parts.select import Selection, left_out_of
from ptsave.core.tree import as_state_dict
from ptsave.core.values.digest import cast_since, recorded_digests
from ptsave.errors import LossyError
from ptsave.models.build import build_model
from ptsave.models.weights.fitting import expected_of, fit_of, goes_by_name, select_for
from ptsave.models.weights.live import is_plain
from ptsave.models.weights.loading_code import (
    Given,
    NeedsValuesError,
    after,
    assigned,
    give,
    slots,
    state_dict,
    taken_as_they_are,
    tied_names,
    versions,
    with_ties,
    without_memory,
)
from ptsave.models.weights.mapped import map_apart
from ptsave.models.weights.sharded import Parts, is_sharded, placed
from ptsave.models.weights.streaming import stream_into, stream_to
from ptsave.models.weights.tensors import read_tensor, read_tensors, torch_dtype

Warn = Callable[[str], None]
Tensors = Iterable[tuple[str, torch.Tensor]]


WHOLE = Parts()


def build_from(
    spec: ModelSpec,
    source: Checkpoint,
    device: str,
    warn: Warn,
    *,
    app_dir: Path | None,
    seed: int = 0,
    is_mapped: bool = False,
    wanted: Wanted = EXACT,
) -> tuple[nn.Module, Selection, KeyReport]:
    """Build the model of `spec` and fill it from the state dict of `source` that fits; returns how, too.

    Raises: as `build_model`, `select_for` and `fill`.
    """
    skeleton = build_model(spec, device="meta", app_dir=app_dir)
    selection = select_for(skeleton, source, wanted)
    model, report = build_filled(
        spec,
        source,
        selection,
        device,
        warn,
        app_dir=app_dir,
        skeleton=skeleton,
        seed=seed,
        is_mapped=is_mapped,
        wanted=wanted,
    )
    return model, selection, report


def build_filled(
    spec: ModelSpec,
    source: Checkpoint,
    selection: Selection,
    device: str,
    warn: Warn,
    *,
    app_dir: Path | None,
    skeleton: nn.Module | None = None,
    seed: int = 0,
    is_checked: bool = True,
    is_mapped: bool = False,
    align_bytes: int | None = None,
    wanted: Wanted = EXACT,
) -> tuple[nn.Module, KeyReport]:
    """The model of `spec`, filled from `selection`, on `device`; and how it fits.

    It is built without memory, or is the `skeleton` that was; where something of it keeps its initial values,
    or its loading code works with them, it is built with them, from `seed`.

    Raises: as `build_model` and `fill`.
    """

    def filled(model: nn.Module) -> tuple[nn.Module, KeyReport]:
        return model, fill(
            model,
            source,
            selection,
            device,
            warn,
            is_checked=is_checked,
            is_mapped=is_mapped,
            align_bytes=align_bytes,
            wanted=wanted,
        )

    model = skeleton or build_model(spec, device="meta", app_dir=app_dir)
    try:
        return filled(model)
    except NeedsValuesError:
        model.to("meta")
    return filled(build_model(spec, device="cpu", app_dir=app_dir, seed=seed))


def fill(
    model: nn.Module,
    source: Checkpoint,
    selection: Selection,
    device: str | None,
    warn: Warn,
    *,
    is_checked: bool = True,
    is_mapped: bool = False,
    align_bytes: int | None = None,
    parts: Parts = WHOLE,
    wanted: Wanted = EXACT,
) -> KeyReport:
    """Put the tensors of `selection` into `model` (built on the meta device) and move it to `device`.

    What the model becomes is what `load_state_dict(…, strict=True)` makes of it: its own loading code runs,
    its dtypes stay, and what is cast is said through `warn`. Only tensors that are read whole are checked
    against their checksums. With `is_mapped`, tensors that stay as they are lie in the file's own pages (as
    `align_bytes` of `map_tensors` lets them), and none is checked: for those who know that the file stays as
    it is. A model that has memory already and no loading code of its own is filled in place, with nothing
    held beside it, and one on another device through a small buffer.

    Raises: LossyError when what is taken holds weights that no state dict has, unless they may be dropped, or
    when a name is missing, unexpected or of another shape, and the model is as it was;
    CorruptError for a tensor that does not match its checksum, unless `is_checked` is off, and a model that
    had memory already is filled in part; NeedsValuesError for a model without memory that cannot be filled
    before it has values of its own.
    """
    selection, report = _settled(model, source, selection, warn, wanted)
    state = model.state_dict(keep_vars=True)
    if report.fresh and any(isinstance(value, torch.Tensor) and value.is_meta for value in state.values()):
        raise NeedsValuesError(f"{report.fresh[0]!r} keeps its initial value")
    chosen = _chosen(state, selection)
    whole = {names[0]: selection.tensors[names[0]].named(selection.original[names[0]]) for names in chosen}
    if is_checked and (unheld := cast_since(whole.values(), source.record)):
        are = counted(len(unheld), "tensor is", "tensors are")
        why = f"the record says that the dtype was another one ({unheld[0]})"
        warn(f"{are} not checked against the recorded digest: {why}")
    reading = _Reading(source, device, parts, is_checked, is_mapped, align_bytes)
    if not goes_by_name(model, selection, report):
        _through_code(model, selection, report, reading)
    elif parts is WHOLE and _only_copies(model, state):
        _in_place(model, whole, reading)
    else:
        _by_name(model, selection, report, chosen, whole, reading)
    _move(model, device)
    source.check_unchanged()
    return report


def _settled(
    model: nn.Module, source: Checkpoint, selection: Selection, warn: Warn, wanted: Wanted
) -> tuple[Selection, KeyReport]:
    """What of `selection` goes into `model`, and how it fits; `warn` is told what the caller should know.

    Raises: LossyError where it does not fit, or what is taken holds weights that may not be left out.
    """
    said: list[str] = []
    settle_left_out(left_out_of(source, selection.where), wanted.extras, [], said, str(source.path))
    for note in said:
        warn(note)
    selection, report = fit_of(model, selection, wanted)
    if not report.fits:
        refuse(placeholders(source.root, dict(selection.tensors)), (), str(source.path))
    help_out = "" if report.fits else way_out(report, expected_of(model), selection)
    insist(report, wanted, source.path, help_out)
    if report.fresh and source.training_parts.optimizers:
        trained = f"what it has of {first_names(report.fresh)} is of other parameters"
        warn(f"the optimizer's state in the checkpoint is not loaded; {trained}")
    if report.recast:
        name, want, found = report.recast[0]
        cast = counted(len(report.recast), "tensor is cast", "tensors are cast")
        warn(f"{cast} to the model's dtype ({name}: {found} → {want})")
    _compare_recomputed(model, report.recomputed, selection, warn)
    return selection, report


class _Reading(NamedTuple):
    """How tensors are read: from where, to which device, which part of each, and what is checked."""

    source: Checkpoint
    device: str | None
    parts: Parts
    is_checked: bool
    is_mapped: bool
    align_bytes: int | None

    def whole(self, entries: Mapping[str, TensorEntry]) -> Mapping[str, torch.Tensor]:
        """Each of the entries on the CPU, with the file's dtype."""
        if self.is_mapped:
            return map_apart(entries, self.align_bytes)
        digests = recorded_digests(entries.values(), self.source.record)
        algorithm = digests.algorithm
        return dict(
            read_tensors(entries, digests=digests.tensors, algorithm=algorithm, is_checked=self.is_checked)
        )

    def parts_of(self, whole: Mapping[str, TensorEntry], wants: Mapping[str, torch.Tensor]) -> Tensors:
        """What of each entry goes into the tensor of its name in `wants`, with that one's dtype."""
        entries = {name: self.parts.cut(entry, wants[name]) for name, entry in whole.items()}
        digests = recorded_digests((e for name, e in entries.items() if e is whole[name]), self.source.record)
        tensors: Tensors
        if self.is_mapped:
            tensors = map_apart(entries, self.align_bytes).items()
        elif self.parts is WHOLE and torch.device(self.device or "cpu").type != "cpu":
            dtypes = {name: _dtype(wants[name], entry) for name, entry in entries.items()}
            tensors = stream_to(
                self.device or "cpu", entries, dtypes, digests=digests, is_checked=self.is_checked
            ).items()
        else:
            tensors = read_tensors(
                entries, digests=digests.tensors, algorithm=digests.algorithm, is_checked=self.is_checked
            )
        for name, tensor in tensors:
            want = wants[name]
            tensor = tensor.to(device=self.device or _home(want), dtype=_dtype(want, entries[name]))
            yield name, self.parts.join(tensor, want)


def _dtype(want: torch.Tensor, entry: TensorEntry) -> torch.dtype:
    """The dtype of what the model holds: its own, or the file's where it has none yet."""
    return torch_dtype(entry) if nn.parameter.is_lazy(want) else want.dtype


def _as_saved(target: torch.Tensor, entry: TensorEntry) -> torch.Tensor:
    """`target` with the shape of `entry`, where that is a scalar of one dimension."""
    return target if tuple(target.shape) == entry.shape else target.detach().view(entry.shape)


def _like(want: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` as what `want` is: a parameter or a buffer."""
    return nn.Parameter(tensor, want.requires_grad) if isinstance(want, nn.Parameter) else tensor


def _move(model: nn.Module, device: str | None) -> None:
    if device is not None:
        model.to(device)


def _home(tensor: torch.Tensor) -> torch.device:
    """Where what a tensor holds goes: a tensor without memory gets it on the CPU."""
    return torch.device("cpu") if tensor.is_meta else tensor.device


def _in_place(model: nn.Module, whole: Mapping[str, TensorEntry], reading: _Reading) -> None:
    """Fill the model's own memory, on the device where it is to be."""
    _move(model, reading.device)
    state = model.state_dict(keep_vars=True)
    targets = {name: _as_saved(state[name], entry) for name, entry in whole.items()}
    digests = recorded_digests(whole.values(), reading.source.record)
    stream_into(targets, whole, digests=digests, is_checked=reading.is_checked and not reading.is_mapped)


def _by_name(
    model: nn.Module,
    selection: Selection,
    report: KeyReport,
    chosen: Sequence[Sequence[str]],
    whole: Mapping[str, TensorEntry],
    reading: _Reading,
) -> None:
    """Read new tensors for `load_state_dict`: a skeleton takes them, a model over ranks copies them."""
    state = model.state_dict(keep_vars=True)
    is_skeleton = any(isinstance(value, torch.Tensor) and value.is_meta for value in state.values())
    filled = {name: state[name] for names in tied_names(state) if names[0] in report.fresh for name in names}
    wants = {name: state[name] for name in whole}
    for names, (name, tensor) in zip(chosen, reading.parts_of(whole, wants), strict=True):
        filled.update(dict.fromkeys(names, _like(wants[name], tensor)))
    filled = as_state_dict(filled, versions(model, selection))
    model.load_state_dict(filled, strict=True, assign=is_skeleton)


def _through_code(model: nn.Module, selection: Selection, report: KeyReport, reading: _Reading) -> None:
    """Give the state dict to the model's loading code.

    What that only puts somewhere is read afterwards, into its place there. So no more is held beside the
    model than what the code works with.

    Raises: as `fill`.
    """
    state = model.state_dict(keep_vars=True)
    places = {slot.name: slot.tensor for slot in slots(model)}
    is_skeleton = any(tensor.is_meta for tensor in places.values())
    is_hollow = is_skeleton or any(map(is_sharded, places.values()))
    entries = {name: e.named(selection.original[name]) for name, e in selection.tensors.items()}
    tensors = without_memory(entries)
    taken = taken_as_they_are(model, with_ties(state, state_dict(model, selection, tensors)), entries)
    if not is_hollow:  # the code finds the model's own tensors there, which are filled in place then
        taken = {
            name: where
            for name, where in taken.items()
            if all(_can_be_filled(places[place], entries[name]) for place in where)
        }
        tensors |= {name: places[where[0]].detach() for name, where in taken.items()}
    first = {entries[name].view: name for name in reversed(entries) if name not in taken}
    read = reading.whole({name: entries[name] for name in first.values()})
    tensors |= {name: read[first[entry.view]] for name, entry in entries.items() if name not in taken}
    del read
    values = with_ties(state, state_dict(model, selection, tensors, is_checked=reading.is_checked))
    stand_ins = {name: tensors[name] for name in taken}
    del tensors
    given: list[Given] = []
    try:
        if is_hollow:
            outcome, given = assigned(model, values, stand_ins)
        else:
            outcome = give(model, values, assign=False)
    except LossyError:
        raise
    except Exception as error:
        if is_skeleton:  # the code may want values to work with
            raise NeedsValuesError(str(error)) from error
        what = f"the model's own loading code failed: {type(error).__name__}: {error}"
        raise LossyError(what, str(reading.source.path), "load what it was written for") from error
    if not (late := after(report, state, outcome)).fits:
        raise misfit(late, reading.source.path)
    values.clear()
    if is_hollow:
        _put(given, entries, reading)
    else:
        wanted = {place: (places[place], entries[name]) for name, where in taken.items() for place in where}
        targets = {place: target for place, (target, _) in wanted.items()}
        whole = {place: entry for place, (_, entry) in wanted.items()}
        digests = recorded_digests(whole.values(), reading.source.record)
        stream_into(targets, whole, digests=digests, is_checked=reading.is_checked and not reading.is_mapped)


def _put(given: Sequence[Given], entries: Mapping[str, TensorEntry], reading: _Reading) -> None:
    """Put into each place of a skeleton, or of a model over ranks, what loading code gave to it."""
    wants = {one.slots[0].name: one.slots[0].tensor for one in given}
    whole = {one.slots[0].name: entries[one.value] for one in given if isinstance(one.value, str)}
    places = {one.slots[0].name: one.slots for one in given}

    def put(name: str, tensor: torch.Tensor) -> None:
        want = wants[name]
        if is_sharded(want) and not want.is_meta:
            with torch.no_grad():
                want.copy_(tensor)
            return
        tensor = _like(want, tensor)
        for slot in places[name]:
            slot.registry[slot.key] = tensor

    for one in given:
        if not isinstance(one.value, str):
            want = one.slots[0].tensor
            made = one.value.detach().to(one.value.dtype if nn.parameter.is_lazy(want) else want.dtype)
            if is_sharded(want):
                made = placed(made.to(reading.device or _home(want)), want)
            put(one.slots[0].name, made)
    for name, tensor in reading.parts_of(whole, wants):
        put(name, tensor)


def _can_be_filled(tensor: torch.Tensor, entry: TensorEntry) -> bool:
    """Whether an entry can be read into a tensor as it is."""
    return is_plain(tensor) and tensor.dtype is torch_dtype(entry) and tuple(tensor.shape) == entry.shape


def _only_copies(model: nn.Module, state: Mapping[str, Any]) -> bool:
    """Whether the model has memory of its own for every tensor of its state dict, to be written into."""
    own = {id(tensor) for tensor in chain(model.parameters(), model.buffers())}
    return all(id(value) in own and is_plain(value) for value in state.values())


def _chosen(state: Mapping[str, Any], selection: Selection) -> list[list[str]]:
    """The names of each tensor of the state dict that the file has, one that the file has first."""
    chosen = []
    for names in tied_names(state):
        there = [name for name in names if name in selection.tensors]
        if there:
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

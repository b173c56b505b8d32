"""What of a file goes into a model, and how it fits: told by names, shapes and dtypes, with no value read."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.names import matches
from ptsave.core.parts.coverage import account
from ptsave.core.parts.fits import covers
from ptsave.core.parts.keys import EXACT, Expected, KeyReport, Wanted, choose_tied, compare
from ptsave.core.parts.select import Selection, named_as, select_model, without
from ptsave.errors import LossyError, Option, PtsaveError, Text
from ptsave.models.weights.lazy import lazy_names
from ptsave.models.weights.loading_code import is_tensor, judged, takes_names_as_they_are, tied_names
from ptsave.models.weights.tensors import refused_part, to_torch, torch_dtype


def expected_of(model: nn.Module) -> dict[str, Expected]:
    """What `model.state_dict()` holds under each name; the model may be on the meta device.

    Buffers that it leaves out come last.
    """
    first: dict[int, str] = {}
    expected = {}
    state = model.state_dict(keep_vars=True)
    buffers = {id(buffer) for buffer in model.buffers()}
    for name, value in state.items():
        if not is_tensor(value):
            continue
        tied_to = first.setdefault(id(value), name)
        lazy = nn.parameter.is_lazy(value)
        expected[name] = Expected(
            None if lazy else tuple(value.shape),
            str(value.dtype).removeprefix("torch."),
            tied_to if tied_to != name else None,
            is_buffer=id(value) in buffers,
        )
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name not in state:
            shape, dtype = tuple(buffer.shape), str(buffer.dtype).removeprefix("torch.")
            expected[name] = Expected(shape, dtype, is_buffer=True, is_recomputed=True)
    return expected


def extra_of(model: nn.Module) -> set[str]:
    """The names of the state dict that do not hold plain tensors: `get_extra_state`'s, quantized weights."""
    state = model.state_dict(keep_vars=True)
    return {name for name, value in state.items() if not is_tensor(value)}


def fit_of(model: nn.Module, selection: Selection, wanted: Wanted = EXACT) -> tuple[Selection, KeyReport]:
    """What of `selection` goes into `model`, which may be on the meta device, and how it fits.

    The model's own loading code is the judge, where it has such code.

    Raises: UsageError for a tie that is none.
    """
    selection = named_as(selection, model.state_dict(keep_vars=True))
    expected, extra = expected_of(model), extra_of(model)
    if wanted.tie:
        selection = without(selection, choose_tied(expected, selection.tensors, wanted.tie))
    report = compare(expected, selection.tensors, extra, selection.extra)
    by_name = takes_names_as_they_are(model, with_torchs=report.fits) and not extra
    why = ""
    if not by_name and not any(map(refused_part, selection.extra.values())) and not lazy_names(model):
        kinds = set(report.missing) & set(report.unexpected)
        report, why = judged(model, selection, report)
        wrong = [name for name in sorted(kinds) if not _can_be_copied(model, selection, name)]
        report = replace(report, missing=(*report.missing, *wrong), unexpected=(*report.unexpected, *wrong))
    report = _without_refused(report, selection, extra, wanted).permit(wanted.allowed)
    if why and not report.fits:
        report = replace(report, unasked=why)
    selection = without(selection, report.left)
    allowed = [name for name in expected if matches(name, wanted.allowed.missing)]
    fresh, coverage = account(expected, selection.tensors, report.fresh, allowed)
    return selection, replace(report, fresh=fresh, coverage=coverage)


def select_for(model: nn.Module, source: Checkpoint, wanted: Wanted = EXACT) -> Selection:
    """The state dict of `source` for `model`, which may be on the meta device; see `select_model`.

    Raises: as `select_model`.
    """

    def fits(selection: Selection) -> bool:
        try:
            report = fit_of(model, selection, wanted)[1]
        except PtsaveError:  # a tie that is none there, a dtype that torch lacks
            return False
        return report.fits and covers(report, wanted)

    return select_model(source, wanted.select, fits)


def goes_by_name(model: nn.Module, selection: Selection, report: KeyReport) -> bool:
    """Whether a selection that fits is each tensor of the model by its name, and no code has a part in it."""
    state = model.state_dict(keep_vars=True)
    there = selection.tensors.keys() - set(report.recomputed)
    return (
        takes_names_as_they_are(model)
        and not extra_of(model)
        and not selection.extra
        and there <= state.keys()
        and all(any(n in there or n in report.fresh for n in names) for names in tied_names(state))
    )


def _without_refused(report: KeyReport, selection: Selection, extra: set[str], wanted: Wanted) -> KeyReport:
    """An extra state that is not plain data counts as missing, and as left over.

    Raises: LossyError where that is not allowed.
    """
    refused = {
        name: part for name in extra & selection.extra.keys() if (part := refused_part(selection.extra[name]))
    }
    for name, part in sorted(refused.items()):
        if not (matches(name, wanted.allowed.missing) and matches(name, wanted.allowed.unexpected)):
            hint: Text = (
                "leave it out: ",
                Option("allow_missing"),
                " and ",
                Option("allow_unexpected"),
                " with its name",
            )
            raise LossyError(f"{name!r} is a {part.name}, which is not plain data", "", hint)
    return replace(report, missing=(*report.missing, *refused), unexpected=(*report.unexpected, *refused))


def _can_be_copied(model: nn.Module, selection: Selection, name: str) -> bool:
    """Whether a value of another kind (sparse, quantized) than the model's goes into it, as torch has it."""
    if not takes_names_as_they_are(model):
        return True  # as far as anyone can tell beforehand
    own = model.state_dict(keep_vars=True)[name]
    entry = selection.tensors.get(name)
    try:
        value = torch.zeros(entry.shape, dtype=torch_dtype(entry)) if entry else selection.extra[name]
        made = to_torch(value, name)
        if getattr(made, "is_meta", False):
            return False  # a skeleton would take it, and have no values
        own.detach().clone().copy_(made)
    except (RuntimeError, NotImplementedError, TypeError, AttributeError):
        return False
    return True

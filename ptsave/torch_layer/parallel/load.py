"""load under torchrun: a model spread over the ranks, each of which fills its own part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ptsave.core.accounts import Extras
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.keys import EXACT, KeyReport, Wanted
from ptsave.core.select import Selection, select_model
from ptsave.formats import open_checkpoint
from ptsave.torch_layer.build import build_model
from ptsave.torch_layer.fill import Warn, fill
from ptsave.torch_layer.inputs import check_outputs, output_tensors, write_tensors
from ptsave.torch_layer.load import Loaded, arguments_for, config_for, summary, warn_if_changed
from ptsave.torch_layer.parallel.group import Group
from ptsave.torch_layer.parallel.materialise import OWN_PARTS, num_local_bytes
from ptsave.torch_layer.parallel.plan import Plan, make_plan
from ptsave.torch_layer.parallel.sameness import (
    check_same_config,
    check_same_folder,
    check_same_outputs,
    look,
)
from ptsave.torch_layer.parallel.shares import check_bytes


def load(
    group: Group,
    path: Path,
    config_path: Path | None,
    *,
    overrides: Sequence[str] = (),
    trusted: Sequence[str] = (),
    select: str | None = None,
    extras: Extras = "fail",
    inputs: Path | None = None,
    outputs: Path | None = None,
    overwrite: bool = False,
    app_dir: Path | None = None,
    wanted: Wanted = EXACT,
    warn: Warn,
) -> Loaded:
    """Rebuild the model over all ranks, load its weights strictly, and with `inputs` or `outputs` run it.

    Every rank calls this, and gets the same result but for its own model; rank 0 alone writes `outputs`.

    Raises: what `torch_layer.load.load` raises; RankError when the ranks do not agree.
    """
    say = group.speak(warn)
    if outputs is not None:
        check_outputs(outputs, overwrite=overwrite)
    with open_checkpoint(path) as checkpoint:
        config = config_for(checkpoint, config_path, overrides, trusted)
        check_same_config(group, config)
        check_same_folder(group, checkpoint)
        plan = make_plan(config, group)
        selection = select_model(checkpoint, select)
        model = build_model(config.model, device="meta", app_dir=app_dir)
        warn_if_changed(model, checkpoint, say)
        report = spread_and_fill(group, plan, model, checkpoint, selection, say, wanted=wanted, extras=extras)
    most = max(group.gather(num_local_bytes(model)))
    result: dict[str, torch.Tensor] | None = None
    if inputs is not None or outputs is not None:
        result = output_tensors(plan.run(model, arguments_for(config.inputs, inputs, model, group.device)))
        if plan.splits_tensors:
            looks = {name: look(tensor) for name, tensor in result.items()}
            check_same_outputs(group, looks, f"{plan.where}: tensor")
        if outputs is not None and group.is_first:
            write_tensors(outputs, result, overwrite=overwrite)
    kind = torch.device(group.device).type
    loaded = summary(checkpoint, config, selection, report, kind, result, outputs)
    return replace(loaded, mesh=plan.sizes, num_rank_bytes=most)


def spread_and_fill(
    group: Group,
    plan: Plan,
    model: nn.Module,
    source: Checkpoint,
    selection: Selection,
    warn: Warn,
    *,
    is_checked: bool = True,
    extras: Extras = "fail",
    wanted: Wanted = EXACT,
) -> KeyReport:
    """Spread a model that was built on the meta device, and read this rank's part of it.

    Raises: UsageError when it cannot be spread, LossyError when the keys do not fit; CorruptError for a
    tensor that does not match its checksum, unless `is_checked` is off.
    """
    plan.spread(model)
    report = fill(
        model,
        source,
        selection,
        group.device,
        warn,
        is_checked=False,
        parts=OWN_PARTS,
        wanted=wanted,
        extras=extras,
    )
    if is_checked:
        check_bytes(group, source, [selection.original[name] for name in selection.tensors])
    return report

"""load under torchrun: a model sharded over the ranks, each of which fills its own part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptsave.config.toml import ModelSpec
from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.parts.keys import EXACT, KeyReport, Wanted
from ptsave.core.parts.select import Selection, without
from ptsave.distributed.group import Group
from ptsave.distributed.pinned import open_pinned
from ptsave.distributed.plan import Plan, make_plan
from ptsave.distributed.sameness import (
    check_same_config,
    check_same_folder,
    check_same_outputs,
    look,
)
from ptsave.distributed.shares import check_bytes
from ptsave.models.build import build_model
from ptsave.models.inputs import check_outputs, output_tensors, write_tensors
from ptsave.models.load import Loaded, arguments_for, config_for, summary, warn_if_changed
from ptsave.models.weights.fill import Warn, fill
from ptsave.models.weights.fitting import select_for
from ptsave.models.weights.loading_code import NeedsValuesError
from ptsave.models.weights.own_shard import OWN_PARTS, num_local_bytes


def load(
    group: Group,
    path: Location,
    config_path: Location | None,
    *,
    overrides: Sequence[str] = (),
    trusted: Sequence[str] = (),
    inputs: Location | None = None,
    outputs: Location | None = None,
    overwrite: bool = False,
    app_dir: Path | None = None,
    wanted: Wanted = EXACT,
    lock: Location | None = None,
    warn: Warn,
) -> Loaded:
    """Rebuild the model over all ranks, load its weights strictly, and with `inputs` or `outputs` run it.

    Every rank calls this, and gets the same result but for its own model; rank 0 alone writes `outputs`.

    Raises: what `models.load.load` raises; RankError when the ranks do not agree.
    """
    say = group.speak(warn)
    if outputs is not None:
        check_outputs(outputs, overwrite=overwrite)
    with open_pinned(group, path, lock) as checkpoint:
        config = config_for(checkpoint, config_path, overrides, trusted)
        check_same_config(group, config)
        check_same_folder(group, checkpoint)
        plan = make_plan(config, group)
        skeleton = build_model(config.model, device="meta", app_dir=app_dir)
        selection = select_for(skeleton, checkpoint, wanted)
        warn_if_changed(skeleton, checkpoint, say)
        model, report = shard_and_fill(
            group,
            plan,
            config.model,
            checkpoint,
            selection,
            say,
            skeleton=skeleton,
            app_dir=app_dir,
            wanted=wanted,
        )
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


def shard_and_fill(
    group: Group,
    plan: Plan,
    spec: ModelSpec,
    source: Checkpoint,
    selection: Selection,
    warn: Warn,
    *,
    skeleton: nn.Module,
    app_dir: Path | None = None,
    seed: int = 0,
    is_checked: bool = True,
    wanted: Wanted = EXACT,
) -> tuple[nn.Module, KeyReport]:
    """Shard the `skeleton` of `spec` (built on the meta device), and read this rank's part of it.

    Where something of the model keeps its initial values, or its loading code works with them, each rank
    builds it with them, from `seed`, and fills it whole before it keeps its part.

    Raises: UsageError when it cannot be sharded, LossyError when the keys do not fit; CorruptError for a
    tensor that does not match its checksum, unless `is_checked` is off.
    """
    options: dict[str, Any] = {"is_checked": False, "wanted": wanted}
    model = skeleton
    plan.parallelize(model)
    try:
        report = fill(model, source, selection, group.device, warn, parts=OWN_PARTS, **options)
    except NeedsValuesError:
        model = build_model(spec, device="cpu", app_dir=app_dir, seed=seed)
        report = fill(model, source, selection, None, warn, **options)
        plan.parallelize(model)
        model.to(group.device)
    if is_checked:
        taken = without(selection, report.left)
        check_bytes(group, source, [taken.original[name] for name in taken.tensors])
    return model, report

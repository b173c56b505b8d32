"""save under torchrun: a model sharded over the ranks, written by all of them as one DCP folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptsave.config.toml import Config
from ptsave.core.address import Location
from ptsave.core.behaviour import num_bytes as behaviour_bytes
from ptsave.core.parts.keys import EXACT, KeyReport, Wanted
from ptsave.core.record import Record
from ptsave.distributed.group import Group
from ptsave.distributed.load import shard_and_fill
from ptsave.distributed.pinned import open_pinned
from ptsave.distributed.plan import Plan, make_plan
from ptsave.distributed.sameness import check_same_config, check_same_folder
from ptsave.distributed.writer import tied_names, write_sharded
from ptsave.errors import UsageError
from ptsave.formats.base import WriteOptions
from ptsave.formats.writers import BY_NAME
from ptsave.models.behaviour.observe import observe
from ptsave.models.build import build_model
from ptsave.models.save import Saved, new_record, unrecorded, with_allowed
from ptsave.models.weights.fill import Warn
from ptsave.models.weights.fitting import select_for
from ptsave.models.weights.own_shard import num_local_bytes
from ptsave.storage.opening import check_folder_destination, check_shared_destination
from ptsave.verbs.texts import check_holds

FORMAT = "dcp"


def check_format(name: str | None) -> None:
    """Insist on the format that many ranks write together.

    Raises: UsageError.
    """
    if name not in (None, FORMAT):
        hint = "`ptsave convert` makes one file of the folder, by one process"
        raise UsageError(f"ranks write {FORMAT} together, not {name}", "--format", hint)


def save(
    group: Group,
    config: Config,
    destination: Location,
    options: WriteOptions,
    *,
    weights: Location | None = None,
    seed: int = 0,
    metadata: Mapping[str, str] | None = None,
    behaves: bool = True,
    app_dir: Path | None = None,
    wanted: Wanted = EXACT,
    lock: Location | None = None,
    warn: Warn,
) -> Saved:
    """Build the model over all ranks, fill it from `weights` or with fresh ones, and write it from all.

    Every rank calls this. Fresh weights are those of one process: each rank makes them all, and keeps its
    part.

    Raises: what `models.save.save` raises; RankError when a rank fails, or has another config.
    """
    say = group.speak(warn)
    check_same_config(group, config)
    if group.is_first:
        check_shared_destination(destination)
        check_folder_destination(destination, overwrite=options.overwrite)
    if weights is None and wanted.select is not None:
        raise UsageError("--select chooses from --weights", "", "name a checkpoint with --weights")
    plan = make_plan(config, group)
    reference: Record | None = None
    report: KeyReport | None = None
    if weights is not None:
        with open_pinned(group, weights, lock) as source:
            check_same_folder(group, source)
            skeleton = build_model(config.model, device="meta", app_dir=app_dir)
            selection = select_for(skeleton, source, wanted)
            record = new_record(skeleton, config, torch.device(group.device).type)
            model, report = shard_and_fill(
                group,
                plan,
                config.model,
                source,
                selection,
                say,
                skeleton=skeleton,
                app_dir=app_dir,
                seed=seed,
                wanted=wanted,
            )
            record = with_allowed(record, report)
            reference = source.record
        filled = f"{weights} ({sentence})" if (sentence := selection.sentence()) else str(weights)
    else:
        model = build_model(config.model, app_dir=app_dir, seed=seed)
        record = new_record(model, config, torch.device(group.device).type)
        plan.parallelize(model)
        filled = "its factory" if config.model.is_factory else f"fresh weights of seed {seed}"
    is_run = options.record and behaves
    behaviour = _behaviour(plan, model, config, group, reference, say) if is_run else None
    record = replace(record, metadata=dict(metadata or {}))
    state = model.state_dict(keep_vars=True)
    check_holds(BY_NAME[FORMAT], record.metadata, state, record=options.record)
    aliases = tied_names(state)
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    unique = [value for name, value in tensors.items() if name not in aliases]
    total = sum(value.numel() * value.element_size() for value in unique)
    versions = {name: dict(entry) for name, entry in getattr(state, "_metadata", {}).items()}
    checked = write_sharded(
        group,
        {name: _value(value) for name, value in state.items() if name not in aliases},
        aliases,
        destination,
        replace(record, behaviour=behaviour, module_versions=versions or None),
        options,
        total,
    )
    return Saved(
        destination,
        FORMAT,
        config.model.target,
        filled,
        len(tensors),
        sum(value.numel() for value in unique),
        total,
        behaviour_bytes(behaviour) if behaviour is not None else 0,
        mesh=plan.sizes,
        num_rank_bytes=max(group.gather(num_local_bytes(model))),
        fresh=report.fresh if report is not None else (),
        left=report.left if report is not None else (),
        coverage=report.coverage if report is not None else None,
        checked=checked,
    )


def _value(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


def _behaviour(
    plan: Plan, model: nn.Module, config: Config, group: Group, reference: Record | None, warn: Warn
) -> dict[str, Any] | None:
    """What the model does, for the record: what one process would see, or nothing.

    FSDP2 computes with whole parameters, so its modules see what one process sees. Where tensors are split,
    modules see parts: then the record of the weights' own file counts, if it is of the same model.
    """
    if config.inputs is None:
        return None
    if not plan.splits_tensors:
        try:
            return observe(model, config.inputs, group.device).to_json()
        except UsageError as error:
            raise unrecorded(error) from error
    if reference is not None and reference.behaviour is not None:
        wanted = config.model.to_json()
        known = {key: (reference.model or {}).get(key) for key in wanted}
        if known == wanted and reference.inputs == config.inputs.to_json():
            return dict(reference.behaviour)
    warn("saved without a behaviour record: split modules do not see what one process sees")
    return None

"""load: a model rebuilt and filled from a checkpoint, and run once if asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptsave.config.recorded import told_by
from ptsave.config.toml import Config, InputsSpec, load_config
from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.parts.keys import EXACT, KeyReport, Wanted
from ptsave.core.parts.select import Selection, without
from ptsave.errors import Option, Text, UsageError
from ptsave.formats import open_checkpoint
from ptsave.models.build import check_device
from ptsave.models.inputs import (
    Arguments,
    check_outputs,
    inputs_from_file,
    make_inputs,
    output_tensors,
    write_tensors,
)
from ptsave.models.source import source_digest
from ptsave.models.trust import check_names, listed
from ptsave.models.weights.fill import build_from
from ptsave.own_process import prints_to_stderr


@dataclass(frozen=True)
class Loaded:
    """What `load` loaded, and what the model returned if it was run."""

    path: Location
    format: str
    model: str
    device: str
    num_tensors: int
    num_elements: int
    num_bytes: int
    took: str
    """Which state dict was taken and what was removed from its names; empty when nothing was chosen."""
    report: KeyReport
    outputs: dict[str, torch.Tensor] | None = None
    outputs_path: Location | None = None
    mesh: Mapping[str, int] = field(default_factory=dict)
    """How many ranks it is sharded over, by kind; empty without torchrun."""
    num_rank_bytes: int = 0
    """The most bytes that one rank holds."""


def load(
    checkpoint: Checkpoint,
    config_path: Location | None,
    *,
    overrides: Sequence[str] = (),
    trusted: Sequence[str] = (),
    device: str = "cpu",
    inputs: Location | None = None,
    outputs: Location | None = None,
    overwrite: bool = False,
    app_dir: Path | None = None,
    wanted: Wanted = EXACT,
    warn: Callable[[str], None],
) -> Loaded:
    """Rebuild the model, load its weights strictly, and with `inputs` or `outputs` run it once.

    Raises: UsageError, LossyError when the keys do not fit, and what reading and writing raise.
    """
    check_device(device)
    config = config_for(checkpoint, config_path, overrides, trusted)
    _check_places(inputs, outputs, overwrite)
    model, selection, report = build_from(
        config.model, checkpoint, device, warn, app_dir=app_dir, wanted=wanted
    )
    warn_if_changed(model, checkpoint, warn)
    result: dict[str, torch.Tensor] | None = None
    if inputs is not None or outputs is not None:
        result = output_tensors(run(model, arguments_for(config.inputs, inputs, model, device)))
        if outputs is not None:
            write_tensors(outputs, result, overwrite=overwrite)
    return summary(checkpoint, config, selection, report, device, result, outputs)


def _check_places(inputs: Location | None, outputs: Location | None, overwrite: bool) -> None:
    """Whether the outputs can be written once everything is read, asked before the work.

    Raises: what opening `inputs` raises; RefusedError where `outputs` would replace an input; ExistsError;
    WriteError.
    """
    if inputs is not None:
        open_checkpoint(inputs).close()
    if outputs is not None:
        check_outputs(outputs, overwrite=overwrite)


def summary(
    checkpoint: Checkpoint,
    config: Config,
    selection: Selection,
    report: KeyReport,
    device: str,
    outputs: dict[str, torch.Tensor] | None,
    outputs_path: Location | None,
) -> Loaded:
    """What was loaded; the checkpoint may be closed."""
    selection = without(selection, report.left)
    unique = {entry.view: entry for entry in selection.tensors.values()}.values()
    return Loaded(
        path=checkpoint.path,
        format=checkpoint.format,
        model=config.model.target,
        device=device,
        num_tensors=len(selection.tensors),
        num_elements=sum(entry.num_elements for entry in unique),
        num_bytes=sum(entry.num_bytes for entry in unique),
        took=selection.sentence(),
        report=report,
        outputs=outputs,
        outputs_path=outputs_path,
    )


NAME_A_CONFIG: Text = (
    "name a config with ",
    Option("config", "CONFIG"),
    ": `ptsave inspect CHECKPOINT --make-config model.toml --class pkg.mod.Name` writes one",
)
"""The hint where nothing says what the model is."""


def config_for(
    checkpoint: Checkpoint,
    config_path: Location | None,
    overrides: Sequence[str],
    trusted: Sequence[str],
    hint: Text = NAME_A_CONFIG,
) -> Config:
    """The config at `config_path`, or the one that the checkpoint's record makes, of whose names those are
    imported that fit a glob of `trusted`. `hint`: what to do where there is neither.

    Raises: UsageError when there is neither; UnsafeError where the record names more than is trusted.
    """
    if config_path is not None:
        return load_config(config_path, overrides)
    told = told_by(checkpoint)
    if "model" in told.faults:
        raise told.faults["model"]
    if told.model is None:
        raise UsageError(
            "the checkpoint does not say what class it belongs to",
            str(checkpoint.path),
            hint,
        )
    named = list(told.model.named_code)
    if not trusted:
        raise UsageError(
            ("the command needs a config: ", Option("config", "CONFIG")),
            str(checkpoint.path),
            (
                f"its record names {listed(named)}; ",
                Option("trust_recorded", True),
                " imports and calls that",
            ),
        )
    if overrides:
        raise UsageError(
            (Option("set"), " overrides a config"), "", ("name one with ", Option("config", "CONFIG"))
        )
    model = replace(told.model, trusted=tuple(trusted))
    check_names(model)
    # A record names no files that anybody should open.
    inputs = told.inputs if told.inputs is not None and not told.inputs.needs_files else None
    return Config(checkpoint.path, model, inputs)


def warn_if_changed(model: nn.Module, checkpoint: Checkpoint, warn: Callable[[str], None]) -> None:
    """Say so when the class is not the code that the checkpoint was saved with."""
    recorded = (checkpoint.record.model or {}).get("source_digest") if checkpoint.record else None
    today = source_digest(model)
    if recorded is not None and today is not None and recorded != today:
        warn(f"the source of {type(model).__qualname__} has changed since the checkpoint was saved")


def run(model: nn.Module, arguments: Arguments) -> Any:
    """One forward pass in eval mode without gradients; a command has the model's prints on stderr.

    Raises: UsageError when the model's own code raises.
    """
    model.eval()
    try:
        with torch.no_grad(), prints_to_stderr():
            return arguments.call(model)
    except Exception as error:
        raise UsageError(
            f"the forward pass failed: {type(error).__name__}: {error}",
            type(model).__qualname__,
            "check the inputs ([inputs], or --inputs): names, shapes, dtypes and integer ranges",
        ) from error


def arguments_for(spec: InputsSpec | None, file: Location | None, model: nn.Module, device: str) -> Arguments:
    """What to run `model` on: the tensors of `file`, else what the config's `[inputs]` says.

    Raises: UsageError when there is neither, or forward() does not take them.
    """
    if file is not None:
        return inputs_from_file(file, model, device)
    if spec is None:
        raise UsageError(
            "there is nothing to run the model on", "[inputs]", "add an [inputs] table, or --inputs FILE"
        )
    return make_inputs(spec, model, device)

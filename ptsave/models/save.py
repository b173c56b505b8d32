"""save: a model of a config, filled, written with the record of what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from ptsave.config.toml import Config, InputsSpec
from ptsave.core.address import Address, Location
from ptsave.core.behaviour import num_bytes
from ptsave.core.checkpoint import Replaced
from ptsave.core.finding import counted
from ptsave.core.names import escape
from ptsave.core.parts.coverage import Coverage
from ptsave.core.parts.keys import EXACT, KeyReport, Wanted
from ptsave.core.record import Record
from ptsave.errors import RefusedError, UsageError
from ptsave.formats.base import WriteOptions
from ptsave.formats.writers import BY_NAME, Writer, check_destination
from ptsave.models.behaviour.observe import observe
from ptsave.models.build import build_model, check_device
from ptsave.models.environment import environment
from ptsave.models.imports import import_path
from ptsave.models.inputs import make_inputs
from ptsave.models.source import source_digest, source_parts
from ptsave.models.verify.subject import ModelSubject
from ptsave.models.weights.fill import build_from
from ptsave.models.weights.lazy import lazy_names, settle
from ptsave.models.weights.live import checkpoint_of
from ptsave.storage import system
from ptsave.storage.reads import may_be_replaced
from ptsave.verbs.signing import lock_for, open_pinned
from ptsave.verbs.texts import check_holds


@dataclass(frozen=True)
class Saved:
    """What `save` wrote."""

    destination: Location
    format: str
    model: str
    weights: str
    """Where they came from, for a person."""
    num_tensors: int
    num_elements: int
    num_bytes: int
    behaviour_bytes: int = 0
    """Of the behaviour record; 0 where there is none."""
    mesh: Mapping[str, int] = field(default_factory=dict)
    """How many ranks it was sharded over, by kind; empty without torchrun."""
    num_rank_bytes: int = 0
    """The most bytes that one rank held."""
    fresh: tuple[str, ...] = ()
    """What the weights lacked, as was allowed."""
    left: tuple[str, ...] = ()
    """What was left in the weights, as was allowed."""
    coverage: Coverage | None = None
    """How much of the model came from the weights; None where all of it is fresh."""
    checked: str = ""
    """By what the destination was compared with what was written."""
    signed_by: Sequence[str] = ()
    """The ids of the keys that signed it."""

    def __repr__(self) -> str:
        tensors = counted(self.num_tensors, "tensor", "tensors")
        return f"<{escape(str(self.destination))!r} was saved: {self.format}, {tensors}>"


@dataclass(frozen=True)
class Recorded:
    """What `verify --record` wrote."""

    model: str
    path: Location
    num_bytes: int
    """Of the behaviour record."""


def save(
    config: Config,
    destination: Location,
    target: Writer,
    options: WriteOptions,
    *,
    weights: Location | None = None,
    seed: int = 0,
    device: str = "cpu",
    metadata: Mapping[str, str] | None = None,
    behaves: bool = True,
    app_dir: Path | None = None,
    wanted: Wanted = EXACT,
    lock: Location | None = None,
    warn: Callable[[str], None],
) -> Saved:
    """Build the model, fill it from `weights` or with fresh ones, copy it to the CPU, and write it.

    `metadata`: texts to keep beside the tensors. `behaves`: whether the record says what the model computes,
    where the config has inputs. `lock`: the `ptsave.lock` that pins the weights, if not that of the current
    folder.

    Raises: UsageError for the config, LossyError when the weights do not fit or the format cannot hold
    the state dict, and what reading and writing raise. Nothing is written then.
    """
    # Before the work of building, or training, whose result would be lost.
    check_device(device)
    check_destination(destination, target, overwrite=options.overwrite)
    check_holds(target, metadata or {}, (), record=options.record)
    if weights is None and wanted.select is not None:
        raise UsageError("--select chooses from --weights", "", "name a checkpoint with --weights")
    report: KeyReport | None = None
    if weights is not None:
        with open_pinned(weights, lock_for(lock)) as source:
            model, selection, report = build_from(
                config.model, source, device, warn, app_dir=app_dir, seed=seed, wanted=wanted
            )
        filled = f"{weights} ({sentence})" if (sentence := selection.sentence()) else str(weights)
    else:
        model = build_model(config.model, device=device, app_dir=app_dir, seed=seed)
        _settle(model, config, device, seed)
        filled = "its factory" if config.model.is_factory else f"fresh weights of seed {seed}"
    behaviour = _behaviour(model, config, device) if options.record and behaves else None
    model.to("cpu")
    checkpoint = checkpoint_of(model.state_dict(), destination)
    record = with_allowed(new_record(model, config, device), report)
    checkpoint.record = replace(record, behaviour=behaviour)
    checkpoint.metadata = metadata or {}
    tensors = checkpoint.tensors
    check_holds(target, checkpoint.metadata, tensors, record=options.record)
    unique = {entry.view: entry for entry in tensors.values()}.values()
    written = target.write(checkpoint, destination, options)
    for line in written.notes:
        warn(line)
    return Saved(
        destination,
        target.name,
        config.model.target,
        filled,
        len(tensors),
        sum(entry.num_elements for entry in unique),
        sum(entry.num_bytes for entry in unique),
        num_bytes(behaviour) if behaviour is not None else 0,
        fresh=report.fresh if report is not None else (),
        left=report.left if report is not None else (),
        coverage=report.coverage if report is not None else None,
        checked=written.checked,
        signed_by=options.signer.names if options.signer is not None else (),
    )


def _settle(model: nn.Module, config: Config, device: str, seed: int) -> None:
    """Give lazy modules their shapes.

    Raises: UsageError when there is nothing to run the model on.
    """
    names = lazy_names(model)
    if names and config.inputs is None:
        what = f"{names[0]!r} has no shape before a forward pass, and there is nothing to run the model on"
        raise UsageError(what, str(config.path), "add an [inputs] table")
    if names and config.inputs is not None:
        settle(model, make_inputs(config.inputs, model, device), seed)


def _behaviour(model: nn.Module, config: Config, device: str) -> dict[str, Any] | None:
    """What the model does, for the record.

    Raises: UsageError where the config's inputs do not fit the model, or running it fails.
    """
    if config.inputs is None:
        return None
    try:
        return observe(model, config.inputs, device).to_json()
    except UsageError as error:
        raise unrecorded(error) from error


def unrecorded(error: UsageError) -> UsageError:
    """The error for a model whose behaviour was to be recorded, and could not be."""
    hint = f"{error.hint}; " if error.hint else ""
    return UsageError(
        f"cannot record the model's behaviour: {error.what}",
        error.where,
        f"{hint}--no-behaviour saves without",
        **error.details,
    )


def with_allowed(record: Record, report: KeyReport | None) -> Record:
    """`record` with the names that the weights lacked, and those that were left in them."""
    if report is None or not (report.fresh or report.left):
        return record
    names = {"fresh": list(report.fresh), "left": list(report.left)}
    return replace(record, model={**(record.model or {}), **names})


def new_record(model: nn.Module, config: Config, device: str) -> Record:
    """The record of a model: how to rebuild it, the digest of its source code, and the environment."""
    described: dict[str, Any] = config.model.to_json()
    described["type"] = import_path(type(model))
    described["source_digest"] = source_digest(model)
    described["source_parts"] = source_parts(model)
    return Record(
        model=described,
        environment={**environment(), "device": device},
        inputs=_recordable(config.inputs),
    )


def _recordable(inputs: InputsSpec | None) -> dict[str, Any] | None:
    """The config's inputs for a record, which names no files."""
    return inputs.to_json() if inputs is not None and not inputs.needs_files else None


def add_behaviour(subject: ModelSubject, where: Location | None = None) -> Recorded:
    """Write today's behaviour into the record of a checkpoint that was verified.

    `where`: where it lies, when a copy of it was read.

    Raises: UsageError when the config has no inputs, RefusedError when the format cannot be written;
    UnreadableError when another checkpoint has come in its place since it was read.
    """
    source, config = subject.checkpoint, subject.config
    where = where or source.path
    if config.inputs is None:
        raise UsageError("there is nothing to run the model on", "[inputs]", "add an [inputs] table")
    target = BY_NAME.get(source.format)
    if target is None:
        raise RefusedError(f"cannot write {source.format}", str(where), "convert it first")
    model = subject.model()
    behaviour = observe(model, config.inputs, subject.device).to_json()
    described = new_record(model, config, subject.device)
    record = source.record or Record()
    record = replace(
        record,
        model=record.model or described.model,
        environment=record.environment or described.environment,
        inputs=record.inputs or described.inputs,
        behaviour=behaviour,
    )
    renewed = replace(source, record=record, held=[Replaced(held) for held in source.held])
    closing = (
        source.close if system.IS_WINDOWS else None
    )  # all is read then, and what is open stays in its place
    with may_be_replaced():
        target.write(renewed, where, WriteOptions(overwrite=True, before_commit=closing))
    if isinstance(where, Address) and where.branch:
        where = where.at(where.branch)  # it is not in the commit that was read
    return Recorded(config.model.target, where, num_bytes(behaviour))

"""save and load from Python: what `ptsave save` and `ptsave load` do, for a model that is already there."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import nn

from ptsave.api.files import several, several_paths, trusted_names
from ptsave.config.model import ConfigPlace, parse_model
from ptsave.config.toml import Config, load_config
from ptsave.core.accounts import Extras, settle_left_out
from ptsave.core.address import located, located_or_none
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.parts.fits import misfit
from ptsave.core.parts.keys import Allowed, Wanted
from ptsave.core.parts.select import Selection, left_out_of, select_model
from ptsave.core.record import Record
from ptsave.errors import UsageError
from ptsave.formats.base import WriteOptions
from ptsave.formats.writers import destination_writer
from ptsave.models.build import build_model, check_device
from ptsave.models.environment import environment
from ptsave.models.imports import import_path
from ptsave.models.load import config_for, warn_if_changed
from ptsave.models.save import Saved, new_record
from ptsave.models.weights.fill import build_from, fill
from ptsave.models.weights.fitting import fit_of, select_for
from ptsave.models.weights.live import checkpoint_of
from ptsave.models.weights.sharded import has_sharded
from ptsave.sign.signer import signer_of
from ptsave.training.foreign import as_torch
from ptsave.training.modules import plan_module, state_of, unwrap
from ptsave.training.plain_data import as_plain_data
from ptsave.training.state import TrainingState
from ptsave.verbs.request import python_verb
from ptsave.verbs.signing import check_signed, lock_for, open_pinned, settled, write_beside
from ptsave.verbs.texts import check_holds, check_metadata

PathLike = str | os.PathLike[str]
_NO_MODEL = (
    "ptsave.load(path, model) fills a model, ptsave.open(path).state_dict() reads the weights alone, and a "
    'TOML that describes the model is named with config="model.toml"'
)
"""The hint where `load` is asked for a model and nothing says which."""
Module = TypeVar("Module", bound=nn.Module)


@python_verb
def save(
    path: PathLike | Any,
    value: PathLike | Any,
    *,
    format: str | None = None,
    overwrite: bool = True,
    hyperparameters: Mapping[str, Any] | None = None,
    config: PathLike | None = None,
    metadata: Mapping[str, str] | None = None,
    sign: PathLike | Sequence[PathLike] = (),
    certificate: PathLike | Sequence[PathLike] = (),
    signature: PathLike | None = None,
    bundle: PathLike | None = None,
) -> Saved:
    """Write a model's weights, a state dict or a training's dictionary to `path`, with ptsave's record.

    `value` is a module (its state dict is written, without the prefixes that DDP and torch.compile put into
    names), a TrainingState, or nested plain data with tensors on any device. The suffix of `path` chooses the
    format (`.safetensors`, `.pt`, `.npz`) unless `format` names it; nested data goes into a `.pt`. As with
    torch.save an old file is replaced, unless `overwrite` is off; it is whole until the new one is. Its order
    of the two, `ptsave.save(value, path)`, is taken as well.

    The record keeps digests of the tensors and the environment. With `hyperparameters` (the keyword arguments
    that the module was made with) or `config` (the TOML that describes it) it also says how to build the
    model again, which is tried first, without memory. `metadata` has texts to keep beside the tensors.

    `sign` names private keys (PEM; the password of an encrypted one is in PTSAVE_KEY_PASSWORD), or
    "sigstore", that sign the tensors in the record, which has SHA-256 digests then; `certificate` names
    files of certificates of the keys, `signature` is a file for the signature, too, and
    `bundle` one for a signature of the files, as OpenSSF has them.

    Raises: LossyError naming what the format cannot hold; ExistsError; WriteError; UsageError. The
    old file is there then.
    """
    if not isinstance(path, (str, os.PathLike)) and isinstance(value, (str, os.PathLike)):
        path, value = value, path
    destination = located(path)
    target = destination_writer(destination, format)
    beside, files = (located_or_none(one) for one in (signature, bundle))
    signer = signer_of(
        several_paths(sign), beside=beside, bundle=files, certificates=several_paths(certificate)
    )
    if (beside or files or several_paths(certificate)) and signer is None:
        raise UsageError("nothing is signed", "ptsave.save: signature", "name a key with sign=")
    options = settled(WriteOptions(overwrite=overwrite, signer=signer), is_named=False)
    check_signed(destination, target.name, options, keeps_record=target.keeps_record)
    spec: Config | None = None
    if isinstance(value, nn.Module):
        module = unwrap(value)
        tree: Any = state_of(module)
        spec = _spec(module, hyperparameters, config)
    else:
        if hyperparameters is not None or config is not None:
            raise UsageError("only a module has hyperparameters", "ptsave.save", "give the module itself")
        tree = value.state_dict() if isinstance(value, TrainingState) else value
        tree = as_plain_data(tree, "")
    checkpoint = checkpoint_of(tree, destination)
    checkpoint.record = _record(module, spec) if spec is not None else Record(environment=environment())
    checkpoint.metadata = check_metadata(metadata or {})
    check_holds(target, checkpoint.metadata, checkpoint.tensors, record=True)
    if spec is not None:
        _check_rebuilds(spec, checkpoint)
    written = target.write(checkpoint, destination, options)
    write_beside(options, destination)
    for note in written.notes:
        warnings.warn(note, stacklevel=3)
    unique = {entry.view: entry for entry in checkpoint.tensors.values()}.values()
    return Saved(
        destination=destination,
        format=target.name,
        model=spec.model.target if spec is not None else "",
        weights="memory",
        num_tensors=len(checkpoint.tensors),
        num_elements=sum(entry.num_elements for entry in unique),
        num_bytes=sum(entry.num_bytes for entry in unique),
        checked=written.checked,
        signed_by=signer.names if signer is not None else (),
    )


def _spec(
    module: nn.Module, hyperparameters: Mapping[str, Any] | None, config: PathLike | None
) -> Config | None:
    """How to build `module` again, where the caller says it.

    Raises: UsageError.
    """
    if config is not None:
        if hyperparameters is not None:
            raise UsageError("config has the hyperparameters", "ptsave.save", "give one of the two")
        return load_config(located(config))
    if hyperparameters is None:
        return None
    path = import_path(type(module))
    if path is None:
        raise UsageError(
            f"the class {type(module).__qualname__} cannot be imported from another program",
            "ptsave.save",
            "define it at the top of a module of its own, or leave hyperparameters out",
        )
    place = ConfigPlace("ptsave.save", ("hyperparameters",))
    table = {"class": path, "args": _toml_values(dict(hyperparameters))}
    return Config(Path(), parse_model(table, place))


def _toml_values(value: Any) -> Any:
    """`value` as a TOML has it."""
    if isinstance(value, torch.dtype):
        return {"_dtype_": str(value).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {str(key): _toml_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_toml_values(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UsageError(
        f"a {type(value).__name__} is not plain data",
        "ptsave.save: hyperparameters",
        "describe it in a config",
    )


def _record(module: nn.Module, config: Config) -> Record:
    device = next(
        (str(tensor.device) for tensor in module.state_dict().values() if _has_device(tensor)), "cpu"
    )
    return new_record(module, config, device)


def _has_device(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _check_rebuilds(config: Config, checkpoint: Checkpoint) -> None:
    """Raise LossyError when what the record says makes a model that these weights do not fit."""
    if config.model.is_factory:  # to be called once and for real
        return
    selection = select_model(checkpoint)
    skeleton = build_model(config.model, device="meta")
    _, report = fit_of(skeleton, selection)
    if not report.fits:
        error = misfit(report, checkpoint.path)
        error.what = f"the hyperparameters make another model: {report.summary()}"
        error.hint = "give those that the model was made with"
        raise error


@overload
def load(
    path: PathLike,
    model: Module,
    *,
    select: str | None = ...,
    device: str | None = ...,
    extras: Extras = ...,
    allow_missing: Sequence[str] = ...,
    allow_unexpected: Sequence[str] = ...,
    tie: Sequence[str] = ...,
    min_coverage: float = ...,
    lock: PathLike | None = ...,
) -> Module: ...


@overload
def load(
    path: PathLike,
    model: None = ...,
    *,
    config: PathLike | None = ...,
    trust_recorded: bool | str | Sequence[str] = ...,
    select: str | None = ...,
    device: str | None = ...,
    app_dir: PathLike | None = ...,
    lazy: bool = ...,
    extras: Extras = ...,
    allow_missing: Sequence[str] = ...,
    allow_unexpected: Sequence[str] = ...,
    tie: Sequence[str] = ...,
    min_coverage: float = ...,
    lock: PathLike | None = ...,
) -> nn.Module: ...


@python_verb
def load(
    path: PathLike,
    model: nn.Module | None = None,
    *,
    config: PathLike | None = None,
    trust_recorded: bool | str | Sequence[str] = False,
    select: str | None = None,
    device: str | None = None,
    app_dir: PathLike | None = None,
    lazy: bool = False,
    extras: Extras = "fail",
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    tie: Sequence[str] = (),
    min_coverage: float = 0.5,
    lock: PathLike | None = None,
) -> nn.Module:
    """Load a model's weights strictly, from the checkpoint at `path` of any format, and return the model.

    With `model` they are copied into that module, which keeps its mode, its dtypes and, without `device`,
    its devices. Else the model is built first, in eval mode on `device` (the CPU): from the TOML `config`, or
    from the checkpoint's record, which names code to import: `trust_recorded` says that this may be done, or
    of which names: a glob (`"pkg.mod.*"`) or several. It is imported from the folder `app_dir` first.

    The model's state dict is found under well-known keys, or is the one under the dotted key `select`, and
    the prefixes of wrappers are removed from its names. Checksums and recorded digests are held on the way.
    What is worth knowing (tensors cast to the model's dtype, changed code) is a warning.

    With `lazy` the weights of a model that is built here lie in the file's own pages, each read when it is
    first used, and are not checked against a checksum. The model may change them, and the file may be
    replaced, as ptsave and every careful writer does. A file that is overwritten in place changes the
    weights, and a file that is truncated ends the process.

    A checkpoint that holds weights which no state dict has (tensors in other attributes of a pickled module)
    is refused, or with `extras` "drop" loaded without them.
    Names that fit a glob of `allow_missing` may be absent (the model keeps its own initial values there), and
    those that fit one of `allow_unexpected` are left in the file; a name of another shape has to fit one of
    each. A file with less than the share `min_coverage` (from 0 to 1) of the model's elements is refused.
    Where the file has different values under two names of one parameter, `tie` names the one to take.
    What a `ptsave.lock` pins, that of the current folder or the one that `lock` names, must be what was
    approved (`ptsave verify --pin`): it is read once for that before it is loaded.
    A model's extra state is left alone with `allow_missing=["*_extra_state"]` and the same for unexpected.

    Raises: LossyError with every name that is missing, unexpected or of another shape, and the module is as
    it was; RefusedError for what departs from its pin; UsageError; MissingFileError, UnknownFormatError,
    LimitError; CorruptError, and a `model` that is filled in place has the tensors that came before the
    damaged one.
    """
    notes: list[str] = []
    allowed = Allowed(several(allow_missing), several(allow_unexpected))
    wanted = Wanted(allowed, several(tie), select, extras, min_coverage)
    with ExitStack() as opened:
        pins = lock_for(located_or_none(lock))
        checkpoint = opened.enter_context(open_pinned(located(path), pins))
        if device is not None:
            check_device(device)
        if model is not None:
            _check_module(model)
            if config is not None or trust_recorded:
                raise UsageError(
                    "a model that is there needs no config", "ptsave.load", "give one of the two"
                )
            if lazy:
                raise UsageError(
                    "a model that is there has memory already",
                    "ptsave.load: lazy",
                    "leave one of the two out",
                )
            selection = select_for(unwrap(model), checkpoint, wanted)
            _into(model, checkpoint, selection, device, notes, wanted)
        else:
            folder = Path(app_dir) if app_dir is not None else None
            toml = located(config) if config else None
            spec = config_for(checkpoint, toml, (), trusted_names(trust_recorded), _NO_MODEL)
            model, selection, _ = build_from(
                spec.model,
                checkpoint,
                device or "cpu",
                notes.append,
                app_dir=folder,
                is_mapped=lazy,
                wanted=wanted,
            )
            warn_if_changed(model, checkpoint, notes.append)
            model.eval()
        if selection.others:
            notes.append(selection.sentence())
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return model


def _check_module(model: object) -> None:
    """Raise UsageError for what is no module: a class that was not called, a state dict, …"""
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type):
        what = f"{model.__name__} is a class, and weights go into a module that was made"
        hint = f'call it first: ptsave.load(path, {model.__name__}(…)), or describe it: config="model.toml"'
    elif isinstance(model, Mapping):
        what = "a state dict is not a module, into which weights could go"
        hint = "ptsave.load(path, model) fills a model; ptsave.open(path).state_dict() reads a state dict"
    elif isinstance(model, (str, os.PathLike)):
        what = "a text is not a module, into which weights could go"
        hint = "the order is ptsave.load(path, model); config= names a TOML, device= a device"
    else:
        what = f"a value of type {type(model).__name__} is not a module"
        hint = 'the order is ptsave.load(path, model); without a module: config="model.toml"'
    raise UsageError(what, "ptsave.load: model", hint)


def _into(
    model: nn.Module,
    checkpoint: Checkpoint,
    selection: Selection,
    device: str | None,
    notes: list[str],
    wanted: Wanted,
) -> None:
    """Fill a module that is there, and move it to `device` where one is named."""
    inner = unwrap(model)
    state = inner.state_dict(keep_vars=True)
    if has_sharded(state):
        selection, _ = fit_of(inner, selection, wanted)
        left_out = left_out_of(checkpoint, selection.where)
        settle_left_out(left_out, wanted.extras, [], notes, str(checkpoint.path))
        saved = as_torch(checkpoint, selection.state_dict())
        plan = plan_module(inner, saved, "the model", str(checkpoint.path), wanted)
        notes += plan.notes
        plan.apply()
    else:
        fill(inner, checkpoint, selection, None, notes.append, wanted=wanted)
    if device is not None:
        model.to(device)

"""inspect, convert and verify from Python: what the commands do, and what they say as data."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from inspect import signature as signature_of
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ptsave.core.accounts import Extras
from ptsave.core.address import Location, located, located_or_none
from ptsave.errors import UsageError
from ptsave.verbs.request import python_verb

if TYPE_CHECKING:
    import torch

    from ptsave.core.verdict import Verdict
    from ptsave.verbs.convert import Conversion
    from ptsave.verbs.diff import Diff
    from ptsave.verbs.folders.plain import FolderInspection
    from ptsave.verbs.folders.runs import RunInspection
    from ptsave.verbs.inspect import Inspection

PathLike = str | os.PathLike[str]
Names = str | Sequence[str]
"""One name or glob, or several."""


@overload
def inspect(
    path: PathLike,
    /,
    *,
    filter: Names = ...,
    sort: str = ...,
    limit: int | None = ...,
    stats: bool = ...,
) -> Inspection | RunInspection | FolderInspection: ...


@overload
def inspect(
    *paths: PathLike,
    filter: Names = ...,
    sort: str = ...,
    limit: int | None = ...,
    stats: bool = ...,
) -> list[Inspection | RunInspection | FolderInspection]: ...


@overload
def inspect(path: PathLike, /, *, diff: PathLike) -> Diff: ...


@python_verb
def inspect(
    *paths: PathLike,
    filter: Names = (),
    sort: str = "file",
    limit: int | None = None,
    stats: bool = False,
    diff: PathLike | None = None,
) -> Any:
    """Say what is in `paths`, checkpoints of any format or runs' folders, running none of it; a list of all.

    The result has `num_tensors`, `num_elements`, `num_bytes`, `rows` (of the tensors that fit a glob of
    `filter`, in the order `sort`: "file", "name", "size" or "dtype"; at most `limit`), `data`, `globals`,
    `record`, `training`, `left_out` and `notes`; of a run, `checkpoints` and `latest`; of a plain folder,
    `checkpoints` and `others`. With `stats` every one of these tensors is read, and `stats` has its least,
    largest and mean values and so on.

    With `diff`, a second checkpoint, it says what differs between the two: `is_same`, `only_in_a`,
    `only_in_b`, `different` (tensors in both), `ties_broken`, `data_changed` and so on.

    Raises: UsageError; MissingFileError, UnknownFormatError, CorruptError, LimitError.
    """
    from ptsave.verbs.diff import diff_paths
    from ptsave.verbs.inspect import inspect_path
    from ptsave.verbs.request import refuse_unused, unused_by_inspect

    given = _given(locals(), inspect)
    if not paths:
        raise UsageError("inspect needs a path", "ptsave.inspect", "name what to look into")
    if diff is not None:
        refuse_unused(given, unused_by_inspect(diff=True, tree=False, params=False, stats=stats, json=True))
        if len(paths) > 1:
            raise UsageError("diff= compares two checkpoints", "ptsave.inspect", "name one beside it")
        return diff_paths(located(paths[0]), located(diff))
    results = [
        inspect_path(located(path), globs=several(filter), sort=sort, limit=limit, stats=stats, given=given)
        for path in paths
    ]
    return results[0] if len(results) == 1 else results


@python_verb
def convert(
    *paths: PathLike,
    config: PathLike | None = None,
    format: str | None = None,
    select: str | None = None,
    only: Names = (),
    drop: Names = (),
    strip_prefix: str | None = None,
    rename: Mapping[str, str] | Sequence[str] = (),
    dtype: str | torch.dtype | None = None,
    contiguous: bool = False,
    dense: bool = False,
    extras: Extras = "fail",
    metadata: Mapping[str, str] | None = None,
    shard_size: str | int = "5GB",
    digest: str | None = None,
    sign: PathLike | Sequence[PathLike] = (),
    certificate: PathLike | Sequence[PathLike] = (),
    sign_only: Names = (),
    expires: str | None = None,
    signature: PathLike | None = None,
    bundle: PathLike | None = None,
    no_record: bool = False,
    no_check: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    set: Names = (),
    app_dir: PathLike | None = None,
    opset: int | None = None,
    lock: PathLike | None = None,
) -> Conversion:
    """Write the tensors of all `paths` but the last to the last one, in its format; say what became of them.

    The suffix of the last path chooses the format, or `format` names it. `select` takes a part ("model",
    "optimizer" or a dotted key), `only` and `drop` are globs of names, `strip_prefix` ("auto": what wrappers
    put there) and `rename` (pattern → text, as re.sub) change names, `dtype` casts floating-point tensors,
    `contiguous` and `dense` (sparse and quantized tensors) lay them out plainly. `extras` says what becomes
    of what the target cannot hold. `metadata` has texts to keep beside the tensors. `sign` names private keys
    (PEM; the password of an encrypted one is in PTSAVE_KEY_PASSWORD), or "sigstore", that sign the tensors,
    or those of `sign_only`, with certificates of the keys from the files `certificate`, until `expires`
    (YYYY-MM-DD); the signature goes into the record, and into the file `signature`; `bundle` is a file for a
    signature of the files that are written, as OpenSSF has them.
    Sources that a `ptsave.lock` pins, that of the current folder or the one that `lock` names, must be what
    was approved. With `dry_run` nothing is written.

    `overwrite` replaces an old destination. `shard_size` is the most bytes (a number, or "5GB") in one file
    of a sharded format. `digest` names the algorithm of the recorded digests ("xxh3_128", "blake3",
    "sha256"), `no_record` leaves the record out, and `no_check` does not read back what was written. The
    result has `num_tensors`, `num_bytes`, `dropped`, `renamed`, `dense`, `signed_by`, `notes` and
    `not_copied` (files beside the sources, such as a tokenizer's).

    With a `config` and a last path that ends in `.pt2` or `.onnx`, the model of the config is filled and
    exported (`opset`: of ONNX's operators). The program runs beside the model before it gets its name, and
    `proof` is what was found. `set` overrides values of the config ("model.args.hidden_size=64"), and the
    model's class is imported from the folder `app_dir` first, else from the current one.

    Raises: UsageError; LossyError and other RefusedErrors, and there is no destination then, or the old one;
    UnreadableError for a source.
    """
    from ptsave.export.either import convert_paths
    from ptsave.formats.base import WriteOptions, digest_algorithm
    from ptsave.sign.signer import signer_of
    from ptsave.verbs.convert import parse_size
    from ptsave.verbs.edit import parse_edits
    from ptsave.verbs.texts import check_metadata

    given = _given(locals(), convert)
    options = WriteOptions(
        overwrite=overwrite,
        record=not no_record,
        digest=digest_algorithm(digest),
        check=not no_check,
        signer=signer_of(
            several_paths(sign),
            several(sign_only),
            expires,
            located_or_none(signature),
            located_or_none(bundle),
            certificates=several_paths(certificate),
        ),
        shard_bytes=parse_size(f"{shard_size}B" if isinstance(shard_size, int) else shard_size),
    )
    renames = [rename] if isinstance(rename, str) else rename
    cast = None if dtype is None else str(dtype)
    edits = parse_edits(several(only), several(drop), strip_prefix, renames, cast, contiguous, dense)
    places = [located(path) for path in paths]
    return convert_paths(
        places,
        options,
        edits,
        config=located_or_none(config),
        format=format,
        select=select,
        extras=extras,
        metadata=check_metadata(metadata or {}),
        overrides=several(set),
        app_dir=Path() if app_dir is None else Path(app_dir),
        dtype=cast,
        opset=opset,
        lock=located_or_none(lock),
        dry_run=dry_run,
        given=given,
    )


@python_verb
def verify(
    path: PathLike,
    *,
    config: PathLike | None = None,
    trust_recorded: bool | Names = False,
    against: PathLike | None = None,
    close: bool = False,
    checks: Names | None = None,
    allow: Names = (),
    allow_infinite: Names = (),
    signed_by: PathLike | Sequence[PathLike] = (),
    identity: Names = (),
    issuer: str | None = None,
    signature: PathLike | Sequence[PathLike] = (),
    rename: Mapping[str, str] | Sequence[str] = (),
    only: Names = (),
    pin: bool = False,
    lock: PathLike | None = None,
    through: Names | None = None,
    strict: bool = False,
    record: bool = False,
    select: str | None = None,
    device: str = "cpu",
    set: Names = (),
    app_dir: PathLike | None = None,
) -> Verdict:
    """Give a verdict on the checkpoint, or the folder of a run, at `path`: same bytes, keys and behaviour.

    The options are those of `ptsave verify`, which lists the `checks`: without a `config` (or
    `trust_recorded`, as for `ptsave.load`) those that need a model are skipped, and named as that. `against`
    is a second checkpoint that must hold the same. `signed_by` names public keys or certificates (PEM) that
    must each have signed it, folders of keys of which one must, authorities that issue certificates to one of
    `identity`, or "sigstore", which `issuer` told of one of these; `signature` names files with signatures
    beside those in the record, `rename` (pattern → text, as re.sub) turns today's names into those that
    were signed, and `only` are globs of the signed names that count. What a `ptsave.lock` pins, that of the
    current folder or the one that `lock` names, must be what was approved; `pin` approves what passes, there.

    `close` accepts values of `against` within the tolerance of their dtypes. `allow` are globs of names that
    the check "safe" accepts, `allow_infinite` of tensors that may hold infinities. `through` names the
    formats that "roundtrip" goes through, `strict` counts warnings as failures, and `record` writes today's
    behaviour into the checkpoint after a yes. `select` is the dotted key of the state dict, `device` where
    the model runs. `set` overrides values of the config, and the class is imported from `app_dir` first.

    >>> verdict = ptsave.verify("model.pt", config="net.toml")
    >>> verdict.is_yes, verdict.because, verdict.findings
    >>> verdict.raise_for_no()

    Raises: UsageError, also for an option that no check would use; UnreadableError for what cannot be read at
    all. That a checkpoint is damaged, unsafe or another one is no error: the verdict says it.
    """
    from ptsave.export import run_beside, run_pt2
    from ptsave.models.verify.one import Listener, Request, verify_path
    from ptsave.verbs.signing import signed_by_of
    from ptsave.verbs.verify import choose

    notes: list[str] = []
    asked = choose(
        _listed(checks),
        config=located_or_none(config),
        trusted=trusted_names(trust_recorded),
        against=located_or_none(against),
        close=close,
        through=_listed(through),
        record=record,
        given=_given(locals(), verify),
        infinite=several(allow_infinite),
        signed_by=partial(
            signed_by_of,
            several_paths(signed_by),
            several_paths(signature),
            [rename] if isinstance(rename, str) else rename,
            several(only),
            several(identity),
            issuer,
        ),
        overrides=several(set),
        pin=pin,
        lock=located_or_none(lock),
    )
    folder = Path() if app_dir is None else Path(app_dir)
    request = Request(
        located(path),
        asked,
        several(allow),
        several(set),
        select,
        device,
        folder,
        strict,
        run_pt2,
        run_beside,
    )
    verdict, _ = verify_path(request, Listener(notes.append))
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return verdict.of(frozenset(signature_of(verify).parameters))


def _given(values: Mapping[str, Any], function: Any) -> list[str]:
    """Those options of a function that have another value than its default, as the flags of the command."""
    parameters = signature_of(function).parameters.values()
    options = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    return [f"--{p.name.replace('_', '-')}" for p in options if values[p.name] is not p.default]


def several(names: Names) -> Sequence[str]:
    """One name or glob, or several."""
    return [names] if isinstance(names, str) else list(names)


def several_paths(paths: PathLike | Sequence[PathLike]) -> list[Location]:
    """One path, or several."""
    return [located(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]


def trusted_names(trust_recorded: bool | Names) -> Sequence[str]:
    """Globs of what may be imported of what a record names."""
    return ["*"] if trust_recorded is True else several(trust_recorded or ())


def _listed(names: Names | None) -> str | None:
    """Names as the command takes them: with commas between them."""
    return names if names is None or isinstance(names, str) else ",".join(names)

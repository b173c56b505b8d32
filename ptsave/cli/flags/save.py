"""Flags of save: a model is built, filled and written."""

from pathlib import Path
from typing import Annotated

import typer

from ptsave.cli import options as opts
from ptsave.cli.options import given, location_of, signer_for, wanted_of
from ptsave.core.address import located
from ptsave.render.terminal import Mode


def save(
    context: typer.Context,
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="TOML that names the model's class.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="File or folder to write.")],
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="SRC", help="Checkpoint to fill the model from."),
    ] = None,
    select: opts.Select = None,
    extras: opts.LeftOutWeights = "fail",
    allow_missing: opts.AllowMissing = None,
    allow_unexpected: opts.AllowUnexpected = None,
    min_coverage: opts.MinCoverage = 0.5,
    tie: opts.Tie = None,
    lock: opts.Lock = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights that do not come from --weights.")] = 0,
    device: opts.Device = "cpu",
    format: opts.FormatName = None,
    metadata: opts.Metadata = None,
    digest: opts.Digest = None,
    sign: opts.Sign = None,
    certificate: opts.CertificateFile = None,
    sign_only: opts.SignOnly = None,
    expires: opts.Expires = None,
    signature: opts.SignatureFile = None,
    bundle: opts.BundleFile = None,
    no_record: opts.NoRecord = False,
    no_behaviour: Annotated[
        bool, typer.Option("--no-behaviour", help="Do not run the model to record what it computes.")
    ] = False,
    no_check: opts.NoCheck = False,
    overwrite: opts.Overwrite = False,
    set: opts.Set = None,
    app_dir: opts.AppDir = Path(),
    json: opts.Json = False,
    quiet: opts.Quiet = False,
    verbose: opts.Verbose = False,
) -> None:
    """Build the model of CONFIG, fill it, and write its state dict with a record of what it is."""
    from ptsave.cli.save import save as run
    from ptsave.formats.base import WriteOptions, digest_algorithm
    from ptsave.verbs.request import refuse_unused, unused_by_save, unused_without_sign
    from ptsave.verbs.texts import parse_metadata

    unused = unused_by_save(
        has_weights=weights is not None, allows_missing=bool(allow_missing), no_record=no_record
    )
    refuse_unused(given(context), unused | unused_without_sign(signs=bool(sign)))
    options = WriteOptions(
        overwrite=overwrite,
        record=not no_record,
        digest=digest_algorithm(digest),
        check=not no_check,
        signer=signer_for(sign, sign_only, expires, signature, bundle, certificate),
    )
    run(
        Mode(json, quiet, verbose),
        located(config),
        located(destination),
        options,
        is_digest_named=digest is not None,
        overrides=set or [],
        weights=location_of(weights),
        wanted=wanted_of(select, extras, allow_missing, allow_unexpected, tie, min_coverage),
        seed=seed,
        device=device,
        format=format,
        metadata=parse_metadata(metadata or ()),
        behaves=not no_behaviour,
        app_dir=app_dir,
        lock=location_of(lock),
    )

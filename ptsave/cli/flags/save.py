"""Flags of save: a model is built, filled and written."""

from pathlib import Path
from typing import Annotated

import typer

from ptsave.cli.options import (
    AllowMissing,
    AllowUnexpected,
    AppDir,
    BundleFile,
    CertificateFile,
    Device,
    Digest,
    Expires,
    FormatName,
    Json,
    LeftOutWeights,
    Lock,
    Metadata,
    MinCoverage,
    NoCheck,
    NoRecord,
    Overwrite,
    Quiet,
    Select,
    Set,
    Sign,
    SignatureFile,
    SignOnly,
    Tie,
    Verbose,
    given,
    location_of,
    signer_for,
    wanted_of,
)
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
    select: Select = None,
    extras: LeftOutWeights = "fail",
    allow_missing: AllowMissing = None,
    allow_unexpected: AllowUnexpected = None,
    min_coverage: MinCoverage = 0.5,
    tie: Tie = None,
    lock: Lock = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights that do not come from --weights.")] = 0,
    device: Device = "cpu",
    format: FormatName = None,
    metadata: Metadata = None,
    digest: Digest = None,
    sign: Sign = None,
    certificate: CertificateFile = None,
    sign_only: SignOnly = None,
    expires: Expires = None,
    signature: SignatureFile = None,
    bundle: BundleFile = None,
    no_record: NoRecord = False,
    no_behaviour: Annotated[
        bool, typer.Option("--no-behaviour", help="Do not run the model to record what it computes.")
    ] = False,
    no_check: NoCheck = False,
    overwrite: Overwrite = False,
    set: Set = None,
    app_dir: AppDir = Path(),
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
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

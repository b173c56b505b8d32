"""The command line: flags → one command. Commands never catch; `cli.main` turns errors into exit codes.

Imports inside the commands keep `--help` and the torch-free commands quick.
"""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ptsave import __version__
from ptsave.cli.options import (
    AllowMissing,
    AllowUnexpected,
    AppDir,
    BundleFile,
    CertificateFile,
    ConfigPath,
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
    Threads,
    Tie,
    TrustRecorded,
    Verbose,
    check_names,
    dtypes,
    given,
    location_of,
    one_of,
    signer_for,
    wanted_of,
)
from ptsave.core.address import located
from ptsave.distributed.group import is_first_rank
from ptsave.errors import EXIT_NO, EXIT_OK, UsageError
from ptsave.render.terminal import Mode, out

app = typer.Typer(
    name="ptsave",
    help="Keep PyTorch models: save, load, inspect, convert and verify checkpoints.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    rich_markup_mode=None,  # rich would double the time that --help takes
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        out(f"ptsave {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def ptsave(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keep PyTorch models: save, load, inspect, convert and verify checkpoints."""
    if context.invoked_subcommand in ("inspect", "convert") and not is_first_rank():
        raise typer.Exit  # what takes one process is done by one of them
    if context.invoked_subcommand is None:
        out(context.get_help())
        raise typer.Exit(UsageError.exit_code)


@app.command()
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
        weights=located(weights) if weights is not None else None,
        wanted=wanted_of(select, extras, allow_missing, allow_unexpected, tie, min_coverage),
        seed=seed,
        device=device,
        format=format,
        metadata=parse_metadata(metadata or ()),
        behaves=not no_behaviour,
        app_dir=app_dir,
        lock=location_of(lock),
    )


@app.command()
def load(
    context: typer.Context,
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Checkpoint to load.")],
    config: ConfigPath = None,
    trust_recorded: TrustRecorded = None,
    select: Select = None,
    extras: LeftOutWeights = "fail",
    allow_missing: AllowMissing = None,
    allow_unexpected: AllowUnexpected = None,
    min_coverage: MinCoverage = 0.5,
    tie: Tie = None,
    lock: Lock = None,
    device: Device = "cpu",
    inputs: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Tensors to run the model on: .safetensors, .npz or .npy."),
    ] = None,
    outputs: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where to write what the model returns.")
    ] = None,
    overwrite: Overwrite = False,
    set: Set = None,
    app_dir: AppDir = Path(),
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Rebuild the model, load the weights strictly, and run it once if asked."""
    from ptsave.cli.load import load as run
    from ptsave.verbs.request import refuse_unused, unused_by_load

    unused = unused_by_load(
        has_config=config is not None, has_outputs=outputs is not None, allows_missing=bool(allow_missing)
    )
    refuse_unused(given(context), unused)
    run(
        Mode(json, quiet, verbose),
        located(checkpoint),
        located(config) if config is not None else None,
        overrides=set or [],
        trusted=trust_recorded or (),
        wanted=wanted_of(select, extras, allow_missing, allow_unexpected, tie, min_coverage),
        device=device,
        inputs=located(inputs) if inputs is not None else None,
        outputs=located(outputs) if outputs is not None else None,
        overwrite=overwrite,
        app_dir=app_dir,
        lock=location_of(lock),
    )


@app.command()
def inspect(
    context: typer.Context,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Checkpoints to look into.")],
    tree: Annotated[bool, typer.Option("--tree", help="Show the tensors by module, with shares.")] = False,
    depth: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="With --tree: show no module deeper than N names.")
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Read every tensor: min, max, mean, std, norm, zeros, NaN.")
    ] = False,
    filter: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="GLOB", help="Show the tensors whose names match; repeatable."),
    ] = None,
    sort: Annotated[
        str,
        typer.Option(
            metavar="KEY",
            help="file, name, size or dtype.",
            autocompletion=one_of("file", "name", "size", "dtype"),
        ),
    ] = "file",
    limit: Annotated[int | None, typer.Option(min=0, help="Show at most this many tensors.")] = None,
    make_config: Annotated[
        str | None,
        typer.Option(
            "--make-config", metavar="FILE", help="Write the TOML of the model, which load and save take."
        ),
    ] = None,
    class_: Annotated[
        str | None,
        typer.Option(
            "--class", metavar="PKG.MOD.NAME", help="With --make-config: the model's class, to be imported."
        ),
    ] = None,
    app_dir: AppDir = Path(),
    report: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Also write a page to search and sort, of --diff too: .html."),
    ] = None,
    diff: Annotated[
        str | None,
        typer.Option("--diff", metavar="OTHER", help="Compare with OTHER; exit 1 when they differ."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say what is in a checkpoint, of any format, or in a run's folder, without running any of it."""
    from ptsave.cli.inspect import compare
    from ptsave.cli.inspect import inspect as run
    from ptsave.cli.inspect import make_config as write_config
    from ptsave.verbs.request import refuse_unused, unused_by_inspect

    mode, flags = Mode(json, quiet, verbose), given(context)
    refuse_unused(
        flags,
        unused_by_inspect(
            diff=diff is not None,
            tree=tree,
            stats=stats,
            json=json,
            makes_config=make_config is not None,
            has_class=class_ is not None,
        ),
    )
    places = [located(path) for path in paths]
    if make_config is not None:
        write_config(mode, places, located(make_config), class_, app_dir)
    elif diff is None:
        globs = filter or ()
        run(
            mode,
            places,
            tree=tree,
            depth=depth,
            stats=stats,
            globs=globs,
            sort=sort,
            limit=limit,
            report=located(report) if report is not None else None,
            given=flags,
        )
    elif not compare(mode, places, located(diff), located(report) if report is not None else None):
        raise typer.Exit(EXIT_NO)


@app.command()
def convert(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="SRC... DST", help="Checkpoints to read, and where to write."),
    ],
    config: Annotated[
        str | None,
        typer.Option(
            "-c", "--config", metavar="CONFIG", help="TOML of the model, for a program: .pt2 or .onnx."
        ),
    ] = None,
    format: FormatName = None,
    select: Annotated[
        str | None,
        typer.Option(metavar="KEY.PATH", help="model, optimizer, or the key of what to convert."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Keep the tensors whose names match; repeatable."),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Leave out the tensors whose names match; repeatable."),
    ] = None,
    strip_prefix: Annotated[
        str | None,
        typer.Option(metavar="PREFIX", help="Remove it from names; auto: what DDP, compile, FSDP put there."),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=TO", help="Replace in names, as re.sub does; repeatable."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE", help="Cast floating-point tensors, e.g. bfloat16.", autocompletion=dtypes
        ),
    ] = None,
    contiguous: Annotated[
        bool, typer.Option("--contiguous", help="Lay strided views out row by row.")
    ] = False,
    dense: Annotated[
        bool, typer.Option("--dense", help="Write sparse and quantized tensors as plain ones.")
    ] = False,
    extras: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="What the target cannot hold: fail, drop or keep (as JSON).",
            autocompletion=one_of("fail", "drop", "keep"),
        ),
    ] = "fail",
    shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Most bytes in one file of a sharded format, e.g. 5GB.")
    ] = "5GB",
    metadata: Metadata = None,
    opset: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Version of ONNX's operators, for .onnx.")
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Write how the program compares with the model: .json, .xml or .html."
        ),
    ] = None,
    digest: Digest = None,
    sign: Sign = None,
    certificate: CertificateFile = None,
    sign_only: SignOnly = None,
    expires: Expires = None,
    signature: SignatureFile = None,
    bundle: BundleFile = None,
    lock: Lock = None,
    no_record: NoRecord = False,
    no_check: NoCheck = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    overwrite: Overwrite = False,
    set: Set = None,
    app_dir: AppDir = Path(),
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write the same tensors in another format: renamed, selected, cast, merged or sharded if asked.

    With -c, export the model to a program (.pt2, .onnx) that has run beside it before it gets its name.
    """
    from ptsave.cli.convert import convert as run
    from ptsave.core.accounts import parse_extras
    from ptsave.formats.base import WriteOptions, digest_algorithm
    from ptsave.verbs.convert import parse_size
    from ptsave.verbs.edit import parse_edits
    from ptsave.verbs.texts import parse_metadata

    run(
        Mode(json, quiet, verbose),
        [located(path) for path in paths],
        WriteOptions(
            overwrite=overwrite,
            record=not no_record,
            digest=digest_algorithm(digest),
            check=not no_check,
            signer=signer_for(sign, sign_only, expires, signature, bundle, certificate),
            shard_bytes=parse_size(shard_size),
        ),
        parse_edits(only, drop, strip_prefix, rename, dtype, contiguous, dense),
        format=format,
        select=select,
        extras=parse_extras(extras, "fail", "drop", "keep"),
        metadata=parse_metadata(metadata or ()),
        dry_run=dry_run,
        config=located(config) if config is not None else None,
        overrides=set or (),
        app_dir=app_dir,
        dtype=dtype,
        opset=opset,
        report=located(report) if report is not None else None,
        lock=location_of(lock),
        given=given(context),
    )


@app.command()
def verify(
    context: typer.Context,
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHECKPOINT...", help="Checkpoints to verify, or folders of them.", show_default=False
        ),
    ] = None,
    config: ConfigPath = None,
    trust_recorded: TrustRecorded = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="OTHER", help="Checkpoint, or config, that must give the same model."),
    ] = None,
    close: Annotated[
        bool,
        typer.Option("--close", help="Accept values of OTHER within the tolerance of their dtypes."),
    ] = False,
    checks: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Run these checks only; see --list-checks.", autocompletion=check_names
        ),
    ] = None,
    list_checks: Annotated[bool, typer.Option("--list-checks", help="Say what each check proves.")] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Names that the check `safe` accepts; repeatable. Of what runs something, the full name.",
        ),
    ] = None,
    allow_infinite: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Tensors that may hold infinities, such as masks; repeatable."),
    ] = None,
    signed_by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Who must have signed: a key, certificate (PEM), folder of such, or `sigstore`; repeatable.",
        ),
    ] = None,
    identity: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Whom a certificate under --signed-by must name; repeatable."),
    ] = None,
    issuer: Annotated[
        str | None, typer.Option(metavar="URL", help="Who must have told sigstore that name.")
    ] = None,
    signature: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="A signature in a file of its own; repeatable."),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=TO", help="Turn today's names into those that were signed; repeatable."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Tensors that must be signed, by signed name; repeatable."),
    ] = None,
    pin: Annotated[bool, typer.Option("--pin", help="After a yes, pin what is here in ptsave.lock.")] = False,
    lock: Lock = None,
    through: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Formats that `roundtrip` goes through; default: its own."),
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Also write the verdict: .json, .xml (JUnit) or .html."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as failures.")] = False,
    record: Annotated[
        bool,
        typer.Option("--record", help="After a yes, write today's behaviour into the checkpoint's record."),
    ] = False,
    select: Select = None,
    device: Device = "cpu",
    set: Set = None,
    app_dir: AppDir = Path(),
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Give a verdict: same bytes, same keys, same behaviour. Exit 0 is yes, 1 is no."""
    from ptsave.cli import verify as command
    from ptsave.export import run_beside, run_pt2
    from ptsave.models.verify.one import Request
    from ptsave.verbs.folders.plain import checkpoints_at
    from ptsave.verbs.request import refuse_unused
    from ptsave.verbs.signing import signed_by_of
    from ptsave.verbs.verify import OF_LIST_CHECKS, choose

    mode, flags = Mode(json, quiet, verbose), given(context)
    if list_checks:
        others = [flag for flag in flags if flag not in OF_LIST_CHECKS]
        refuse_unused(others, dict.fromkeys(others, "--list-checks verifies nothing"))
        command.list_checks(mode)
        return
    if not checkpoints:
        raise UsageError("verify needs a checkpoint", "", "ptsave verify CHECKPOINT")
    asked = choose(
        checks,
        config=located(config) if config is not None else None,
        trusted=trust_recorded or (),
        against=located(against) if against is not None else None,
        close=close,
        through=through,
        record=record,
        given=flags,
        infinite=allow_infinite or (),
        signed_by=partial(
            signed_by_of,
            [located(key) for key in signed_by or ()],
            [located(file) for file in signature or ()],
            rename or (),
            only or (),
            identity or (),
            issuer,
        ),
        overrides=set or (),
        pin=pin,
        lock=location_of(lock),
    )
    places, beside = checkpoints_at([located(checkpoint) for checkpoint in checkpoints])
    request = Request(
        places[0], asked, allow or (), set or [], select, device, app_dir, strict, run_pt2, run_beside
    )
    where = located(report) if report is not None else None
    if len(places) > 1 or beside is not None:
        code = command.verify_all(mode, request, places, beside or (), where)
    else:
        code = EXIT_OK if command.verify(mode, request, where) else EXIT_NO
    if code:
        raise typer.Exit(code)

"""The command line: flags → one verb → render. The only file that knows Typer; commands never catch.

Imports inside the commands keep `--help` and the torch-free commands quick.
"""

import os
import sys
import time
import traceback
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ptsave import __version__, as_json, stopping, streams
from ptsave.errors import EXIT_INTERRUPTED, EXIT_NO, EXIT_OK, PtsaveError, RefusedError, UsageError
from ptsave.render import terminal
from ptsave.torch_layer.parallel.environment import is_first_rank, is_under_torchrun

if TYPE_CHECKING:
    from collections.abc import Callable

    from ptsave.core.verdict import Verdict
    from ptsave.verbs.verify import Asked

app = typer.Typer(
    name="ptsave",
    help="Keep PyTorch models: save, load, inspect, convert and verify checkpoints.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    rich_markup_mode=None,  # rich would double the time that --help takes
    pretty_exceptions_enable=False,
)

# `readable=False` throughout: a file that may not be read is the reader's error (3), not one of usage (2).

# --- options that several commands share ------------------------------------------------------------

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors and results only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print what is being done.")]
ConfigPath = Annotated[
    Path | None,
    typer.Option(
        "-c", "--config", metavar="CONFIG", help="TOML that names the model's class.", readable=False
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value of the TOML; repeatable."),
]
AppDir = Annotated[
    Path,
    typer.Option("--app-dir", metavar="DIR", help="Folder to import the model's class from.", readable=False),
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps, …")]
Select = Annotated[
    str | None,
    typer.Option("--select", metavar="KEY.PATH", help="Key of the state dict inside the checkpoint."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the destination if it exists.")]
FormatName = Annotated[
    str | None,
    typer.Option("--format", metavar="FORMAT", help="Format to write; default: as the suffix says."),
]
NoRecord = Annotated[bool, typer.Option("--no-record", help="Leave ptsave's record out.")]
NoCheck = Annotated[bool, typer.Option("--no-check", help="Do not read back what was written.")]
Digest = Annotated[str, typer.Option("--digest", metavar="ALGORITHM", help="xxh3_128, blake3 or sha256.")]
TrustRecorded = Annotated[
    bool, typer.Option("--trust-recorded", help="Import the class that the checkpoint's record names.")
]


# --- the commands -----------------------------------------------------------------------------------


def _version(wanted: bool) -> None:
    if wanted:
        terminal.out(f"ptsave {__version__}")
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
        terminal.out(context.get_help())
        raise typer.Exit(UsageError.exit_code)


@app.command()
def save(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="TOML that names the model's class.", readable=False)
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DST", help="File or folder to write.", readable=False)
    ],
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="SRC", help="Checkpoint to fill the model from.", readable=False),
    ] = None,
    select: Select = None,
    seed: Annotated[int, typer.Option(help="Seed of the fresh weights when there is no --weights.")] = 0,
    device: Device = "cpu",
    format: FormatName = None,
    digest: Digest = "xxh3_128",
    no_record: NoRecord = False,
    no_check: NoCheck = False,
    overwrite: Overwrite = False,
    set: Set = None,
    app_dir: AppDir = Path(),
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Build the model of CONFIG, fill it, and write its state dict with a record of what it is."""
    from ptsave.config import load_config
    from ptsave.formats.base import WriteOptions, digest_algorithm
    from ptsave.render.models import show_saved

    mode = terminal.Mode(json, quiet, verbose)
    options = WriteOptions(
        overwrite=overwrite, record=not no_record, digest=digest_algorithm(digest), check=not no_check
    )
    if is_under_torchrun():
        from ptsave.torch_layer.parallel.group import joined
        from ptsave.torch_layer.parallel.save import check_format
        from ptsave.torch_layer.parallel.save import save as save_spread

        with joined(device) as group:
            check_format(format)
            saved = save_spread(
                group,
                load_config(config, set or []),
                destination,
                options,
                weights=weights,
                select=select,
                seed=seed,
                app_dir=app_dir,
                warn=terminal.warn,
            )
            if group.is_first:
                show_saved(mode, saved)
                streams.finish(EXIT_OK)  # before anyone leaves
        return
    from ptsave.formats.writers import destination_writer
    from ptsave.torch_layer.save import save as run

    writer = destination_writer(destination, format)
    loaded = load_config(config, set or [])
    result = run(
        loaded,
        destination,
        writer,
        options,
        weights=weights,
        select=select,
        seed=seed,
        device=device,
        app_dir=app_dir,
        warn=terminal.warn,
    )
    show_saved(mode, result)


@app.command()
def load(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint to load.", readable=False)
    ],
    config: ConfigPath = None,
    trust_recorded: TrustRecorded = False,
    select: Select = None,
    device: Device = "cpu",
    inputs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Tensors to run the model on: .safetensors, .npz or .npy.", readable=False
        ),
    ] = None,
    outputs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write what the model returns.", readable=False),
    ] = None,
    overwrite: Overwrite = False,
    set: Set = None,
    app_dir: AppDir = Path(),
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Rebuild the model, load the weights strictly, and run it once if asked."""
    from ptsave.render.models import show_loaded

    mode = terminal.Mode(json, quiet, verbose)
    if is_under_torchrun():
        from ptsave.torch_layer.parallel.group import joined
        from ptsave.torch_layer.parallel.load import load as spread

        with joined(device) as group:
            loaded = spread(
                group,
                checkpoint,
                config,
                overrides=set or [],
                trust_recorded=trust_recorded,
                select=select,
                inputs=inputs,
                outputs=outputs,
                overwrite=overwrite,
                app_dir=app_dir,
                warn=terminal.warn,
            )
            if group.is_first:
                show_loaded(mode, loaded)
                streams.finish(EXIT_OK)  # before anyone leaves
        return
    from ptsave.torch_layer.load import load as run

    result = run(
        checkpoint,
        config,
        overrides=set or [],
        trust_recorded=trust_recorded,
        select=select,
        device=device,
        inputs=inputs,
        outputs=outputs,
        overwrite=overwrite,
        app_dir=app_dir,
        warn=terminal.warn,
    )
    show_loaded(mode, result)


@app.command()
def inspect(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Checkpoints to look into.", readable=False)
    ],
    tree: Annotated[bool, typer.Option("--tree", help="Show the tensors by module, with shares.")] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Read every tensor: min, max, mean, std, norm, zeros, NaN.")
    ] = False,
    filter: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="GLOB", help="Show the tensors whose names match; repeatable."),
    ] = None,
    sort: Annotated[str, typer.Option(metavar="KEY", help="file, name, size or dtype.")] = "file",
    limit: Annotated[int | None, typer.Option(min=0, help="Show at most this many tensors.")] = None,
    diff: Annotated[
        Path | None,
        typer.Option(
            "--diff", metavar="OTHER", help="Compare with OTHER; exit 1 when they differ.", readable=False
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say what is in a checkpoint, of any format, or in a run's folder, without running any of it."""
    from ptsave.core.memory import no_garbage_collection
    from ptsave.formats import open_checkpoint
    from ptsave.render.inspect import inspections
    from ptsave.verbs.inspect import inspect as run
    from ptsave.verbs.inspect import sort_key

    mode = terminal.Mode(json, quiet, verbose)
    order = sort_key(sort)
    if diff is not None:
        from ptsave.render.diff import show_differences
        from ptsave.verbs.diff import diff as compare

        if len(paths) != 1:
            raise UsageError("--diff compares two checkpoints", "", "ptsave inspect A --diff B")
        with open_checkpoint(paths[0]) as a, open_checkpoint(diff) as b:
            total = sum(entry.num_bytes for c in (a, b) for entry in c.tensors.values())
            with terminal.progress(mode, "comparing", total) as advance:
                differences = compare(a, b, progress=advance)
        show_differences(mode, differences, paths[0], diff)
        if not differences.is_same:
            raise typer.Exit(EXIT_NO)
        return

    with no_garbage_collection(), inspections(mode, many=len(paths) > 1) as show:
        for path in paths:
            if os.path.isdir(path) and _show_run(path, {"--tree": tree, "--stats": stats}, show):
                continue
            with open_checkpoint(path) as checkpoint:
                result = run(checkpoint, globs=filter or (), sort=order, limit=limit)
                if not stats:
                    show(result, tree=tree)
                    continue
                from ptsave.verbs.stats import stats as measure

                names = [row.entry.name for row in result.rows]
                total = sum(row.entry.num_bytes for row in result.rows)
                with terminal.progress(mode, "reading", total) as advance:
                    measured = list(measure(checkpoint, names, progress=advance))
                show(result, tree=tree, stats=measured)


def _show_run(path: Path, flags: dict[str, bool], show: "Callable[..., None]") -> bool:
    """Show the folder of a run; False where `path` is none."""
    from ptsave.verbs import runs

    if not runs.is_run(path):
        return False
    runs.refuse_flags(path, [flag for flag, is_given in flags.items() if is_given])
    show(runs.inspect_run(path))
    return True


@app.command()
def convert(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="SRC... DST", help="Checkpoints to read, and where to write.", readable=False),
    ],
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
        str | None, typer.Option(metavar="DTYPE", help="Cast floating-point tensors, e.g. bfloat16.")
    ] = None,
    contiguous: Annotated[
        bool, typer.Option("--contiguous", help="Lay strided views out row by row.")
    ] = False,
    extras: Annotated[
        str,
        typer.Option(metavar="HOW", help="What the target cannot hold: fail, drop or keep (as JSON)."),
    ] = "fail",
    shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Most bytes in one file of a sharded format, e.g. 5GB.")
    ] = "5GB",
    digest: Digest = "xxh3_128",
    no_record: NoRecord = False,
    no_check: NoCheck = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write the same tensors in another format: renamed, selected, cast, merged or sharded if asked."""
    from ptsave.formats import open_checkpoint
    from ptsave.formats.base import WriteOptions, digest_algorithm
    from ptsave.formats.writers import check_destination, destination_writer
    from ptsave.render.convert import show_converted
    from ptsave.verbs.convert import convert as run
    from ptsave.verbs.convert import num_bytes_of, parse_extras, parse_size
    from ptsave.verbs.edit import parse_edits

    mode = terminal.Mode(json, quiet, verbose)
    if len(paths) < 2:
        raise UsageError("needs a source and a destination", "", "ptsave convert SRC DST")
    *sources, destination = paths
    target = destination_writer(destination, format)
    edits = parse_edits(only, drop, strip_prefix, rename, dtype, contiguous)
    options = WriteOptions(
        overwrite=overwrite,
        record=not no_record,
        digest=digest_algorithm(digest),
        check=not no_check,
        shard_bytes=parse_size(shard_size),
    )
    how = parse_extras(extras)
    with ExitStack() as opened:
        checkpoints = [opened.enter_context(open_checkpoint(path)) for path in sources]
        if not dry_run:
            check_destination(destination, target, overwrite=overwrite)
        total = num_bytes_of(checkpoints) * (2 if options.check else 1)
        with terminal.progress(mode, "converting", total) as advance:
            result = run(
                checkpoints,
                destination,
                target,
                replace(options, progress=advance),
                edits,
                select=select,
                extras=how,
                dry_run=dry_run,
            )
    show_converted(mode, result)


@app.command()
def verify(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="CHECKPOINT", help="Checkpoint to verify.", show_default=False, readable=False
        ),
    ] = None,
    config: ConfigPath = None,
    trust_recorded: TrustRecorded = False,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="OTHER", help="Checkpoint, or config, that must give the same model.", readable=False
        ),
    ] = None,
    close: Annotated[
        bool,
        typer.Option("--close", help="Accept values of OTHER within the tolerance of their dtypes."),
    ] = False,
    checks: Annotated[
        str | None, typer.Option(metavar="A,B", help="Run these checks only; see --list-checks.")
    ] = None,
    list_checks: Annotated[bool, typer.Option("--list-checks", help="Say what each check proves.")] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Names that the check `safe` accepts; repeatable."),
    ] = None,
    through: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Formats that `roundtrip` goes through; default: its own."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write the verdict: .json, .xml (JUnit) or .html.", readable=False
        ),
    ] = None,
    record: Annotated[
        bool,
        typer.Option("--record", help="After a yes, write today's behaviour into the checkpoint's record."),
    ] = False,
    select: Select = None,
    device: Device = "cpu",
    set: Set = None,
    app_dir: AppDir = Path(),
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Give a verdict: same bytes, same keys, same behaviour. Exit 0 is yes, 1 is no."""
    from ptsave.formats import open_checkpoint
    from ptsave.render.verify import checking, show_checks, show_recorded
    from ptsave.verbs import verify as verb
    from ptsave.verbs.runs import is_run, refuse_flags

    mode = terminal.Mode(json, quiet, verbose)
    if list_checks:
        from ptsave.torch_layer.checks import MODEL_CHECKS

        show_checks(mode, {**verb.FILE_CHECKS, **MODEL_CHECKS})
        return
    if checkpoint is None:
        raise UsageError("needs a checkpoint", "", "ptsave verify CHECKPOINT")
    if report is not None:
        from ptsave.reports import check_report_path

        check_report_path(report, checkpoint)
    asked = verb.choose(
        checks,
        config=config,
        trust_recorded=trust_recorded,
        against=against,
        close=close,
        through=through,
        record=record,
    )
    if os.path.isdir(checkpoint) and is_run(checkpoint):
        flags = {"-c": config, "--trust-recorded": trust_recorded, "--against": against, "--record": record}
        refuse_flags(checkpoint, [flag for flag, given in flags.items() if given])
        _verify_run(mode, checkpoint, asked, allow, report)
        return
    if is_under_torchrun():
        if against is not None or record:
            flag = "--record" if record else "--against"
            raise UsageError(f"{flag} is for one process", "", "run it without torchrun")
        _verify_together(mode, checkpoint, asked, allow, select, device, set or [], app_dir, report)
        return
    start, began = time.monotonic(), checking(mode)
    with ExitStack() as opened:
        source = opened.enter_context(open_checkpoint(checkpoint))
        other = opened.enter_context(open_checkpoint(asked.other)) if asked.other is not None else None
        model = None
        if asked.has_model:
            from ptsave.torch_layer import verify as live

            model = live.subject_of(
                source,
                other,
                asked.config,
                set or [],
                other_config=asked.other_config,
                select=select,
                device=device,
                app_dir=app_dir,
                through=asked.through,
                warn=terminal.warn,
            )
            other = model.other
        total = verb.total_bytes(asked.names, source, other)
        with terminal.progress(mode, "reading", total) as advance:
            subject = verb.Subject(source, other, asked, allow or (), advance)
            if model is not None:
                subject = replace(subject, parameters=model.parameters, tolerance=model.config.tolerance)
            findings = verb.verify_file(subject, began)
        if model is None:
            verdict = verb.without_model(subject, findings)
        else:
            verdict = live.verify_model(model, asked.names, findings, began)
            if record and verdict.is_yes:
                show_recorded(mode, live.add_behaviour(model))
        target = model.config.model.target if model is not None else None
        facts = verb.facts(source, target, device, time.monotonic() - start)
    _show_verdict(mode, verdict, facts, checkpoint, report)
    if not verdict.is_yes:
        raise typer.Exit(EXIT_NO)


def _verify_run(
    mode: terminal.Mode, folder: Path, asked: "Asked", allow: list[str] | None, report: Path | None
) -> None:
    """`verify` on the folder of a run."""
    from ptsave.formats.run_folder import list_run
    from ptsave.render.verify import checking
    from ptsave.verbs import verify_run as verb

    start, files = time.monotonic(), list_run(folder)
    with terminal.progress(mode, "reading", verb.total_bytes(files, asked)) as advance:
        began = checking(mode)
        verdict = verb.verify_run(files, asked, allow=allow or (), progress=advance, began=began)
    _show_verdict(mode, verdict, verb.facts(folder, files, time.monotonic() - start), folder, report)
    if not verdict.is_yes:
        raise typer.Exit(EXIT_NO)


def _verify_together(
    mode: terminal.Mode,
    checkpoint: Path,
    asked: "Asked",
    allow: list[str] | None,
    select: str | None,
    device: str,
    overrides: list[str],
    app_dir: Path,
    report: Path | None,
) -> None:
    """`verify` under torchrun: the ranks share the bytes, and run the model together."""
    from ptsave.formats import open_checkpoint
    from ptsave.render.verify import checking
    from ptsave.torch_layer.parallel import verify as live
    from ptsave.torch_layer.parallel.group import joined
    from ptsave.verbs import verify as verb

    with joined(device) as group, open_checkpoint(checkpoint) as source:
        start, began = time.monotonic(), group.speak(checking(mode))
        part, findings = live.share(group, source), []
        model = None
        if asked.has_model:
            model = live.subject_of(
                group, source, asked.config, overrides, select, app_dir, group.speak(terminal.warn)
            )
        for name in (name for name in verb.FILE_CHECKS if name in asked.names):
            shared = name in verb.SHARED_CHECKS
            subject = verb.Subject(
                part if shared else source, None, replace(asked, names=[name]), allow or ()
            )
            if model is not None:
                subject = replace(subject, parameters=model.parameters)
            found = verb.verify_file(subject, began)
            findings += live.merged(group, found) if shared else found
        if model is None:
            verdict = verb.without_model(verb.Subject(source, None, asked), findings)
        else:
            verdict = live.verify_model(model, asked.names, findings, began)
        target = model.config.model.target if model is not None else None
        facts = verb.facts(source, target, device, time.monotonic() - start)
        if group.is_first:
            _show_verdict(mode, verdict, {**facts, "ranks": group.size}, checkpoint, report)
            streams.finish(EXIT_OK)  # before anyone leaves
    if not verdict.is_yes:
        raise typer.Exit(EXIT_NO)


def _show_verdict(
    mode: terminal.Mode,
    verdict: "Verdict",
    facts: dict[str, str | int | float],
    checkpoint: Path,
    report: Path | None,
) -> None:
    from ptsave.render.verify import show_verdict, workflow_commands

    if report is not None:
        from ptsave.reports import write_report

        write_report(report, verdict, facts, as_json.versioned(as_json.verdict(verdict, checkpoint)))
    show_verdict(mode, verdict, checkpoint)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from ptsave.reports import annotation_lines

        workflow_commands(annotation_lines(verdict, str(checkpoint)))


# --- leaving ----------------------------------------------------------------------------------------


def main() -> NoReturn:
    """Run the command line and leave with an exit code of the contract."""
    stopping.install()
    try:
        streams.prepare()
        code = _finished(run(sys.argv[1:]))
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except SystemExit as left:  # a rank that lets another one speak
        code = int(left.code or 0)
    stopping.finish()
    code = stopping.exit_code() if stopping.received else code
    if is_under_torchrun():
        # Threads of torch.distributed may outlive its groups, and abort a Python that is being taken down.
        os._exit(code)
    sys.exit(code)


def _finished(code: int) -> int:
    try:
        return streams.finish(code)
    except PtsaveError as problem:
        terminal.failure(problem, json=False)
        return problem.exit_code


def run(arguments: list[str]) -> int:
    """Run one command, and say what went wrong if something did; returns the exit code."""
    usage_error: type[Exception] = typer.BadParameter.__bases__[0]  # the root of Typer's own usage errors
    try:
        return app(arguments, prog_name="ptsave", standalone_mode=False) or EXIT_OK
    except usage_error as error:
        problem: PtsaveError = UsageError(_usage_message(error), "", _usage_hint(error))
        if not is_first_rank():  # the same command line on every rank: one says so
            return problem.exit_code
    except PtsaveError as error:
        problem = error
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except OSError as error:
        problem = _refused_by_the_system(error)
    except Exception as error:
        problem = _bug(error)
    if stopping.received:  # code in between made another error of the interrupt
        return stopping.exit_code()
    if os.environ.get("PTSAVE_DEBUG"):
        traceback.print_exception(problem.__cause__ or problem)
    terminal.failure(problem, json="--json" in arguments)
    return problem.exit_code


def _usage_message(error: Exception) -> str:
    format_message = getattr(error, "format_message", None)  # `message` is empty where an argument is missing
    return str(format_message() if format_message is not None else error).rstrip(".")


def _usage_hint(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f"see `{context.command_path} --help`" if context is not None else "see `ptsave --help`"


def _refused_by_the_system(error: OSError) -> PtsaveError:
    what = error.strerror or str(error)
    problem = RefusedError(
        f"the system reports: {what}", str(error.filename or ""), "check the disk and the path"
    )
    problem.__cause__ = error
    return problem


def _bug(error: Exception) -> PtsaveError:
    problem = PtsaveError(
        f"a bug in ptsave: {type(error).__name__}: {error}",
        "",
        "run it again with PTSAVE_DEBUG=1 for a traceback, and report it",
    )
    problem.__cause__ = error
    return problem

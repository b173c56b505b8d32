"""The command line: flags → one verb → render. The only file that knows Typer; commands never catch.

Imports inside the commands keep `--help` and the torch-free commands quick.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn, Optional

import typer

from ptsave import __version__, render
from ptsave.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_NO, EXIT_OK, PtsaveError, UsageError

EXIT_TERMINATED = 128 + 15

app = typer.Typer(
    name="ptsave",
    help="Keep PyTorch models: save, load, inspect, convert and verify checkpoints.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    rich_markup_mode=None,  # rich would double the time that --help takes
    pretty_exceptions_enable=False,
)

# --- options that several commands share ------------------------------------------------------------

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors and results only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print what is being done.")]
ConfigPath = Annotated[
    Optional[Path],
    typer.Option("-c", "--config", metavar="CONFIG", help="TOML that names the model's class."),
]
Set = Annotated[
    Optional[list[str]],
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value of the TOML; repeatable."),
]
AppDir = Annotated[
    Path, typer.Option("--app-dir", metavar="DIR", help="Folder to import the model's class from.")
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps, …")]
Select = Annotated[
    Optional[str],
    typer.Option("--select", metavar="KEY.PATH", help="Key of the state dict inside the checkpoint."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the destination if it exists.")]
FormatName = Annotated[
    Optional[str],
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
        render.out(f"ptsave {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def ptsave(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        render.out(context.get_help())
        raise typer.Exit(UsageError.exit_code)


@app.command()
def save(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML that names the model's class.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="File or folder to write.")],
    weights: Annotated[
        Optional[Path],
        typer.Option("--weights", metavar="SRC", help="Checkpoint to fill the model from."),
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
    from ptsave.formats import destination_format
    from ptsave.formats.base import WriteOptions, digest_algorithm
    from ptsave.torch_layer.save import save as run

    mode = render.Mode(json, quiet, verbose)
    writer = destination_format(destination, format)
    loaded = load_config(config, set or [])
    options = WriteOptions(
        overwrite=overwrite, record=not no_record, digest=digest_algorithm(digest), check=not no_check
    )
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
        warn=render.warn,
    )
    render.saved(mode, result)


@app.command()
def load(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint to load.")],
    config: ConfigPath = None,
    trust_recorded: TrustRecorded = False,
    select: Select = None,
    device: Device = "cpu",
    inputs: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE", help="Tensors to run the model on: .safetensors, .npz or .npy."),
    ] = None,
    outputs: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE", help="Where to write what the model returns."),
    ] = None,
    overwrite: Overwrite = False,
    set: Set = None,
    app_dir: AppDir = Path(),
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Rebuild the model, load the weights strictly, and run it once if asked."""
    from ptsave.torch_layer.load import load as run

    mode = render.Mode(json, quiet, verbose)
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
        warn=render.warn,
    )
    render.loaded(mode, result)


@app.command()
def inspect(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Checkpoints to look into.")],
    tree: Annotated[bool, typer.Option("--tree", help="Show the tensors by module, with shares.")] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Read every tensor: min, max, mean, std, norm, zeros, NaN.")
    ] = False,
    filter: Annotated[
        Optional[list[str]],
        typer.Option("--filter", metavar="GLOB", help="Show the tensors whose names match; repeatable."),
    ] = None,
    sort: Annotated[str, typer.Option(metavar="KEY", help="file, name, size or dtype.")] = "file",
    limit: Annotated[Optional[int], typer.Option(min=0, help="Show at most this many tensors.")] = None,
    diff: Annotated[
        Optional[Path],
        typer.Option("--diff", metavar="OTHER", help="Compare with OTHER; exit 1 when they differ."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say what is in a checkpoint, of any format, without running any of it."""
    from ptsave.formats import open_checkpoint
    from ptsave.verbs.inspect import inspect as run
    from ptsave.verbs.inspect import sort_key

    mode = render.Mode(json, quiet, verbose)
    order = sort_key(sort)
    if diff is not None:
        from ptsave.verbs.diff import diff as compare

        if len(paths) != 1:
            raise UsageError("--diff compares two checkpoints", "", "ptsave inspect A --diff B")
        with open_checkpoint(paths[0]) as a, open_checkpoint(diff) as b:
            total = sum(entry.num_bytes for c in (a, b) for entry in c.tensors.values())
            with render.progress(mode, "comparing", total) as advance:
                differences = compare(a, b, progress=advance)
        render.differences(mode, differences, paths[0], diff)
        if not differences.is_same:
            raise typer.Exit(EXIT_NO)
        return

    with render.inspections(mode, many=len(paths) > 1) as show:
        for path in paths:
            with open_checkpoint(path) as checkpoint:
                result = run(checkpoint, globs=filter or (), sort=order, limit=limit)
                if not stats:
                    show(result, tree=tree)
                    continue
                from ptsave.verbs.stats import stats as measure

                names = [row.entry.name for row in result.rows]
                total = sum(row.entry.num_bytes for row in result.rows)
                with render.progress(mode, "reading", total) as advance:
                    measured = list(measure(checkpoint, names, progress=advance))
                show(result, tree=tree, stats=measured)


# --- leaving ----------------------------------------------------------------------------------------


class Terminated(BaseException):
    """SIGTERM: unwinds like an interrupt, so that temporary files go."""


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    raise Terminated


def main() -> NoReturn:
    """Run the command line and leave with an exit code of the contract."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted. What is left in the buffer must not raise at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_OK
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    usage_error = typer.BadParameter.__bases__[0]  # the root of Typer's own usage errors
    try:
        return app(arguments, prog_name="ptsave", standalone_mode=False) or EXIT_OK
    except usage_error as error:
        problem: PtsaveError = UsageError(error.format_message(), "", _usage_hint(error))
    except PtsaveError as error:
        problem = error
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except Terminated:
        return EXIT_TERMINATED
    except BrokenPipeError:
        raise
    except Exception as error:
        problem = _bug(error)
    if os.environ.get("PTSAVE_DEBUG"):
        traceback.print_exception(problem.__cause__ or problem)
    render.failure(problem, json="--json" in arguments)
    return problem.exit_code


def _usage_hint(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f"see `{context.command_path} --help`" if context is not None else "see `ptsave --help`"


def _bug(error: Exception) -> PtsaveError:
    problem = PtsaveError(
        f"a bug in ptsave: {type(error).__name__}: {error}",
        "",
        "run it again with PTSAVE_DEBUG=1 for a traceback, and report it",
    )
    problem.__cause__ = error
    return problem

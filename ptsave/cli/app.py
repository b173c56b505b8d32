"""The command line's commands. They never catch; `cli.main` turns errors into exit codes."""

from typing import Annotated

import typer

from ptsave import __version__
from ptsave.cli.flags.convert import convert
from ptsave.cli.flags.inspect import inspect
from ptsave.cli.flags.load import load
from ptsave.cli.flags.save import save
from ptsave.cli.flags.verify import verify
from ptsave.distributed.group import is_first_rank
from ptsave.errors import UsageError
from ptsave.render.terminal import out

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


for _command in (save, load, inspect, convert, verify):
    app.command()(_command)

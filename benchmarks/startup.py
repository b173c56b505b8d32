"""Rows: how long it takes before anything happens."""

from __future__ import annotations

from benchmarks.files import Files
from benchmarks.measure import Command
from benchmarks.rows import Budget, Row, ptsave, python, wall_ratio


def startup_help(files: Files) -> Row:
    """Against importing the library that parses the command line."""
    return Row(
        {
            "help": Command(lambda out: ptsave("--help")),
            "version": Command(lambda out: ptsave("--version")),
            "typer": Command(lambda out: python("import typer")),
        },
        [
            Budget("`ptsave --help`", '`python -c "import typer"`', wall_ratio("help", "typer"), "×", 1.5),
            Budget("`ptsave --version`", "the same", wall_ratio("version", "typer"), "×", 1.5),
        ],
    )


ROWS = [startup_help]

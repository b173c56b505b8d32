"""Groups of options are the options in them on a command line, and one value each for the command."""

from typing import Annotated

import typer

from ptsave.cli.groups import Filling, Talking, with_groups


def test_a_group_is_its_options_and_their_defaults() -> None:
    taken: list[tuple[str, Filling, Talking]] = []

    def command(path: Annotated[str, typer.Argument()], *, filling: Filling, mode: Talking) -> None:
        """Do it."""
        taken.append((path, filling, mode))

    app = typer.Typer()
    app.command()(with_groups(command))
    words = ["a.pt", "--tie", "a", "--tie", "b", "-q", "--min-coverage", "1"]
    typer.main.get_command(app)(words, prog_name="it", standalone_mode=False)
    assert taken == [("a.pt", Filling(tie=["a", "b"], min_coverage=1.0), Talking(quiet=True))]

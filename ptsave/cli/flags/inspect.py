"""Flags of inspect: what is in checkpoints."""

from pathlib import Path
from typing import Annotated

import typer

from ptsave.cli import options as opts
from ptsave.cli.groups import Talking, with_groups
from ptsave.cli.options import given, one_of
from ptsave.core.address import located, located_or_none
from ptsave.errors import EXIT_NO


@with_groups
def inspect(
    context: typer.Context,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Checkpoints to look into.")],
    *,
    tree: Annotated[bool, typer.Option("--tree", help="Show the tensors by module, with shares.")] = False,
    params: Annotated[
        bool, typer.Option("--params", help="Count the parameters of each module, buffers apart.")
    ] = False,
    depth: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="With --tree, --params: show no module deeper than N names."),
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
    app_dir: opts.AppDir = Path(),
    report: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Also write a page to search and sort, of --diff too: .html."),
    ] = None,
    diff: Annotated[
        str | None,
        typer.Option("--diff", metavar="OTHER", help="Compare with OTHER; exit 1 when they differ."),
    ] = None,
    mode: Talking,
) -> None:
    """Say what is in a checkpoint, of any format, or in a run's folder, without running any of it."""
    from ptsave.cli.inspect import compare
    from ptsave.cli.inspect import inspect as run
    from ptsave.cli.inspect import make_config as write_config
    from ptsave.verbs.request import refuse_unused, unused_by_inspect

    flags = given(context)
    refuse_unused(
        flags,
        unused_by_inspect(
            diff=diff is not None,
            tree=tree,
            params=params,
            stats=stats,
            json=mode.json,
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
            params=params,
            depth=depth,
            stats=stats,
            globs=globs,
            sort=sort,
            limit=limit,
            report=located_or_none(report),
            given=flags,
        )
    elif not compare(mode, places, located(diff), located_or_none(report)):
        raise typer.Exit(EXIT_NO)

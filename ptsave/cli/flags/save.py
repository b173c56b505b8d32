"""Flags of save: a model is built, filled and written."""

from pathlib import Path
from typing import Annotated

import typer

from ptsave.cli import options as opts
from ptsave.cli.groups import Filling, Talking, Writing, with_groups
from ptsave.cli.options import given
from ptsave.core.address import located, located_or_none


@with_groups
def save(
    context: typer.Context,
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="TOML that names the model's class.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="File or folder to write.")],
    *,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="SRC", help="Checkpoint to fill the model from."),
    ] = None,
    filling: Filling,
    lock: opts.Lock = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights that do not come from --weights.")] = 0,
    device: opts.Device = "cpu",
    format: opts.FormatName = None,
    metadata: opts.Metadata = None,
    writing: Writing,
    no_behaviour: Annotated[
        bool, typer.Option("--no-behaviour", help="Do not run the model to record what it computes.")
    ] = False,
    set: opts.Set = None,
    app_dir: opts.AppDir = Path(),
    mode: Talking,
) -> None:
    """Build the model of CONFIG, fill it, and write its state dict with a record of what it is."""
    from ptsave.cli.save import save as run
    from ptsave.verbs.request import refuse_unused, unused_by_save, unused_without_sign
    from ptsave.verbs.texts import parse_metadata

    unused = unused_by_save(
        has_weights=weights is not None,
        allows_missing=bool(filling.allow_missing),
        no_record=writing.no_record,
    )
    refuse_unused(given(context), unused | unused_without_sign(signs=bool(writing.sign)))
    run(
        mode,
        located(config),
        located(destination),
        writing.options(),
        is_digest_named=writing.digest is not None,
        overrides=set or [],
        weights=located_or_none(weights),
        wanted=filling.wanted(),
        seed=seed,
        device=device,
        format=format,
        metadata=parse_metadata(metadata or ()),
        behaves=not no_behaviour,
        app_dir=app_dir,
        lock=located_or_none(lock),
    )

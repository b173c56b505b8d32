"""Flags of load: a model is rebuilt and run."""

from pathlib import Path
from typing import Annotated

import typer

from ptsave.cli import options as opts
from ptsave.cli.groups import Filling, Talking, with_groups
from ptsave.cli.options import given
from ptsave.core.address import located, located_or_none


@with_groups
def load(
    context: typer.Context,
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Checkpoint to load.")],
    *,
    config: opts.ConfigPath = None,
    trust_recorded: opts.TrustRecorded = None,
    filling: Filling,
    lock: opts.Lock = None,
    device: opts.Device = "cpu",
    inputs: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Tensors to run the model on: .safetensors, .npz or .npy."),
    ] = None,
    outputs: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where to write what the model returns.")
    ] = None,
    overwrite: opts.Overwrite = False,
    set: opts.Set = None,
    app_dir: opts.AppDir = Path(),
    mode: Talking,
) -> None:
    """Rebuild the model, load the weights strictly, and run it once if asked."""
    from ptsave.cli.load import load as run
    from ptsave.verbs.request import refuse_unused, unused_by_load

    unused = unused_by_load(
        has_config=config is not None,
        has_outputs=outputs is not None,
        allows_missing=bool(filling.allow_missing),
    )
    refuse_unused(given(context), unused)
    run(
        mode,
        located(checkpoint),
        located_or_none(config),
        overrides=set or [],
        trusted=trust_recorded or (),
        wanted=filling.wanted(),
        device=device,
        inputs=located_or_none(inputs),
        outputs=located_or_none(outputs),
        overwrite=overwrite,
        app_dir=app_dir,
        lock=located_or_none(lock),
    )

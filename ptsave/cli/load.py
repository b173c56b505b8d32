"""load: a model rebuilt from a checkpoint by one process or by all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from ptsave.cli.launch import launched
from ptsave.core.address import Location
from ptsave.core.parts.keys import Wanted
from ptsave.distributed.group import is_first_rank
from ptsave.render.models import show_loaded
from ptsave.render.terminal import Mode, warn
from ptsave.verbs.signing import lock_for, open_pinned


def load(
    mode: Mode,
    path: Location,
    config_path: Location | None,
    *,
    overrides: Sequence[str],
    trusted: Sequence[str],
    wanted: Wanted,
    device: str,
    inputs: Location | None,
    outputs: Location | None,
    overwrite: bool,
    app_dir: Path,
    lock: Location | None,
) -> None:
    """Rebuild the model, load its weights, run it if there is something to run it on or for, and say so.

    Raises: what `models.load.load` raises.
    """
    with launched(device) as group, ExitStack() as opened:
        if group is None:
            checkpoint = opened.enter_context(open_pinned(path, lock_for(lock)))
            _ = checkpoint.tensors  # past the caps, before torch, which takes its time and memory
            from ptsave.models.load import load as load_alone

            run = partial(load_alone, checkpoint, device=device)
        else:
            from ptsave.distributed.load import load as load_on_ranks

            run = partial(load_on_ranks, group, path, lock=lock)
        from ptsave.models.imports import in_front

        with in_front(app_dir):
            loaded = run(
                config_path,
                overrides=overrides,
                trusted=trusted,
                wanted=wanted,
                inputs=inputs,
                outputs=outputs,
                overwrite=overwrite,
                app_dir=app_dir,
                warn=warn,
            )
        if is_first_rank():
            show_loaded(mode, loaded)

"""save: the model of a config, built and written by one process or by all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from ptsave.cli.launch import launched
from ptsave.config.toml import load_config
from ptsave.core.address import Location
from ptsave.core.parts.keys import Wanted
from ptsave.distributed.group import is_first_rank
from ptsave.errors import Option, UsageError
from ptsave.formats.base import WriteOptions
from ptsave.formats.writers import check_destination, destination_writer
from ptsave.render.models import show_saved
from ptsave.render.terminal import Mode, warn
from ptsave.verbs.signing import check_signed, settled, write_beside


def save(
    mode: Mode,
    config_path: Location,
    destination: Location,
    options: WriteOptions,
    *,
    is_digest_named: bool,
    overrides: Sequence[str],
    weights: Location | None,
    wanted: Wanted,
    seed: int,
    device: str,
    format: str | None,
    metadata: Mapping[str, str],
    behaves: bool,
    app_dir: Path,
    lock: Location | None,
) -> None:
    """Build the model, fill it, write it, and say so.

    Raises: UsageError for a flag, and what `models.save.save` raises.
    """
    options = settled(options, is_named=is_digest_named)
    with launched(device) as group:
        if group is None:
            writer = destination_writer(destination, format)
            check_signed(destination, writer.name, options, keeps_record=writer.keeps_record)
            config = load_config(config_path, overrides)
            check_destination(destination, writer, overwrite=options.overwrite)
            from ptsave.models.save import save as save_alone  # takes seconds: after what may be refused

            run = partial(save_alone, target=writer, device=device)
        else:
            from ptsave.distributed.save import check_format
            from ptsave.distributed.save import save as save_on_ranks

            check_format(format)
            if options.signer is not None:
                hint = "save without it, then `ptsave convert --sign`"
                raise UsageError((Option("sign"), " is for one process"), "", hint)
            config = load_config(config_path, overrides)
            run = partial(save_on_ranks, group)
        from ptsave.models.imports import in_front

        with in_front(app_dir):
            saved = run(
                config=config,
                destination=destination,
                options=options,
                weights=weights,
                wanted=wanted,
                seed=seed,
                metadata=metadata,
                behaves=behaves,
                app_dir=app_dir,
                lock=lock,
                warn=warn,
            )
        write_beside(options, destination)
        if is_first_rank():
            show_saved(mode, saved)

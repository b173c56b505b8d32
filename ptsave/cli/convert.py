"""convert: the tensors of one or several checkpoints, written as another one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace

from ptsave.cli.flags import refuse_unused, unused_by_convert
from ptsave.core.accounts import Extras
from ptsave.core.address import Location, on_disk
from ptsave.errors import UsageError
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.writers import check_destination, destination_writer
from ptsave.render.convert import show_converted
from ptsave.render.terminal import Mode, progress
from ptsave.verbs.convert import convert as convert_all
from ptsave.verbs.convert import num_bytes_of
from ptsave.verbs.edit import Edits


def convert(
    mode: Mode,
    paths: Sequence[Location],
    options: WriteOptions,
    edits: Edits,
    *,
    format: str | None,
    select: str | None,
    extras: Extras,
    dry_run: bool,
    given: Collection[str] = (),
) -> None:
    """Write the tensors of all `paths` but the last to the last one, edited, and say so.

    `given`: the flags of the command line, each of which must be of use.

    Raises: UsageError for a flag, and what reading and writing raise.
    """
    if len(paths) < 2:
        raise UsageError("convert needs a source and a destination", "", "ptsave convert SRC DST")
    *sources, last = paths
    destination = on_disk(last, "what convert writes")
    target = destination_writer(destination, format)
    unused = unused_by_convert(is_sharded=target.is_sharded, no_record=not options.record, dry_run=dry_run)
    refuse_unused(given, unused)
    with ExitStack() as opened:
        checkpoints = [opened.enter_context(open_checkpoint(path)) for path in sources]
        if not dry_run:
            check_destination(destination, target, overwrite=options.overwrite)
        total = num_bytes_of(checkpoints) * (2 if options.check else 1)
        with progress(mode, "converting", total) as advance:
            converted = convert_all(
                checkpoints,
                destination,
                target,
                replace(options, progress=advance),
                edits,
                select=select,
                extras=extras,
                dry_run=dry_run,
            )
    show_converted(mode, converted)

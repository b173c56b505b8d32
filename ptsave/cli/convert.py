"""convert: the tensors of one or several checkpoints, written as another one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial

from ptsave.core.accounts import Extras
from ptsave.core.address import Location
from ptsave.formats.base import WriteOptions
from ptsave.render.convert import show_converted
from ptsave.render.terminal import Mode, progress
from ptsave.verbs.convert import convert_paths
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
    metadata: Mapping[str, str],
    dry_run: bool,
    given: Collection[str] = (),
) -> None:
    """Write the tensors of all `paths` but the last to the last one, edited, and say so.

    `given`: the flags of the command line, each of which must be of use.

    Raises: UsageError for a flag, and what reading and writing raise.
    """
    converted = convert_paths(
        paths,
        options,
        edits,
        format=format,
        select=select,
        extras=extras,
        metadata=metadata,
        dry_run=dry_run,
        given=given,
        bar=partial(progress, mode),
    )
    show_converted(mode, converted)

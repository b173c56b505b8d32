"""Checks that all ranks see one folder: a checkpoint that one rank does not see is not damaged."""

from __future__ import annotations

import time
from contextlib import ExitStack

from ptsave.distributed.group import Group
from ptsave.errors import MissingFileError, RefusedError
from ptsave.training.runs.files import RunFiles
from ptsave.training.runs.folders import VISIBLE_SECONDS

_HINT = "keep the run in a folder that all nodes share"


def check_one_folder(files: RunFiles, group: Group) -> None:
    """See that every rank sees what rank 0 writes. Every rank calls it.

    Raises: RefusedError, alike on all ranks; WriteError.
    """
    if group.size == 1:
        return
    with ExitStack() as opened:
        mark = group.from_first(lambda: opened.enter_context(files.marked()))
        seen = group.gather((str(files.where), files.sees(mark)))
    for rank, (folder, sees_it) in enumerate(seen):
        if not sees_it:
            what = f"rank {rank} does not see in {folder} what rank 0 writes to {seen[0][0]}"
            raise RefusedError(what, "", _HINT)


def check_listings(files: RunFiles, group: Group) -> None:
    """See that all ranks have the same checkpoints before any of them is called damaged. Every rank calls it.

    Raises: MissingFileError, alike on all ranks.
    """
    end = time.monotonic() + VISIBLE_SECONDS
    while True:
        listings = group.gather(group.together(files.listing))
        other = next((rank for rank, one in enumerate(listings) if one != listings[0]), 0)
        if not other:
            return
        if any(group.gather(time.monotonic() > end)):
            name = sorted(set(listings[0].items()) ^ set(listings[other].items()))[-1][0]
            what = (
                f"rank 0 sees {len(listings[0])} checkpoints of the run, rank {other} sees "
                f"{len(listings[other])}: they do not have the same {name}"
            )
            raise MissingFileError(what, str(files.where), f"{_HINT}; nothing is damaged")
        time.sleep(VISIBLE_SECONDS / 50)

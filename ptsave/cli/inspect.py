"""inspect: what is in checkpoints, and what differs between two."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from ptsave.cli.flags import ALWAYS
from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.own_process import no_garbage_collection
from ptsave.errors import UsageError
from ptsave.formats import open_checkpoint
from ptsave.render.inspect import Inspections
from ptsave.render.terminal import Mode, progress
from ptsave.verbs.inspect import Inspection, sort_key
from ptsave.verbs.inspect import inspect as inspect_one

if TYPE_CHECKING:
    from ptsave.verbs.stats import TensorStats


def inspect(
    mode: Mode,
    paths: Sequence[Location],
    *,
    tree: bool,
    stats: bool,
    globs: Sequence[str],
    sort: str,
    limit: int | None,
    given: Collection[str] = (),
) -> None:
    """Show what is in each of `paths`: a checkpoint, or the folder of a run.

    `given`: the flags of the command line; those about tensors are refused for a run.

    Raises: UsageError for a flag, and what opening a checkpoint raises.
    """
    order, shown = sort_key(sort), Inspections(mode, many=len(paths) > 1)
    with no_garbage_collection():
        for path in paths:
            if _is_shown_run(path, given, shown):
                continue
            with open_checkpoint(path) as checkpoint:
                result = inspect_one(checkpoint, globs=globs, sort=order, limit=limit)
                measured = _measured(mode, checkpoint, result) if stats else None
                shown.checkpoint(result, tree=tree, stats=measured)
        shown.end()


def _is_shown_run(path: Location, given: Collection[str], shown: Inspections) -> bool:
    """Show the folder of a run; False where `path` is none."""
    from ptsave.verbs import runs

    if not runs.is_run(path):
        return False
    runs.refuse_flags(path, [flag for flag in given if flag not in ALWAYS])
    shown.run(runs.inspect_run(path))
    return True


def _measured(mode: Mode, checkpoint: Checkpoint, result: Inspection) -> list[TensorStats]:
    from ptsave.verbs.stats import stats

    names = [row.entry.name for row in result.rows]
    total = sum(row.entry.num_bytes for row in result.rows)
    with progress(mode, "reading", total) as advance:
        measured = list(stats(checkpoint, names, progress=advance))
    checkpoint.check_unchanged()
    return measured


def compare(mode: Mode, paths: Sequence[Location], other: Location) -> bool:
    """Show what differs between the one of `paths` and `other`; returns whether they are the same.

    Raises: UsageError where there is more than one, and what opening a checkpoint raises.
    """
    from ptsave.render.diff import show_differences
    from ptsave.verbs.diff import diff

    if len(paths) != 1:
        raise UsageError("--diff compares two checkpoints", "", "ptsave inspect A --diff B")
    with open_checkpoint(paths[0]) as a, open_checkpoint(other) as b:
        total = sum(entry.num_bytes for checkpoint in (a, b) for entry in checkpoint.tensors.values())
        with progress(mode, "comparing", total) as advance:
            found = diff(a, b, progress=advance)
        a.check_unchanged()
        b.check_unchanged()
    show_differences(mode, found, paths[0], other)
    return found.is_same

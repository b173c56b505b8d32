"""inspect: what is in checkpoints, and what differs between two."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from ptsave.core.address import Location
from ptsave.errors import UsageError
from ptsave.own_process import no_garbage_collection
from ptsave.render.inspect import Inspections
from ptsave.render.terminal import Mode, note, progress
from ptsave.verbs.inspect import Inspection, inspect_path


def inspect(
    mode: Mode,
    paths: Sequence[Location],
    *,
    tree: bool,
    params: bool = False,
    depth: int | None = None,
    stats: bool,
    globs: Sequence[str],
    sort: str,
    limit: int | None,
    report: Location | None = None,
    given: Collection[str] = (),
) -> None:
    """Show what is in each of `paths`: a checkpoint, the folder of a run, or a plain one.

    `given`: the flags of the command line; those about tensors are refused for folders.

    Raises: UsageError for a flag, and what opening a checkpoint raises.
    """
    shown = Inspections(mode, many=len(paths) > 1)
    if report is not None:
        from ptsave.render.report.inspection import check_inspection_report

        check_inspection_report(report)
    reported: list[Inspection] = []
    with no_garbage_collection():
        for path in paths:
            result = inspect_path(
                path,
                globs=globs,
                sort=sort,
                limit=limit,
                stats=stats,
                given=given,
                bar=partial(progress, mode),
            )
            if report is not None:
                reported.append(_reportable(result, report))
            if isinstance(result, Inspection):
                shown.checkpoint(result, tree=tree, params=params, depth=depth)
                continue
            from ptsave.verbs.folders.plain import FolderInspection  # only folders need it

            if isinstance(result, FolderInspection):
                shown.folder(result)
            else:
                shown.run(result)
        if report is not None:
            from ptsave.render.report.inspection import write_inspections

            write_inspections(report, reported)
            note(mode, f"wrote {report}")
        shown.end()


def _reportable(result: object, report: Location) -> Inspection:
    """Raise UsageError for a folder of checkpoints."""
    if not isinstance(result, Inspection):
        raise UsageError("a page is about checkpoints", f"--report {report}", "name those of the folder")
    return result


def make_config(
    mode: Mode, paths: Sequence[Location], destination: Location, target: str | None, app_dir: Path
) -> None:
    """Write the TOML of the model that the one of `paths` belongs to: from its record, from the config.json
    beside it, or from the class `target` and its signature. Say what was written.

    Raises: UsageError where there is more than one path, and what making a config raises.
    """
    from ptsave.render.inspect import show_made

    if len(paths) != 1:
        raise UsageError("--make-config is about one checkpoint", "", "name one")
    if target is None:
        from ptsave.verbs.make_config import make_config as make

        made = make(paths[0], destination)
    else:
        from ptsave.models.imports import in_front
        from ptsave.models.make_config import make_config_of_class

        with in_front(app_dir):
            made = make_config_of_class(paths[0], destination, target, app_dir=app_dir)
    show_made(mode, made)


def compare(mode: Mode, paths: Sequence[Location], other: Location, report: Location | None = None) -> bool:
    """Show what differs between the one of `paths` and `other`, and write a page about it to `report`.

    Returns whether they are the same.

    Raises: UsageError where there is more than one; what opening a checkpoint raises; WriteError.
    """
    from ptsave.render.diff import show_differences
    from ptsave.verbs.diff import diff_paths

    if len(paths) != 1:
        raise UsageError("--diff compares two checkpoints", "", "ptsave inspect A --diff B")
    if report is not None:
        from ptsave.render.report.inspection import check_inspection_report

        check_inspection_report(report)
    found = diff_paths(paths[0], other, partial(progress, mode))
    if report is not None:
        from ptsave.render.report.difference import write_difference

        write_difference(report, found, paths[0], other)
        note(mode, f"wrote {report}")
    show_differences(mode, found, paths[0], other)
    return found.is_same

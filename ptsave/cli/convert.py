"""convert: the tensors of one or several checkpoints, written as another one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from ptsave.core.accounts import Extras
from ptsave.core.address import Location
from ptsave.core.verdict import Verdict
from ptsave.errors import UsageError
from ptsave.formats.base import WriteOptions
from ptsave.formats.writers import program_format
from ptsave.render import as_json
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
    config: Location | None = None,
    overrides: Sequence[str] = (),
    app_dir: Path = Path(),
    dtype: str | None = None,
    opset: int | None = None,
    report: Location | None = None,
    lock: Location | None = None,
    given: Collection[str] = (),
) -> None:
    """Write the tensors of all `paths` but the last to the last one, edited, and say so.

    `given`: the flags of the command line, each of which must be of use.

    Raises: UsageError for a flag, and what reading and writing raise.
    """
    program = program_format(paths[-1], format) if config is not None else None
    if program is not None:
        from ptsave.export.convert import Export, export_path

        source = one_source(paths)
        to = paths[-1]
        request = Export(
            source, to, program, config, overrides, select, extras, dtype, opset, app_dir, metadata, lock
        )
        to_report = None if report is None else _reporter(report, paths[-1])
        show_converted(mode, export_path(request, options, given=given, report=to_report))
        return
    converted = convert_paths(
        paths,
        options,
        edits,
        format=format,
        select=select,
        extras=extras,
        metadata=metadata,
        lock=lock,
        dry_run=dry_run,
        given=given,
        bar=partial(progress, mode),
    )
    show_converted(mode, converted)


def one_source(paths: Sequence[Location]) -> Location:
    """The path before the last one, where there is one alone.

    Raises: UsageError.
    """
    if len(paths) != 2:
        raise UsageError("a program is exported from one checkpoint", "", "ptsave convert SRC DST -c CONFIG")
    return paths[0]


def _reporter(
    report: Location, destination: Location
) -> Callable[[Verdict, Mapping[str, str | int | float]], None]:
    """What writes the verdict on a program to `report`; whether it can is found out at once."""
    from ptsave.render.report import check_report_path, write_report

    check_report_path(report)

    def write(verdict: Verdict, facts: Mapping[str, str | int | float]) -> None:
        write_report(report, verdict, facts, lambda: as_json.versioned(as_json.verdict(verdict, destination)))

    return write

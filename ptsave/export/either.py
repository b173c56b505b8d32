"""convert: tensors written in another format or, with a config, a model exported as a program."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from ptsave.core.accounts import parse_extras
from ptsave.core.address import Location
from ptsave.core.verdict import Verdict
from ptsave.errors import UsageError
from ptsave.formats.base import WriteOptions
from ptsave.formats.writers import program_format
from ptsave.verbs import convert as verb
from ptsave.verbs.edit import Edits
from ptsave.verbs.request import Bar, unseen

Report = Callable[[Verdict, Mapping[str, str | int | float]], None]
"""Takes the verdict on a program, and facts about it."""


def convert_paths(
    paths: Sequence[Location],
    options: WriteOptions,
    edits: Edits,
    *,
    config: Location | None,
    format: str | None,
    select: str | None,
    extras: str,
    metadata: Mapping[str, str],
    overrides: Sequence[str],
    app_dir: Path,
    dtype: str | None,
    opset: int | None,
    lock: Location | None,
    dry_run: bool,
    given: Collection[str],
    bar: Bar = unseen,
    begin_report: Callable[[], Report] | None = None,
) -> verb.Conversion:
    """Write the tensors of all `paths` but the last to the last one, or export the model of `config` there.

    `given`: the options that were given, as flags, each of which must be of use. `begin_report` is called
    before a program is made.

    Raises: UsageError for an option, and what reading, exporting and writing raise.
    """
    program = program_format(paths[-1], format) if config is not None and paths else None
    if program is None:
        return verb.convert_paths(
            paths,
            options,
            edits,
            format=format,
            select=select,
            extras=parse_extras(extras, "fail", "drop", "keep"),
            metadata=metadata,
            lock=lock,
            dry_run=dry_run,
            given=given,
            bar=bar,
        )
    from ptsave.export.convert import Export, export_path  # torch

    if len(paths) != 2:
        hint = "name one source, then the destination"
        raise UsageError("a program is exported from one checkpoint", "", hint)
    source, destination = paths
    request = Export(
        source,
        destination,
        program,
        config,
        overrides,
        select,
        parse_extras(extras, "fail", "drop"),
        dtype,
        opset,
        app_dir,
        metadata,
        lock,
    )
    report = begin_report() if begin_report is not None else None
    return export_path(request, options, given=given, report=report)

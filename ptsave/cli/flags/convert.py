"""Flags of convert: tensors in another format, or a model as a program."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ptsave.cli import options as opts
from ptsave.cli.groups import Talking, Writing, with_groups
from ptsave.cli.options import dtypes, given, one_of
from ptsave.core.address import located, located_or_none
from ptsave.render.terminal import progress


@with_groups
def convert(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="SRC... DST", help="Checkpoints to read, and where to write."),
    ],
    *,
    config: Annotated[
        str | None,
        typer.Option(
            "-c", "--config", metavar="CONFIG", help="TOML of the model, for a program: .pt2 or .onnx."
        ),
    ] = None,
    format: opts.FormatName = None,
    select: Annotated[
        str | None,
        typer.Option(metavar="KEY.PATH", help="model, optimizer, or the key of what to convert."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Keep the tensors whose names match; repeatable."),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Leave out the tensors whose names match; repeatable."),
    ] = None,
    strip_prefix: Annotated[
        str | None,
        typer.Option(metavar="PREFIX", help="Remove it from names; auto: what DDP, compile, FSDP put there."),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=TO", help="Replace in names, as re.sub does; repeatable."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE", help="Cast floating-point tensors, e.g. bfloat16.", autocompletion=dtypes
        ),
    ] = None,
    contiguous: Annotated[
        bool, typer.Option("--contiguous", help="Lay strided views out row by row.")
    ] = False,
    dense: Annotated[
        bool, typer.Option("--dense", help="Write sparse and quantized tensors as plain ones.")
    ] = False,
    extras: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="What the target cannot hold: fail, drop or keep (as JSON).",
            autocompletion=one_of("fail", "drop", "keep"),
        ),
    ] = "fail",
    shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Most bytes in one file of a sharded format, e.g. 5GB.")
    ] = "5GB",
    metadata: opts.Metadata = None,
    opset: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Version of ONNX's operators, for .onnx.")
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Write how the program compares with the model: .json, .xml or .html."
        ),
    ] = None,
    writing: Writing,
    lock: opts.Lock = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    set: opts.Set = None,
    app_dir: opts.AppDir = Path(),
    threads: opts.Threads = None,
    mode: Talking,
) -> None:
    """Write the same tensors in another format: renamed, selected, cast, merged or sharded if asked.

    With -c, export the model to a program (.pt2, .onnx) that has run beside it before it gets its name.
    """
    from ptsave.export.either import convert_paths
    from ptsave.render.convert import show_converted
    from ptsave.verbs.convert import parse_size
    from ptsave.verbs.edit import parse_edits
    from ptsave.verbs.texts import parse_metadata

    places = [located(path) for path in paths]
    begin = None
    if report is not None:
        from ptsave.render.report import begin_report

        begin = partial(begin_report, located(report), places[-1])
    converted = convert_paths(
        places,
        replace(writing.options(), shard_bytes=parse_size(shard_size)),
        parse_edits(only, drop, strip_prefix, rename, dtype, contiguous, dense),
        config=located_or_none(config),
        format=format,
        select=select,
        extras=extras,
        metadata=parse_metadata(metadata or ()),
        overrides=set or (),
        app_dir=app_dir,
        dtype=dtype,
        opset=opset,
        lock=located_or_none(lock),
        dry_run=dry_run,
        given=given(context),
        bar=partial(progress, mode),
        begin_report=begin,
    )
    show_converted(mode, converted)

"""Flags of verify: a verdict on checkpoints."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ptsave.cli import options as opts
from ptsave.cli.groups import Talking, with_groups
from ptsave.cli.options import check_names, given, typed
from ptsave.core.address import located, located_or_none
from ptsave.errors import EXIT_NO, EXIT_OK, Option, UsageError


@with_groups
def verify(
    context: typer.Context,
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHECKPOINT...", help="Checkpoints to verify, or folders of them.", show_default=False
        ),
    ] = None,
    *,
    config: opts.ConfigPath = None,
    trust_recorded: opts.TrustRecorded = None,
    recursive: Annotated[
        bool, typer.Option("-r", "--recursive", help="Look for checkpoints in the folders of folders, too.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(metavar="OTHER", help="Checkpoint, or config, that must give the same model."),
    ] = None,
    close: Annotated[
        bool,
        typer.Option("--close", help="Accept values of OTHER within the tolerance of their dtypes."),
    ] = False,
    checks: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Run these checks only; see --list-checks.", autocompletion=check_names
        ),
    ] = None,
    list_checks: Annotated[bool, typer.Option("--list-checks", help="Say what each check proves.")] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Names that the check `safe` accepts; repeatable. Of what runs something, the full name.",
        ),
    ] = None,
    allow_infinite: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Tensors that may hold infinities, such as masks; repeatable."),
    ] = None,
    signed_by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Who must have signed: a key, certificate (PEM), folder of such, or `sigstore`; repeatable.",
        ),
    ] = None,
    identity: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Whom a certificate under --signed-by must name; repeatable."),
    ] = None,
    issuer: Annotated[
        str | None, typer.Option(metavar="URL", help="Who must have told sigstore that name.")
    ] = None,
    signature: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="A signature in a file of its own; repeatable."),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=TO", help="Turn today's names into those that were signed; repeatable."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Tensors that must be signed, by signed name; repeatable."),
    ] = None,
    pin: Annotated[bool, typer.Option("--pin", help="After a yes, pin what is here in ptsave.lock.")] = False,
    lock: opts.Lock = None,
    through: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Formats that `roundtrip` goes through; default: its own."),
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Also write the verdict: .json, .xml (JUnit) or .html."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as failures.")] = False,
    record: Annotated[
        bool,
        typer.Option("--record", help="After a yes, write today's behaviour into the checkpoint's record."),
    ] = False,
    select: opts.Select = None,
    device: opts.Device = "cpu",
    set: opts.Set = None,
    app_dir: opts.AppDir = Path(),
    threads: opts.Threads = None,
    mode: Talking,
) -> None:
    """Give a verdict: same bytes, same keys, same behaviour. Exit 0 is yes, 1 is no."""
    from ptsave.cli import verify as command
    from ptsave.export import run_beside, run_pt2
    from ptsave.models.verify.one import Request
    from ptsave.verbs.folders.plain import checkpoints_at
    from ptsave.verbs.request import refuse_unused
    from ptsave.verbs.signing import signed_by_of
    from ptsave.verbs.verify import OF_LIST_CHECKS, choose

    flags = given(context)
    if list_checks:
        others = [flag for flag in flags if flag not in OF_LIST_CHECKS]
        refuse_unused(others, dict.fromkeys(others, "--list-checks verifies nothing"))
        command.list_checks(mode)
        return
    if not checkpoints:
        raise UsageError("verify needs a checkpoint", "", "ptsave verify CHECKPOINT")
    asked = choose(
        checks,
        config=located_or_none(config),
        trusted=trust_recorded or (),
        against=located_or_none(against),
        close=close,
        through=through,
        record=record,
        given=flags,
        infinite=allow_infinite or (),
        signed_by=partial(
            signed_by_of,
            [located(key) for key in signed_by or ()],
            [located(file) for file in signature or ()],
            rename or (),
            only or (),
            identity or (),
            issuer,
        ),
        overrides=set or (),
        pin=pin,
        lock=located_or_none(lock),
    )
    named = [located(checkpoint) for checkpoint in checkpoints]
    places, beside = checkpoints_at(named, recursive=recursive)
    if recursive and beside is None:
        what = (Option("recursive"), " is about folders of checkpoints")
        raise UsageError(what, str(named[0]), "leave it out")
    request = Request(
        places[0], asked, allow or (), set or [], select, device, app_dir, strict, run_pt2, run_beside
    )
    where = located_or_none(report)
    if len(places) > 1 or beside is not None:
        code = command.verify_all(mode, request, places, beside or (), where, typed(context.obj))
    else:
        code = EXIT_OK if command.verify(mode, request, where, typed(context.obj)) else EXIT_NO
    if code:
        raise typer.Exit(code)

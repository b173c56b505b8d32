"""Groups of options that commands share, each one parameter of theirs: how they talk, fill a model, write."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from getpass import getpass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptsave.cli import options as opts
from ptsave.render.terminal import Mode

if TYPE_CHECKING:
    from ptsave.core.parts.keys import Wanted
    from ptsave.formats.base import WriteOptions
    from ptsave.sign.signer import Signer


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """`command` as Typer reads it: each parameter that is a group is the options in it.

    A group is a dataclass, and a keyword-only parameter.
    """
    signature = inspect.signature(command)
    groups: dict[str, Any] = {
        p.name: p.annotation for p in signature.parameters.values() if is_dataclass(p.annotation)
    }
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name not in groups:
            parameters.append(parameter)
            continue
        parameters += [
            parameter.replace(name=option.name, default=option.default, annotation=option.type)
            for option in fields(parameter.annotation)
        ]

    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{option.name: values.pop(option.name) for option in fields(group)})
        command(**values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(run)["__signature__"] = signature.replace(parameters=parameters)
    return run


@dataclass(frozen=True)
class Talking(Mode):
    """How the command talks."""

    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors and results only.")] = False
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Print what is being done.")] = False


@dataclass(frozen=True)
class Filling:
    """How weights fill a model."""

    select: opts.Select = None
    extras: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="What the checkpoint holds and no state dict has: fail or drop.",
            autocompletion=opts.one_of("fail", "drop"),
        ),
    ] = "fail"
    allow_missing: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Names that the weights may lack: they stay fresh."),
    ] = None
    allow_unexpected: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Names that may be left in the weights.")
    ] = None
    min_coverage: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            min=0,
            max=1,
            help="How much of the model's elements the weights must have, from 0 to 1.",
        ),
    ] = 0.5
    tie: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Name whose values a tied parameter takes.")
    ] = None

    def wanted(self) -> "Wanted":
        """What they ask of the weights.

        Raises: UsageError.
        """
        from ptsave.core.accounts import parse_extras
        from ptsave.core.parts.keys import Allowed, Wanted

        allowed = Allowed(self.allow_missing or (), self.allow_unexpected or ())
        extras = parse_extras(self.extras, "fail", "drop")
        return Wanted(allowed, self.tie or (), self.select, extras, self.min_coverage)


@dataclass(frozen=True)
class Writing:
    """How a checkpoint is written and signed."""

    digest: Annotated[
        str | None,
        typer.Option(
            metavar="ALGORITHM",
            help="xxh3_128, blake3 or sha256; default: xxh3_128, and with --sign sha256.",
            autocompletion=opts.one_of("xxh3_128", "blake3", "sha256"),
        ),
    ] = None
    sign: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Private key (PEM) to sign with, or `sigstore`; repeatable."),
    ] = None
    certificate: Annotated[
        list[str] | None,
        typer.Option(metavar="CHAIN", help="Certificates (PEM) of a key of --sign; repeatable."),
    ] = None
    sign_only: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Sign the tensors whose names match; repeatable."),
    ] = None
    expires: Annotated[
        str | None, typer.Option(metavar="DATE", help="Last day on which the signature holds, YYYY-MM-DD.")
    ] = None
    signature: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write the signature into a file of its own.")
    ] = None
    bundle: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Also sign the files, as `model_signing verify` reads it."),
    ] = None
    no_record: Annotated[bool, typer.Option("--no-record", help="Leave ptsave's record out.")] = False
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not read back what was written.")] = False
    overwrite: opts.Overwrite = False

    def options(self) -> "WriteOptions":
        """What they ask of the writer; the password of a key is asked for on a terminal.

        Raises: UsageError; RefusedError and MissingFileError for a key.
        """
        from ptsave.formats.base import WriteOptions, digest_algorithm

        return WriteOptions(
            overwrite=self.overwrite,
            record=not self.no_record,
            digest=digest_algorithm(self.digest),
            check=not self.no_check,
            signer=self._signer() if self.sign else None,
        )

    def _signer(self) -> "Signer | None":
        from ptsave.core.address import located, located_or_none
        from ptsave.sign.signer import signer_of

        return signer_of(
            [located(key) for key in self.sign or ()],
            self.sign_only or (),
            self.expires,
            located_or_none(self.signature),
            located_or_none(self.bundle),
            getpass if sys.stdin.isatty() else None,
            [located(chain) for chain in self.certificate or ()],
        )

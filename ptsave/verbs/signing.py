"""What a command does about signatures: which digests it takes, what it carries along, whose it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.record import Record
from ptsave.errors import Option, Text, UsageError
from ptsave.formats.base import WriteOptions, digest_algorithm
from ptsave.formats.writers import Writer
from ptsave.sign.carried import carried
from ptsave.sign.envelope import read_envelope
from ptsave.sign.keys import trusted
from ptsave.sign.signer import signed_digest
from ptsave.sign.statement import ALGORITHMS
from ptsave.sign.trusted import SignedBy
from ptsave.storage.opening import check_file_destination, write_file
from ptsave.verbs.edit import renames_of


def settled(options: WriteOptions, sources: Sequence[Checkpoint] = (), *, is_named: bool) -> WriteOptions:
    """`options` with the digest that is taken: that which the user names, or that which signatures need.

    `is_named`: whether the user names one. Signatures that are carried along keep the digests that they need.

    Raises: UsageError for a digest that is not signed.
    """
    record = sources[0].record if len(sources) == 1 else None
    recorded = record.digests.algorithm if record is not None and record.digests is not None else None
    if options.signer is not None:
        digest: str = signed_digest(options.digest if is_named else None, recorded)
    elif not is_named and recorded in ALGORITHMS and record is not None and record.signatures:
        digest = recorded
    else:
        return options
    return replace(options, digest=digest_algorithm(digest))


def check_signed(destination: Location, target: Writer, options: WriteOptions) -> None:
    """Find out whether what is written can be signed, before work whose result would be lost.

    Raises: UsageError where there is no place for a signature; ExistsError; WriteError.
    """
    if options.signer is None:
        return
    sign = Option("sign")
    if not options.record or not target.keeps_record:
        why = f"{target.name} has no place for a record" if options.record else "the record is left out"
        what: Text = (sign, f" puts the signature into the record, and {why}")
        raise UsageError(what, "", "sign another format; its signature holds for a copy in this one, too")
    beside = options.signer.beside
    if beside is not None:
        if beside == destination:
            raise UsageError("the signature would replace the checkpoint", str(beside), "name another file")
        check_file_destination(beside, overwrite=options.overwrite)


def write_beside(options: WriteOptions) -> None:
    """Write the signature into a file of its own, where one was named.

    Raises: ExistsError; WriteError.
    """
    signer = options.signer
    if signer is not None and signer.beside is not None:
        write_file(signer.beside, signer.file_bytes(), overwrite=options.overwrite)


def with_signatures(
    plan: Checkpoint,
    sources: Sequence[Checkpoint],
    renamed: Mapping[str, str],
    options: WriteOptions,
    target: Writer,
    notes: list[str],
) -> Checkpoint:
    """`plan`, which is to be written, with those signatures of the sources that still hold for it.

    `notes` take what becomes of the others.
    """
    documents = [one for source in sources if source.record is not None for one in source.record.signatures]
    if not documents or not options.record or not target.keeps_record:
        return plan
    found = carried(documents, plan, renamed, signs_anew=options.signer is not None)
    notes += found.notes
    record = plan.record or Record()
    return replace(plan, record=replace(record, signatures=tuple(found.signatures)))


def signed_by_of(
    keys: Sequence[Location],
    files: Sequence[Location] = (),
    rename: Sequence[str] | Mapping[str, str] = (),
    only: Sequence[str] = (),
) -> SignedBy | None:
    """What `verify` asks of signatures; None where no key is named.

    Raises: UsageError; MissingFileError and UnreadableError for a key or a signature.
    """
    if not keys:
        return None
    beside = [read_envelope(file) for file in files]
    return SignedBy([trusted(key) for key in keys], beside, renames_of(rename), only)

"""What a command does about signatures and pins: which digests it takes, what it carries along, whose it asks
for, and whether a checkpoint is what a `ptsave.lock` says was approved."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ptsave.config.lock import FILE_NAME, LockFile, Pin, lock_bytes, read_lock
from ptsave.config.toml import Config
from ptsave.core.address import Address, Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Kind, first_names
from ptsave.core.nodes import TensorEntry
from ptsave.core.parts.naming import renames_of
from ptsave.core.record import Record
from ptsave.errors import LossyError, MissingFileError, Option, RefusedError, Text, UsageError, quoted
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions, digest_algorithm
from ptsave.formats.writers import Writer
from ptsave.sign.carried import carried
from ptsave.sign.envelope import read_envelope
from ptsave.sign.programs import state_dict_of
from ptsave.sign.signer import signed_digest
from ptsave.sign.statement import ALGORITHMS, content_of, differences, statement_of
from ptsave.sign.trusted import SignedBy, trusts_of
from ptsave.storage.atomic import one_at_a_time
from ptsave.storage.opening import check_file_destination, write_file
from ptsave.storage.reads import may_be_replaced
from ptsave.storage.scan import tensor_digest
from ptsave.verbs.audit import Found, digests_of, named_digests

_WHY: Mapping[Kind, str] = {
    Kind.SIGNED_OTHER_NAMES: "tensors were added, dropped or renamed",
    Kind.SIGNED_RENAMED: "the values have other names",
    Kind.SIGNED_OTHER_LAYOUT: "a dtype or a shape is another one",
    Kind.SIGNED_SWAPPED: "values were swapped between names",
    Kind.SIGNED_OTHER_VALUES: "values of tensors are others",
    Kind.SIGNED_INCONSISTENT: "its statement contradicts itself",
    Kind.SIGNED_OTHER_TIES: "other tensors share memory",
    Kind.SIGNED_OTHER_DATA: "values beside the tensors were changed, added or dropped",
    Kind.SIGNED_OTHER_MODEL: "the record names another class, or other arguments or code of it",
}
Read = Callable[[Mapping[str, TensorEntry], Collection[str]], Found]
"""What reads tensors for their digests of some algorithms."""


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


def check_signed(
    destination: Location, format: str, options: WriteOptions, *, keeps_record: bool = True
) -> None:
    """Find out whether what is written can be signed, before work whose result would be lost.

    Raises: UsageError where there is no place for a signature; ExistsError; WriteError.
    """
    if options.signer is None:
        return
    sign = Option("sign")
    if not options.record or (not keeps_record and options.signer.beside is None):
        why = f"{format} has no place for a record" if options.record else "the record is left out"
        what: Text = (sign, f" puts the signature into the record, and {why}")
        hint: Text = "sign another format; its signature holds for a copy in this one, too"
        if options.record:
            hint = ("name a file for it with ", Option("signature", "FILE"), f", or {hint}")
        raise UsageError(what, "", hint)
    if options.signer.bundle is not None and isinstance(destination, Address):
        raise UsageError(
            "a bundle is of files on this machine", Option("bundle"), "write it here, then upload"
        )
    beside = [one for one in (options.signer.beside, options.signer.bundle) if one is not None]
    for one in beside:
        if one == destination or beside.count(one) > 1:
            raise UsageError("the signature would replace the checkpoint", str(one), "name another file")
        check_file_destination(one, overwrite=options.overwrite)


def write_beside(options: WriteOptions, destination: Location) -> None:
    """Write the signature, and the bundle of what was written, into files of their own where they were named.

    Raises: ExistsError; WriteError.
    """
    signer = options.signer
    if signer is not None and signer.beside is not None:
        write_file(signer.beside, signer.file_bytes(), overwrite=options.overwrite)
    if signer is not None and signer.bundle is not None and not isinstance(destination, Address):
        write_file(signer.bundle, signer.bundle_bytes(destination), overwrite=options.overwrite)


def signatures_of_program(
    file: Checkpoint, made: Record, source: Checkpoint, options: WriteOptions, notes: list[str]
) -> Sequence[Mapping[str, Any]]:
    """The signatures for the record `made` of the exported program in `file`.

    They are those of the source that still hold for what it has of the state dict, and that of who signs it.

    Raises: what signing raises.
    """
    plan, names = state_dict_of(file, (made.program or {}).get("constants", ()))
    plan = replace(plan, record=made)
    record = source.record
    kept = carried(record.signatures if record is not None else (), plan, {}, signs_anew=False)
    notes += kept.notes
    if options.signer is None:
        return tuple(kept.signatures)
    recorded = record.digests.algorithm if record is not None and record.digests is not None else None
    algorithm = signed_digest(None, recorded)
    digests = {name: tensor_digest(file.tensors[own], algorithm) for name, own in names.items()}
    return (*kept.signatures, *options.signer.sign(plan, algorithm, digests)[0])


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
    only = sources[0] if len(sources) == 1 else None
    found = carried(documents, plan, renamed, only, signs_anew=options.signer is not None)
    notes += found.notes
    record = plan.record or Record()
    return replace(plan, record=replace(record, signatures=tuple(found.signatures)))


def signed_by_of(
    keys: Sequence[Location],
    files: Sequence[Location] = (),
    rename: Sequence[str] | Mapping[str, str] = (),
    only: Sequence[str] = (),
    identity: Sequence[str] = (),
    issuer: str | None = None,
    config: Config | None = None,
) -> SignedBy | None:
    """What `verify` asks of signatures; None where neither it nor its config names a key.

    Raises: UsageError; MissingFileError and UnreadableError for a key or a signature.
    """
    if config is not None:
        keys, identity, issuer = (
            [*keys, *config.signed_by],
            [*identity, *config.identity],
            issuer or config.issuer,
        )
    if not keys:
        return None
    beside = [read_envelope(file) for file in files]
    return SignedBy(trusts_of(keys, identity, issuer), beside, renames_of(rename), only)


# --- pins ---


def lock_for(named: Location | None) -> LockFile | None:
    """The lock that the user names, or else that of the current folder, where it has one.

    Raises: MissingFileError; UnreadableError; UsageError for what is no lock.
    """
    if named is not None:
        return read_lock(named, is_named=True)
    return read_lock(Path(FILE_NAME)) if os.path.lexists(FILE_NAME) else None


def open_pinned(where: Location, lock: LockFile | None) -> Checkpoint:
    """Open the checkpoint at `where`, which must be what the lock pins; for that it is read once.

    Raises: RefusedError with what departs; what opening and reading raise.
    """
    return pinned(open_checkpoint(where), lock)


def pinned(checkpoint: Checkpoint, lock: LockFile | None, read: Read = digests_of) -> Checkpoint:
    """`checkpoint` if it is what the lock pins, or has no pin; else it is closed. `read`: what reads it.

    Raises: RefusedError with what departs; UnreadableError.
    """
    try:
        _hold(checkpoint, lock, read)
    except BaseException:
        checkpoint.close()
        raise
    return checkpoint


def _hold(checkpoint: Checkpoint, lock: LockFile | None, read: Read) -> None:
    if lock is None:
        return
    where, named = str(checkpoint.path), ["--lock", str(lock.path)] if lock.is_named else []
    approve = " ".join(map(quoted, ["ptsave", "verify", where, "--pin", *named]))
    pins = lock.pins_of(checkpoint)
    if not pins and lock.is_named:
        raise RefusedError(f"{lock.path} has no pin of it", where, f"to approve it: {approve}")
    found = read(checkpoint.tensors, algorithms_of(pins)) if pins else {}
    for pin in pins:
        if why := departure(checkpoint, pin, found):
            what = f"it is not what {lock.path} pins: {why}"
            raise RefusedError(what, where, f"if it was meant: {approve}")


def algorithms_of(pins: Sequence[Pin]) -> list[str]:
    """The digests that it takes to compare a checkpoint with pins."""
    return sorted({pin.statement.algorithm for pin in pins})


def departure(checkpoint: Checkpoint, pin: Pin, found: Found) -> str:
    """In what a checkpoint is not what was pinned; empty where it is. `found`: the digests of its tensors."""
    try:
        here = pin_of(checkpoint, found, pin.statement.algorithm).statement
    except LossyError as error:
        return str(error)
    kinds = list(differences(pin.statement, here))
    if not kinds and pin.statement.model is None and here.model is not None:
        kinds = [Kind.SIGNED_OTHER_MODEL]
    return "; ".join(_WHY[kind] for kind in kinds)


def pin_of(checkpoint: Checkpoint, found: Found, algorithm: str, signed_by: Collection[str] = ()) -> Pin:
    """The pin of a checkpoint as it is. `found`: the digests of its tensors.

    Raises: LossyError where a tensor could not be read, or for what no statement can say.
    """
    digests = named_digests(checkpoint, found, algorithm)
    if unread := [name for name in checkpoint.tensors if name not in digests]:
        raise LossyError(f"tensors could not be read ({first_names(unread)})", "", "see the check bytes")
    return Pin(statement_of(content_of(checkpoint, digests), algorithm), tuple(signed_by))


def write_pin(path: Location, checkpoint: Checkpoint, pin: Pin) -> None:
    """Put the pin of a checkpoint into the lock at `path`, which need not be there yet.

    It stands under the name by which the checkpoint was opened, and each of its names that has a pin. Other
    pins stay, also those that are written meanwhile.

    Raises: what reading and writing a lock raise.
    """
    with nullcontext() if isinstance(path, Address) else one_at_a_time(path):
        try:
            lock = read_lock(path)
        except MissingFileError:
            lock = LockFile(path)
        names = (*lock.names_of(checkpoint), lock.name_of(checkpoint.named or checkpoint.path))
        pins = {**lock.pins, **dict.fromkeys(names, pin)}
        with may_be_replaced():
            write_file(path, lock_bytes(replace(lock, pins=pins)), overwrite=True)

"""The check `signature`: somebody whom the user trusts has signed these tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path

from ptsave.core.address import Address
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Finding, Kind, Level, counted, first_names
from ptsave.core.names import matches
from ptsave.errors import LossyError, UnreadableError
from ptsave.sign.authority import CHECK, Signatory
from ptsave.sign.files import SignedFiles, digests_of_files
from ptsave.sign.programs import state_dict_of
from ptsave.sign.statement import (
    ALGORITHMS,
    SignedContent,
    Statement,
    content_of,
    differences,
    statement_of,
    tensors_root,
)
from ptsave.sign.trusted import SignedBy, signatories
from ptsave.storage.files import files_of
from ptsave.verbs.audit import named_digests
from ptsave.verbs.checks.subject import Subject
from ptsave.verbs.signing import departure

MAX_NAMED = 100
"""How many tensors that are not as they were signed are named one by one."""


def signature(subject: Subject) -> Iterator[Finding]:
    """Somebody trusted signed these names, shapes, values, ties and plain data, whatever the format was."""
    yield from _pinned(subject)
    asked, checkpoint = subject.asked.signed_by, subject.checkpoint
    if asked is None:
        if found := signatories(checkpoint):
            yield Finding(CHECK, "skipped", "", Kind.SIGNATURE_UNCHECKED, facts={"found": first_names(found)})
        return
    yield from subject.authentic.findings
    statements = subject.authentic.statements
    for who, files in subject.authentic.files:
        yield _files(subject.checkpoint, who, files)
    today = datetime.now(timezone.utc).date().isoformat()
    current = [(who, statement) for who, statement in statements if not statement.is_expired(today)]
    results = [list(_held_to(subject, asked, who, statement)) for who, statement in current]
    holding = sum(all(finding.level != "fail" for finding in found) for found in results)
    for who, statement in statements:
        if statement.is_expired(today):  # what the same signer says today takes its place
            level: Level = "skipped" if any(who.id == other.id for other, _ in current) else "fail"
            facts = {"key": who.name, "day": statement.expires or ""}
            yield Finding(CHECK, level, "", Kind.SIGNATURE_EXPIRED, facts=facts)
    for found_of_one in results:
        yield from found_of_one
    if 0 < holding < len(results):
        yield Finding(CHECK, "fail", "", Kind.CONTRADICTS, len(results), facts={"holding": holding})
    if holding:
        yield Finding(CHECK, "skipped", "", Kind.BESIDE_SIGNATURE)


def _files(checkpoint: Checkpoint, who: Signatory, signed: SignedFiles) -> Finding:
    """Whether the files are those that a trusted key signed, and what was read is among them."""
    path, why = checkpoint.path, ""
    if isinstance(path, Address):
        why = "it lies in a store, and a bundle is compared with files on this machine"
    else:
        root = signed.root(path)
        try:
            found = digests_of_files(root, signed)
            for held in checkpoint.held:
                held.check_in_place()
        except UnreadableError as error:
            why = str(error)
        else:
            names = sorted(found.keys() | signed.digests.keys())
            other = [name for name in names if found.get(name) != signed.digests.get(name)]
            read = [Path(os.path.relpath(str(one), root)).as_posix() for one in files_of(checkpoint)]
            bare = [name for name in read if name not in signed.digests]
            why = f"{first_names(other or bare)} is not as it was signed" if other or bare else ""
    facts = {"key": who.name, "why": why}
    if why:
        return Finding(CHECK, "fail", "", Kind.FILES_OTHER, facts=facts)
    return Finding(CHECK, "ok", "", Kind.FILES_SIGNED, len(signed.digests), facts=facts)


def _pinned(subject: Subject) -> Iterator[Finding]:
    """Whether it is what the lock says was approved."""
    lock = subject.asked.lock
    if lock is None:
        return
    of = {"lock": str(lock.path)}
    if lock.is_named and not subject.pins:
        yield Finding(CHECK, "fail", "", Kind.NOT_IN_LOCK, facts=of)
    for pin in subject.pins:
        if why := departure(subject.checkpoint, pin, subject.digests()):
            yield Finding(CHECK, "fail", "", Kind.NOT_PINNED, facts={**of, "why": why})
        else:
            facts = {**of, "digest": pin.digest}
            yield Finding(CHECK, "ok", "", Kind.PINNED, pin.statement.num_tensors, facts=facts)


def _held_to(subject: Subject, asked: SignedBy, who: Signatory, signed: Statement) -> Iterator[Finding]:
    """What is to be said of one statement by somebody who is trusted."""
    by: dict[str, str | int | float] = {"key": who.name}
    if signed.algorithm not in ALGORITHMS:
        yield Finding(CHECK, "fail", "", Kind.WEAK_DIGEST, facts={**by, "algorithm": signed.algorithm[:40]})
        return
    whole, algorithm = subject.checkpoint, signed.algorithm
    checkpoint, digests, left = whole, named_digests(whole, subject.digests(), algorithm), tuple[str, ...]()
    if whole.constants and signed.num_tensors != len(whole.tensors):
        checkpoint, in_file = state_dict_of(whole)
        left = tuple(sorted({*whole.tensors} - {*in_file.values()}))
        digests = {name: digests[own] for name, own in in_file.items() if own in digests}
    unread = [name for name in checkpoint.tensors if name not in digests]
    for name in unread:
        yield Finding(CHECK, "fail", name, Kind.SIGNED_UNREAD)
    if unread:
        return
    names = _signed_names(checkpoint, asked)
    try:
        content = content_of(checkpoint, digests, signed.only, names, within=asked.only)
        found = statement_of(content, algorithm)
    except LossyError as error:
        yield Finding(CHECK, "fail", "", Kind.CANNOT_BE_SIGNED, facts={"why": str(error)})
        return
    kinds = list(differences(signed, found))
    facts = {**by, "signed": signed.num_tensors, "found": found.num_tensors}
    for kind in kinds:
        yield Finding(CHECK, "fail", "", kind, facts=facts)
    if kinds:
        yield from islice(_named(checkpoint, content, signed, names, by), MAX_NAMED)
        return
    more = f" and {counted(signed.num_data, 'value', 'values')} beside them" if signed.num_data else ""
    if signed.model is not None and found.model is not None:
        more += ", and the class that the record names"
    more += f"; until {signed.expires}" if signed.expires is not None else ""
    yield Finding(CHECK, "ok", "", Kind.SIGNED, signed.num_tensors, facts={**by, "more": more})
    yield from _not_covered(checkpoint, content, signed, asked, names)
    if left:
        yield Finding(CHECK, "warn", "", Kind.CONSTANTS_NOT_COVERED, len(left), left[:3])


def _not_covered(
    checkpoint: Checkpoint,
    content: SignedContent,
    signed: Statement,
    asked: SignedBy,
    names: Mapping[str, str],
) -> Iterator[Finding]:
    """What a statement that holds says nothing of."""
    left = [name for name in checkpoint.tensors if names.get(name, name) not in content.digests]
    if left:
        only = {"only": ", ".join((*signed.only, *asked.only))}
        yield Finding(CHECK, "warn", "", Kind.SIGNED_IN_PART, len(left), tuple(left[:3]), only)
    if content.not_covered:
        bare = tuple(content.not_covered[:3])
        yield Finding(CHECK, "warn", "", Kind.NOT_COVERED, len(content.not_covered), bare)
    if signed.model is None and content.model is not None:
        yield Finding(CHECK, "warn", "record", Kind.MODEL_NOT_COVERED)


def _signed_names(checkpoint: Checkpoint, asked: SignedBy) -> dict[str, str]:
    """Name in the file → the name that was signed, where a map says that it is another."""
    names = {}
    for name in (*checkpoint.tensors, *checkpoint.data):
        signed = name
        for pattern, replacement in asked.rename:
            signed = pattern.sub(replacement, signed)
        if signed != name:
            names[name] = signed
    return names


def _named(
    checkpoint: Checkpoint,
    content: SignedContent,
    signed: Statement,
    names: Mapping[str, str],
    by: Mapping[str, str | int | float],
) -> Iterator[Finding]:
    """The tensors that are not as they were signed, where the record's digests are those that were signed."""
    recorded = checkpoint.record.digests if checkpoint.record is not None else None
    if recorded is None or recorded.algorithm != signed.algorithm:
        return
    original = _proved(recorded.tensors, signed, names)
    for name, digest in original.items():
        if name not in content.digests:
            yield Finding(CHECK, "fail", name, Kind.SIGNED_GONE, facts=by)
        elif content.digests[name] != digest:
            yield Finding(CHECK, "fail", name, Kind.SIGNED_CHANGED, facts=by)
    for name in content.digests if original else ():
        if name not in original:
            yield Finding(CHECK, "fail", name, Kind.SIGNED_ADDED, facts=by)


def _proved(recorded: Mapping[str, str], signed: Statement, names: Mapping[str, str]) -> Mapping[str, str]:
    """The recorded digests if it was these that were signed; else nothing."""
    digests = {names.get(name, name): digest for name, digest in recorded.items()}
    digests = {name: d for name, d in digests.items() if not signed.only or matches(name, signed.only)}
    try:
        is_signed = tensors_root(digests) == signed.root
    except LossyError:
        return {}
    return digests if is_signed else {}

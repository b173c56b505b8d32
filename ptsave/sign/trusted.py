"""Which statements about a checkpoint are by whom a user trusts; what they say is compared elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Finding, Kind, first_names
from ptsave.errors import CorruptError, LimitError
from ptsave.sign.bundle import SignedFiles, is_bundle, parse_bundle, parse_files
from ptsave.sign.envelope import MAX_ENVELOPES, MAX_SIGNATURES, Envelope, parse_envelope
from ptsave.sign.keys import PublicKey, Trust, short
from ptsave.sign.statement import ALGORITHMS, Statement, parse_statement

CHECK = "signature"


@dataclass(frozen=True)
class SignedBy:
    """What a user asks of the signatures of a checkpoint."""

    trusts: Sequence[Trust]
    """A key, or one of several, must have signed, for each of these."""
    beside: Sequence[Mapping[str, Any]] = ()
    """Envelopes from files of their own."""
    rename: Sequence[tuple[re.Pattern[str], str]] = ()
    """What makes of the names in the file those that were signed."""
    only: Sequence[str] = ()
    """Globs of the names that must be signed; all where empty."""


@dataclass
class Authentic:
    """The statements that trusted keys made, and what is wrong with the others."""

    statements: list[tuple[PublicKey, Statement]] = field(default_factory=list)
    files: list[tuple[PublicKey, SignedFiles]] = field(default_factory=list)
    """What trusted keys signed of files."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def algorithms(self) -> list[str]:
        """The digests that the statements need."""
        return [a for a in ALGORITHMS if any(statement.algorithm == a for _, statement in self.statements)]


def signatories(checkpoint: Checkpoint) -> list[str]:
    """The ids of the keys that the signatures in a record say they are by; none of them is checked."""
    found: list[str] = []
    for document in checkpoint.record.signatures if checkpoint.record is not None else ():
        try:
            found += [short(one.key_id) for one in parse_envelope(document, "").signatures]
        except (CorruptError, LimitError):
            found.append("a signature that cannot be read")
    return list(dict.fromkeys(found))


def authenticated(checkpoint: Checkpoint, asked: SignedBy) -> Authentic:
    """Find out what the trusted keys have signed.

    A signature is checked with the key that it names alone, so that many keys and signatures cost no more.
    """
    result = Authentic()
    say = result.findings.append
    envelopes: list[Envelope] = []
    documents = [*(checkpoint.record.signatures if checkpoint.record is not None else ()), *asked.beside]
    if len(documents) > MAX_ENVELOPES:
        limit = LimitError("signed_statements", MAX_ENVELOPES, len(documents))
        return Authentic(
            findings=[Finding(CHECK, "fail", "", Kind.MALFORMED_SIGNATURE, facts={"why": limit.what})]
        )
    for document in documents:
        try:
            parse = parse_bundle if is_bundle(document) else parse_envelope
            envelopes.append(parse(document, str(checkpoint.path)))
        except (CorruptError, LimitError) as error:
            say(Finding(CHECK, "fail", "", Kind.MALFORMED_SIGNATURE, facts={"why": error.what}))
    if (number := sum(len(envelope.signatures) for envelope in envelopes)) > MAX_SIGNATURES:
        why = {"why": LimitError("signatures", MAX_SIGNATURES, number).what}
        return Authentic(findings=[Finding(CHECK, "fail", "", Kind.MALFORMED_SIGNATURE, facts=why)])
    if not documents:
        say(Finding(CHECK, "fail", "", Kind.NOT_SIGNED))
    elif envelopes and not any(envelope.signatures for envelope in envelopes):
        say(Finding(CHECK, "fail", "", Kind.STRIPPED))
    genuine: set[tuple[int, int]] = set()
    """Envelope and signature, by their numbers."""
    met: set[tuple[str, bytes]] = set()
    for trust in asked.trusts:
        signers = []
        for number, envelope in enumerate(envelopes):
            for key in trust.keys:
                own = key.hint if envelope.is_of_files else key.key_id
                named = [i for i, one in enumerate(envelope.signatures) if one.key_id == own]
                message = envelope.message if named else b""
                valid = [i for i in named if key.signed(envelope.signatures[i].value, message)]
                genuine |= {(number, i) for i in valid}
                if not valid:
                    continue
                signers.append(key)
                if (key.key_id, envelope.payload) not in met:
                    met.add((key.key_id, envelope.payload))
                    _add(result, key, envelope, str(checkpoint.path))
        if not signers:
            _say_foreign(result, trust, envelopes)
    for number, envelope in enumerate(envelopes):
        for i, signature in enumerate(envelope.signatures):
            if (number, i) not in genuine and (result.statements or result.files):
                found = {"found": short(signature.key_id)}
                say(Finding(CHECK, "skipped", "", Kind.OTHER_SIGNATURE, facts=found))
    return result


def _add(result: Authentic, key: PublicKey, envelope: Envelope, where: str) -> None:
    """Count in what a trusted key has signed."""
    if key.is_out_of_date():
        days = {"begin": f"{key.not_before:%Y-%m-%d}", "end": f"{key.not_after:%Y-%m-%d}"}
        out = Finding(CHECK, "fail", "", Kind.KEY_OUT_OF_DATE, facts={"key": key.name, **days})
        result.findings.append(out)
    try:
        if envelope.is_of_files:
            result.files.append((key, parse_files(envelope.payload, where)))
        else:
            result.statements.append((key, parse_statement(envelope.payload, where)))
    except (CorruptError, LimitError) as error:
        facts = {"why": error.what}
        result.findings.append(Finding(CHECK, "fail", "", Kind.MALFORMED_SIGNATURE, facts=facts))


def _say_foreign(result: Authentic, trust: Trust, envelopes: Sequence[Envelope]) -> None:
    """Say of a key that has not signed whether a signature claims that it has."""
    claimed = [signature.key_id for envelope in envelopes for signature in envelope.signatures]
    for key in trust.keys:
        if key.key_id in claimed or key.hint in claimed:
            forged = Finding(CHECK, "fail", "", Kind.FORGED_SIGNATURE, facts={"key": key.name})
            result.findings.append(forged)
            return
    if claimed:
        names = first_names([key.name for key in trust.keys])
        facts = {"found": first_names([short(one) for one in claimed]), "trusted": names}
        result.findings.append(Finding(CHECK, "fail", "", Kind.FOREIGN, facts=facts))

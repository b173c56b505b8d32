"""Which statements about a checkpoint are signed by trusted keys; their content is compared elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Finding, Kind, first_names
from ptsave.core.strict_json import parse_object
from ptsave.errors import CorruptError, LimitError, Option, Text, UsageError
from ptsave.sign import files
from ptsave.sign.authority import CHECK, Authority, Signatory
from ptsave.sign.bundle import parse_signed
from ptsave.sign.certificates import CertifiedName, certificates_of, is_authority, read_certificates, title_of
from ptsave.sign.envelope import MAX_ENVELOPES, MAX_SIGNATURES, Envelope
from ptsave.sign.files import SignedFiles, parse_files
from ptsave.sign.identities import WORD, LoggedIdentity, logged_identity
from ptsave.sign.keys import CERTIFICATE, on_this_machine, public_key, read_pem, short
from ptsave.sign.statement import ALGORITHMS, Statement, parse_statement

MAX_TRUSTED_KEYS = 1000
"""Cap on the keys in one folder."""
SUFFIXES = (".pem", ".pub", ".crt", ".cer")
"""Which files of a folder are trusted keys."""


@dataclass(frozen=True)
class Trust:
    """One `--signed-by`: whom it names, of whom one must have signed."""

    source: str
    authorities: Sequence[Authority]


@dataclass(frozen=True)
class SignedBy:
    """What a user asks of the signatures of a checkpoint."""

    trusts: Sequence[Trust]
    """For each of these, somebody whom it names must have signed."""
    beside: Sequence[Mapping[str, Any]] = ()
    """Envelopes from files of their own."""
    rename: Sequence[tuple[re.Pattern[str], str]] = ()
    """Rules that turn the names in the file into those that were signed."""
    only: Sequence[str] = ()
    """Globs of the names that must be signed; all where empty."""


@dataclass
class Authentic:
    """The statements of those whom a user trusts, and what is wrong with the others."""

    statements: list[tuple[Signatory, Statement]] = field(default_factory=list)
    files: list[tuple[Signatory, SignedFiles]] = field(default_factory=list)
    """What they signed of files."""
    findings: list[Finding] = field(default_factory=list)

    @property
    def algorithms(self) -> list[str]:
        """The digests that the statements need."""
        return [a for a in ALGORITHMS if any(statement.algorithm == a for _, statement in self.statements)]


def trusts_of(keys: Sequence[Location], names: Sequence[str], issuer: str | None) -> list[Trust]:
    """Whom a user trusts by naming `keys`, of each of whom a signature is asked for.

    Raises: as `trusted`; UsageError for names, or an issuer, that none of them uses.
    """
    found = [trusted(key, names, issuer) for key in keys]
    kinds = {type(authority) for trust in found for authority in trust.authorities}
    if names and not kinds & {CertifiedName, LoggedIdentity}:
        what: Text = (Option("identity"), " would not be used: a key is one signer's")
        raise UsageError(what, "", "name an authority's certificate, or sigstore")
    if issuer is not None and LoggedIdentity not in kinds:
        raise UsageError((Option("issuer"), " would not be used: it is about sigstore"), "", "leave it out")
    return found


def trusted(where: Location, names: Sequence[str] = (), issuer: str | None = None) -> Trust:
    """Whom a user trusts by naming `where`: a public key or certificate in PEM, a folder of such files, a
    trusted root of sigstore in JSON, or WORD for that of its public instance.

    `names`: whom an authority that issues certificates, or `issuer` by the word of sigstore, must have named.

    Raises: MissingFileError; UnreadableError; UsageError for what is none of these, or for names that nothing
    uses or that are missing; RefusedError without a library.
    """
    path = on_this_machine(where, "signed_by")
    if not path.is_dir():
        return Trust(str(path), (_authority(path, names, issuer),))
    found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if not found:
        hint = f"its files must end in {', '.join(SUFFIXES)}"
        raise UsageError("the folder holds no keys", str(path), hint)
    if len(found) > MAX_TRUSTED_KEYS:
        raise UsageError(f"the folder holds more than {MAX_TRUSTED_KEYS} keys", str(path), "name fewer")
    return Trust(str(path), tuple(_authority(file, names, issuer) for file in found))


def _authority(path: Path, names: Sequence[str], issuer: str | None) -> Authority:
    is_logged = str(path) == WORD
    data = b"" if is_logged else read_pem(path)
    if is_logged or data.lstrip().startswith(b"{"):
        if not names or not issuer:
            what: Text = "sigstore vouches for everybody: say whom you mean, and by whose word"
            hint: Text = ("add ", Option("identity", "NAME"), " and ", Option("issuer", "URL"))
            raise UsageError(what, str(path), hint)
        return logged_identity(path, names, issuer)
    roots = [one for one in read_certificates(data, path) if is_authority(one)] if CERTIFICATE in data else []
    if not roots:
        return public_key(data, path)
    if not names:
        hint = ("add ", Option("identity", "NAME"))
        raise UsageError("an authority issues certificates for many: say whom you mean", str(path), hint)
    return CertifiedName(roots, names)


def signatories(checkpoint: Checkpoint) -> list[str]:
    """Who the signatures in a record say they are by; none of them is checked."""
    found: list[str] = []
    for document in checkpoint.record.signatures if checkpoint.record is not None else ():
        try:
            found += claimed(parse_signed(document, ""))
        except (CorruptError, LimitError):
            found.append("a signature that cannot be read")
    return list(dict.fromkeys(found))


def claimed(envelope: Envelope) -> list[str]:
    """Who each signature of an envelope says it is by, for a person."""
    if envelope.bundle:
        return ["an identity of sigstore"]
    if envelope.chain:
        try:
            return [title_of(certificates_of(envelope.chain, "")[0])]
        except (ImportError, CorruptError, LimitError):
            return ["a certificate that cannot be read here"]
    return [short(one.key_id) for one in envelope.signatures]


def authenticated(checkpoint: Checkpoint, asked: SignedBy) -> Authentic:
    """Find out what those whom the user trusts have signed."""
    result = Authentic()
    say, where = result.findings.append, str(checkpoint.path)
    envelopes: list[Envelope] = []
    documents = [*(checkpoint.record.signatures if checkpoint.record is not None else ()), *asked.beside]
    if len(documents) > MAX_ENVELOPES:
        return Authentic(
            findings=[_malformed(LimitError("signed_statements", MAX_ENVELOPES, len(documents)))]
        )
    for document in documents:
        try:
            envelopes.append(parse_signed(document, where))
        except (CorruptError, LimitError) as error:
            say(_malformed(error))
    if (number := sum(len(envelope.signatures) for envelope in envelopes)) > MAX_SIGNATURES:
        return Authentic(findings=[_malformed(LimitError("signatures", MAX_SIGNATURES, number))])
    if not documents:
        say(Finding(CHECK, "fail", "", Kind.NOT_SIGNED))
    elif envelopes and not any(envelope.signatures for envelope in envelopes):
        say(Finding(CHECK, "fail", "", Kind.STRIPPED))
    genuine: set[tuple[int, int]] = set()
    """Envelope and signature, by their numbers."""
    met: set[tuple[str, bytes]] = set()
    for trust in asked.trusts:
        reasons, has_signed = list[Finding](), False
        for number, envelope in enumerate(envelopes):
            for i, judged in (one for by in trust.authorities for one in by.judge(envelope, where)):
                if isinstance(judged, Finding):
                    reasons.append(judged)
                    continue
                has_signed = True
                genuine.add((number, i))
                if (judged.id, envelope.payload) not in met:
                    met.add((judged.id, envelope.payload))
                    _add(result, judged, envelope, where)
        if not has_signed:
            result.findings += dict.fromkeys(reasons) or _foreign(trust, envelopes)
    for number, envelope in enumerate(envelopes):
        for i, who in enumerate(claimed(envelope)):
            if (number, i) not in genuine and (result.statements or result.files):
                say(Finding(CHECK, "skipped", "", Kind.OTHER_SIGNATURE, facts={"found": who}))
    return result


def _add(result: Authentic, who: Signatory, envelope: Envelope, where: str) -> None:
    """Count in what somebody who is trusted has signed."""
    try:
        if (
            parse_object(envelope.payload, "the signed statement", where).get("predicateType")
            == files.PREDICATE
        ):
            result.files.append((who, parse_files(envelope.payload, where)))
        else:
            result.statements.append((who, parse_statement(envelope.payload, where)))
    except (CorruptError, LimitError) as error:
        result.findings.append(_malformed(error))


def _malformed(error: CorruptError | LimitError) -> Finding:
    return Finding(CHECK, "fail", "", Kind.MALFORMED_SIGNATURE, facts={"why": error.what})


def _foreign(trust: Trust, envelopes: Sequence[Envelope]) -> list[Finding]:
    """That those who signed are others than those who are trusted."""
    found = [who for envelope in envelopes for who in claimed(envelope)]
    names = first_names([one.name for one in trust.authorities])
    facts = {"found": first_names(found), "trusted": names}
    return [Finding(CHECK, "fail", "", Kind.FOREIGN, facts=facts)] if found else []

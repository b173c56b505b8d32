"""Signing what is written: a writer gives the digests, and gets the envelope for the record."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.names import expect_matches
from ptsave.errors import Option, RefusedError, UsageError
from ptsave.sign.bundle import unwrapped
from ptsave.sign.certificates import der, is_key_of, read_certificates, title_of, why_unfit
from ptsave.sign.envelope import file_bytes
from ptsave.sign.files import payload_of
from ptsave.sign.identities import WORD, signing_identity
from ptsave.sign.keys import PrivateKey, Prompt, on_this_machine, private_key, read_pem
from ptsave.sign.parties import Certified, Document, Keys, Party
from ptsave.sign.statement import ALGORITHMS, Statement, content_of, draft_of, with_digests

DEFAULT = "sha256"
"""The digest that is signed by default: every language has it."""


@dataclass
class Signer:
    """Who signs what is written, and what they say of it."""

    parties: Sequence[Party]
    only: Sequence[str] = ()
    """Globs of the names that are signed; all where empty."""
    expires: str | None = None
    """The last day on which the signature holds, as YYYY-MM-DD."""
    beside: Location | None = None
    """A file of its own that the signature is written into, too."""
    bundle: Location | None = None
    """A file for a bundle of the files that are written."""
    _draft: tuple[Checkpoint, Statement, list[str]] | None = field(default=None, init=False)
    """The checkpoint, the statement about it without digests, and the names that are signed."""
    documents: Sequence[Document] = field(default=(), init=False)
    """What was signed last."""

    def sign(
        self, checkpoint: Checkpoint, algorithm: str, digests: Mapping[str, str] | None
    ) -> tuple[Sequence[Document], int]:
        """The envelopes and bundles for `checkpoint`, and by how many characters they are shorter.

        `digests`: those of `algorithm` by name. None gives the longest possible envelope, unsigned.

        Raises: UsageError where a glob fits no name; LossyError for what cannot be signed; RefusedError where
        somebody who was to sign does not.
        """
        if self._draft is None or self._draft[0] is not checkpoint:
            expect_matches(self.only, checkpoint.tensors, Option("sign_only"))
            content = content_of(checkpoint, dict.fromkeys(checkpoint.tensors, ""), self.only)
            if not content.digests:
                raise UsageError("there is no tensor to sign", str(checkpoint.path), "leave --sign out")
            draft = draft_of(content, algorithm, self.only, self.expires)
            self._draft = checkpoint, draft, [*content.digests]
        _, statement, names = self._draft
        if digests is not None:
            statement = with_digests(statement, {name: digests[name] for name in names})
        payload = statement.payload()
        longest = [party.draft(payload) for party in self.parties]
        if digests is None:
            return longest, 0
        self.documents = [party.sign(payload) for party in self.parties]
        return self.documents, len(json.dumps(longest)) - len(json.dumps(self.documents))

    def file_bytes(self) -> bytes:
        """What was signed last, as the content of a file of its own."""
        (document,) = self.documents
        return file_bytes(unwrapped(document, ""))

    def bundle_bytes(self, written: Path) -> bytes:
        """The content of the bundle's file, in which the files at `written` are signed."""
        ignored = [os.path.relpath(str(self.bundle), written)]
        inside = [name for name in ignored if not name.startswith("..")]
        (party,) = self.parties
        return file_bytes(party.bundle(payload_of(written, inside)))

    @property
    def names(self) -> list[str]:
        """Who signs, for a person."""
        return [name for party in self.parties for name in party.names]


def signer_of(
    keys: Sequence[Location],
    only: Sequence[str] = (),
    expires: str | None = None,
    beside: Location | None = None,
    bundle: Location | None = None,
    prompt: Prompt | None = None,
    certificates: Sequence[Location] = (),
) -> Signer | None:
    """The signer with the private keys in files, and with `certificates` of them; None without keys.

    Raises: UsageError for a date, a key or a certificate; RefusedError and MissingFileError for a key.
    """
    if not keys:
        return None
    if expires is not None:
        try:
            is_date = date.fromisoformat(expires).isoformat() == expires
        except ValueError:
            is_date = False
        if not is_date:
            raise UsageError(f"{expires!r} is not a date", Option("expires"), "write YYYY-MM-DD")
    paths = [on_this_machine(key, "sign") for key in keys]
    logged = [path for path in paths if str(path) == WORD or _is_json(path)]
    found = [private_key(path, prompt) for path in paths if path not in logged]
    if len({key.public.key_id for key in found}) + len({*logged}) != len(paths):
        raise UsageError("one key is named twice", Option("sign"), "name each once")
    certified = [_certified(on_this_machine(one, "certificate"), found) for one in certificates]
    bare = [key for key in found if not any(key is one.key for one in certified)]
    if bundle is not None and not (len(paths) == 1 and all(key.public.is_elliptic for key in found)):
        what = "a bundle is signed by one key, ECDSA P-256 or ECDSA P-384, or one identity"
        raise UsageError(
            what, Option("bundle"), "openssl genpkey -algorithm ec -pkeyopt ec_paramgen_curve:P-256"
        )
    identities = [signing_identity(path) for path in logged]
    parties: list[Party] = [*([Keys(bare)] if bare else []), *certified, *identities]
    if beside is not None and len(parties) > 1:
        what = "certificates and identities have a statement each, and a file holds one"
        raise UsageError(what, Option("signature"), "sign for each, into a file of its own")
    return Signer(parties, only, expires, beside, bundle)


def _is_json(path: Path) -> bool:
    return path.is_file() and read_pem(path).lstrip().startswith(b"{")


def _certified(path: Path, keys: Sequence[PrivateKey]) -> Certified:
    """The key among `keys` whose certificate is the first at `path`.

    Raises: UsageError; RefusedError for a certificate that nobody would accept today.
    """
    chain = read_certificates(read_pem(path), path)
    own = [key for key in keys if is_key_of(chain[0], key.public)]
    if not own:
        what = f"its first certificate ({title_of(chain[0])}) is for none of the keys that sign"
        raise UsageError(what, str(path), "the signer's certificate comes first, then who issued it")
    if why := why_unfit(chain[0]):
        raise RefusedError(
            f"nobody would accept the certificate: {why}", str(path), "have another one issued"
        )
    return Certified(own[0], [der(one) for one in chain], title_of(chain[0]))


def signed_digest(digest: str | None, recorded: str | None) -> str:
    """The algorithm of the digests that are signed: the one that the user names, else that of the record.

    Raises: UsageError for one that does not prove anything.
    """
    if digest is None:
        return recorded if recorded in ALGORITHMS else DEFAULT
    if digest not in ALGORITHMS:
        what = f"digests of {digest} prove nothing against somebody who changes tensors"
        raise UsageError(what, Option("digest"), f"sign with {' or '.join(ALGORITHMS)}")
    return digest

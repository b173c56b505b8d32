"""Signing what is written: a writer says which digests passed, and gets the envelope for the record."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.names import expect_matches
from ptsave.errors import Option, UsageError
from ptsave.sign.bundle import bundle_of
from ptsave.sign.envelope import encoded, file_bytes, to_json
from ptsave.sign.keys import PrivateKey, Prompt, private_key, short
from ptsave.sign.statement import ALGORITHMS, Statement, content_of, draft_of, with_digests

DEFAULT = "sha256"
"""The digest that is signed where nobody names another: every language has it."""


@dataclass
class Signer:
    """The keys that sign what is written, and what they say of it."""

    keys: Sequence[PrivateKey]
    only: Sequence[str] = ()
    """Globs of the names that are signed; all where empty."""
    expires: str | None = None
    """The last day on which the signature holds, as YYYY-MM-DD."""
    beside: Location | None = None
    """A file of its own that the signature is written into, too."""
    bundle: Location | None = None
    """A file for a bundle of the files that are written."""
    _draft: tuple[Checkpoint, Statement, list[str]] | None = field(default=None, init=False)
    """Of what checkpoint, what is said of it without its digests, and the names that are signed."""
    envelope: Mapping[str, Any] | None = field(default=None, init=False)
    """What was signed last."""

    def sign(
        self, checkpoint: Checkpoint, algorithm: str, digests: Mapping[str, str] | None
    ) -> tuple[Mapping[str, Any], int]:
        """The envelope for `checkpoint`, and how many characters it is shorter than the longest.

        `digests`: those of `algorithm` by name. None gives a draft of the longest, with nothing signed.

        Raises: UsageError where a glob fits no name; LossyError for what cannot be signed.
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
        longest = to_json(payload, [(key.public.key_id, bytes(key.most_bytes)) for key in self.keys])
        if digests is None:
            return longest, 0
        message = encoded(payload)
        made = to_json(payload, [(key.public.key_id, key.sign(message)) for key in self.keys])
        self.envelope = made
        return made, _num_chars(longest) - _num_chars(made)

    def file_bytes(self) -> bytes:
        """What was signed last, as the content of a file of its own."""
        assert self.envelope is not None, "nothing was signed"
        return file_bytes(self.envelope)

    def bundle_bytes(self, written: Path) -> bytes:
        """The content of the bundle's file, in which the key signs the files at `written`."""
        ignored = [os.path.relpath(str(self.bundle), written)]
        inside = [name for name in ignored if not name.startswith("..")]
        return file_bytes(bundle_of(written, self.keys[0], inside))

    @property
    def names(self) -> list[str]:
        """The ids of the keys, for a person."""
        return [short(key.public.key_id) for key in self.keys]


def _num_chars(envelope: Mapping[str, Any]) -> int:
    return sum(len(one["sig"]) for one in envelope["signatures"])


def signer_of(
    keys: Sequence[Location],
    only: Sequence[str] = (),
    expires: str | None = None,
    beside: Location | None = None,
    bundle: Location | None = None,
    prompt: Prompt | None = None,
) -> Signer | None:
    """The signer with the private keys in files; None where there are none.

    Raises: UsageError for a date or a key; RefusedError and MissingFileError for a key.
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
    found = [private_key(key, prompt) for key in keys]
    if len({key.public.key_id for key in found}) != len(found):
        raise UsageError("one key is named twice", Option("sign"), "name each once")
    if bundle is not None and not (len(found) == 1 and found[0].public.is_elliptic):
        what = "a bundle is signed by one key, ECDSA P-256 or ECDSA P-384"
        raise UsageError(
            what, Option("bundle"), "openssl genpkey -algorithm ec -pkeyopt ec_paramgen_curve:P-256"
        )
    return Signer(found, only, expires, beside, bundle)


def signed_digest(digest: str | None, recorded: str | None) -> str:
    """The algorithm to sign digests of: that which the user names, else that of the source's record.

    Raises: UsageError for one that does not prove anything.
    """
    if digest is None:
        return recorded if recorded in ALGORITHMS else DEFAULT
    if digest not in ALGORITHMS:
        what = f"digests of {digest} prove nothing against somebody who changes tensors"
        raise UsageError(what, Option("digest"), f"sign with {' or '.join(ALGORITHMS)}")
    return digest

"""What a format is: how it is recognised, read and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.names import hint_for
from ptsave.core.values.digest import DEFAULT
from ptsave.errors import Option, UsageError
from ptsave.storage.files import InputFile, InputFolder

if TYPE_CHECKING:
    from ptsave.sign.signer import Signer

HEAD_BYTES = 4096
"""How much of a file's beginning `sniff` is given."""

DigestAlgorithm = Literal["xxh3_128", "blake3", "sha256"]
DIGEST_ALGORITHMS: dict[str, DigestAlgorithm] = {
    "xxh3_128": "xxh3_128",
    "blake3": "blake3",
    "sha256": "sha256",
}


@dataclass(frozen=True)
class WriteOptions:
    """How to write, for every format alike."""

    overwrite: bool = False
    record: bool = True
    """Whether the record, digests included, is written along."""
    digest: DigestAlgorithm = "xxh3_128"
    check: bool = True
    """Whether the destination is read back and compared before it takes its name."""
    sync: bool = True
    """Whether the destination is made durable before it takes its name. Off only for files that nobody will
    miss, and to tell what moving the bytes costs from what the disk costs."""
    shard_bytes: int = 5 * 1000**3
    """Most bytes of tensors in one file of a sharded format."""
    signer: Signer | None = None
    """Signs the digests, which are SHA-256 or BLAKE3 then, for the record."""
    before_commit: Callable[[], None] | None = None
    """Called last, before the destination takes its name; may still refuse."""
    progress: Callable[[int], None] | None = None
    """Called with the bytes done since the last call, from any thread. Each byte of a tensor counts once
    when it is written and, with `check`, once when it is read back."""


@dataclass(frozen=True)
class Written:
    """What a writer did."""

    num_bytes: int
    """Of the destination: all its files."""
    notes: tuple[str, ...] = ()
    """What a user wants to know: overlapping views that became separate tensors, …"""
    checked: str = ""
    """By what it was compared with what was written: reading it back, the store's CRC-32; empty where not."""


@dataclass(frozen=True)
class FileFormat:
    """A format that is one file."""

    name: str
    """As the JSON field `format` spells it."""
    sniff: Callable[[InputFile, bytes], bool]
    """Whether the file is of this format, from its first HEAD_BYTES bytes (and, if need be, more)."""
    read: Callable[[InputFile], Checkpoint]
    """Takes ownership of the file: closes it with the checkpoint, and on failure."""


@dataclass(frozen=True)
class FolderFormat:
    """A format that is a folder of files."""

    name: str
    sniff: Callable[[InputFolder], bool]
    read: Callable[[InputFolder], Checkpoint]


def digest_algorithm(text: str | None) -> DigestAlgorithm:
    """The algorithm that `--digest` names; the default where it names none.

    Raises: UsageError with the nearest one.
    """
    text = DEFAULT if text is None else text
    if text not in DIGEST_ALGORITHMS:
        raise UsageError(
            f"no digest algorithm {text!r}", Option("digest"), hint_for(text, DIGEST_ALGORITHMS, "algorithms")
        )
    return DIGEST_ALGORITHMS[text]

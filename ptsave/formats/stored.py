"""What a writer stores of a checkpoint: each tensor once, with what its bytes must turn out to be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from isal.isal_zlib import crc32

from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.names import MAX_ALIAS_CHARS
from ptsave.core.nodes import TensorEntry
from ptsave.core.record import KEY, LONGEST_BYTES, Digests, Record
from ptsave.core.storage import Storage
from ptsave.core.values.digest import HEX_DIGITS
from ptsave.errors import LimitError, LossyError, Option, Text
from ptsave.formats.base import WriteOptions
from ptsave.formats.safetensors import chunk_offsets
from ptsave.storage.move import Move, WrittenSpan, check_back
from ptsave.storage.opening import replacing_file
from ptsave.storage.output import OutputFile
from ptsave.storage.scan import damaged

PLAIN_KINDS = ("tensor", "parameter")


@dataclass(frozen=True)
class Distinct:
    """The tensors of a checkpoint, identical views of one storage counted once."""

    kept: Mapping[str, TensorEntry]
    """The first name of each."""
    aliases: Mapping[str, str]
    """Every further name → the kept one."""


def distinct(tensors: Mapping[str, TensorEntry]) -> Distinct:
    """Tell tied tensors, which are stored once, from views that only overlap.

    Raises: LimitError when their names together would be too long to say.
    """
    first: dict[Any, str] = {}
    aliases: dict[str, str] = {}
    chars = 0
    for name, entry in tensors.items():
        kept = first.setdefault(entry.view, name)
        if kept != name:
            aliases[name] = kept
            chars += len(kept)
    if chars > MAX_ALIAS_CHARS:
        raise LimitError("alias_chars", MAX_ALIAS_CHARS, chars)
    return Distinct({name: tensors[name] for name in first.values()}, aliases)


def overlaps(entries: Iterable[TensorEntry]) -> list[tuple[str, str]]:
    """Pairs of names that share some bytes of a storage, of entries that are different views."""
    by_storage: dict[int, list[tuple[int, int, str]]] = {}
    for entry in entries:
        start, end = entry.byte_range
        if start < end:
            by_storage.setdefault(id(entry.storage), []).append((start, end, entry.name))
    found = []
    for ranges in by_storage.values():
        ranges.sort()
        reach, widest = ranges[0][1], ranges[0][2]
        for start, end, name in ranges[1:]:
            if start < reach:
                found.append((widest, name))
            if end > reach:
                reach, widest = end, name
    return found


def refuse_special_kinds(checkpoint: Checkpoint, format_name: str, also: Sequence[str] = ()) -> None:
    """Raise LossyError when a tensor is more than its elements: of a subclass, conjugate, negative.

    `also`: the kinds that the format can say.
    """
    for name, entry in checkpoint.tensors.items():
        if entry.kind not in PLAIN_KINDS and entry.kind not in also:
            raise LossyError(
                f"{format_name} cannot hold tensor {name!r}: it is {entry.kind}",
                "",
                ("leave it out", Option("drop", lead=" with ")),
            )


def refuse_data(checkpoint: Checkpoint, format_name: str) -> None:
    """Raise LossyError when there is more than tensors."""
    left = [name for name, leaf in checkpoint.data.items() if not _is_empty_root(checkpoint, leaf)]
    if left:
        raise LossyError(
            f"{format_name} holds only tensors, and {left[0]!r} is none",
            source_path(checkpoint),
            (
                Option("extras", "drop", otherwise="leave it out, or save as .pt"),
                Option("extras", "keep", lead=" or "),
            ),
            extras=left,
        )


def _is_empty_root(checkpoint: Checkpoint, leaf: Any) -> bool:
    return leaf is checkpoint.root and isinstance(leaf, (dict, list, tuple)) and not leaf


def source_path(checkpoint: Checkpoint) -> str:
    """Where the bytes come from, for messages."""
    return str(checkpoint.path)


def expected_digests(
    checkpoint: Checkpoint, names: Iterable[str], options: WriteOptions
) -> Mapping[str, str | None]:
    """Algorithm → what the digest of the tensor called `names` must be, or None where it is only wanted.

    Raises: CorruptError when the source's record says two things of tied tensors.
    """
    recorded = checkpoint.record.digests if checkpoint.record is not None else None
    if recorded is None or recorded.algorithm not in HEX_DIGITS:
        return _WANTED[options.digest] if options.record else {}
    wanted: dict[str, str | None] = {options.digest: None} if options.record else {}
    for name in names:
        digest = recorded.tensors.get(name)
        if digest is not None and wanted.setdefault(recorded.algorithm, digest) != digest:
            if wanted[recorded.algorithm] is not None:
                raise damaged(source_path(checkpoint), name, f"recorded {recorded.algorithm} digest")
            wanted[recorded.algorithm] = digest
    return wanted


_WANTED: dict[str, dict[str, str | None]] = {algorithm: {algorithm: None} for algorithm in HEX_DIGITS}


def with_source_checks(moves: list[Move]) -> list[Move]:
    """`moves`, with the CRC-32 of every source storage checked on the way.

    A storage that no single move covers is read once more, whole, for its CRC-32 alone.
    """
    covered: set[int] = set()
    partly: dict[int, tuple[str, Storage, int]] = {}
    for item in moves:
        for storage, crc in item.source.checksums():
            if not storage.num_bytes:
                continue
            whole = item.source is storage and item.source_offset == 0
            if whole and item.num_bytes == storage.num_bytes and item.expected_crc32 is None:
                item.expected_crc32 = crc
                covered.add(id(storage))
            else:
                partly.setdefault(id(storage), (item.name, storage, crc))
    checks = [
        Move(name, storage, 0, storage.num_bytes, None, expected_crc32=crc)
        for key, (name, storage, crc) in partly.items()
        if key not in covered
    ]
    return [*moves, *checks]


def record_text(
    checkpoint: Checkpoint,
    digests: Mapping[str, str] | None,
    aliases: Mapping[str, str],
    options: WriteOptions,
    *,
    keeps_metadata: bool = False,
    belongs_to: str | None = None,
) -> bytes | None:
    """The JSON of the source's record, extended and signed; None when none is wanted.

    `digests`: those of all tensors by name. None gives a draft of the same length, to lay a header out with
    before the bytes have passed. `keeps_metadata`: the container has a place of its own for
    `checkpoint.metadata`. `belongs_to`: the digest of the main file, where the record is a file beside it.

    Raises: LossyError when it would be longer than one that is read back.
    """
    if not options.record:
        return None
    record = checkpoint.record or Record()
    known = digests if digests is not None else _no_digests(checkpoint, options)
    signatures, num_spaces = record.signatures, 0
    if options.signer is not None:
        documents, num_spaces = options.signer.sign(checkpoint, options.digest, digests)
        signatures = (*signatures, *documents)
    extended = replace(
        record,
        digests=Digests(options.digest, known),
        signatures=signatures,
        aliases=aliases,
        metadata={} if keeps_metadata else carried_metadata(checkpoint),
        module_versions=module_versions(checkpoint.root) or record.module_versions,
        belongs_to=belongs_to,
    )
    text = extended.to_json().encode() + b" " * num_spaces
    hint = (Option("no_record", True), " leaves it out")
    check_readable("the record", text, "record_bytes", LONGEST_BYTES, source_path(checkpoint), hint)
    return text


def check_readable(what: str, data: bytes, cap: str, most: int, where: str, hint: Text) -> None:
    """Insist that `data` will be read back: that it is no longer than the cap of its reader.

    Raises: LossyError.
    """
    if len(data) > most:
        told = f"{what} would have {len(data)} bytes, and is read back up to the cap {cap} = {most}"
        raise LossyError(told, where, hint)


def _no_digests(checkpoint: Checkpoint, options: WriteOptions) -> dict[str, str]:
    """Digests of the width of those that are not known yet."""
    return dict.fromkeys(checkpoint.tensors, "0" * HEX_DIGITS[options.digest])


def check_record(checkpoint: Checkpoint, aliases: Mapping[str, str], options: WriteOptions) -> None:
    """See that a record with digests of all tensors can be written, before anything is.

    Raises: LossyError.
    """
    record_text(checkpoint, None, aliases, options)


def carried_metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """The text beside the source's tensors, but what says of its chunks and what every writer makes anew."""
    return {
        key: text
        for key, text in checkpoint.texts.items()
        if key not in (KEY, chunk_offsets.KEY, "format") and key not in checkpoint.tensors
    }


def module_versions(root: Any) -> dict[str, Any] | None:
    """A state dict's `_metadata` where it is what torch writes: module name → {"version": 1, …}."""
    found = getattr(root, "_metadata", None)
    plain = (str, int, float, bool, type(None))
    if not isinstance(found, dict) or not all(
        isinstance(name, str)
        and isinstance(entry, dict)
        and all(isinstance(key, str) and isinstance(value, plain) for key, value in entry.items())
        for name, entry in found.items()
    ):
        return None
    return {name: dict(entry) for name, entry in found.items()}


def write_pieces(output: OutputFile, pieces: Iterable[tuple[int, bytes]], what: str) -> list[WrittenSpan]:
    """Write (offset, bytes) and return what must read back."""
    spans = []
    for offset, piece in pieces:
        output.write_at(offset, piece)
        spans.append(WrittenSpan(what, offset, len(piece), crc32(piece)))
    return spans


def last_check(checkpoint: Checkpoint, options: WriteOptions) -> None:
    """What is asked right before a destination takes its name.

    Raises: UnreadableError when what is read has changed meanwhile; what `before_commit` raises.
    """
    checkpoint.check_unchanged()
    if options.before_commit is not None:
        options.before_commit()


@contextmanager
def replacing_checked(
    checkpoint: Checkpoint, destination: Location, num_bytes: int, options: WriteOptions
) -> Iterator[tuple[OutputFile, list[WrittenSpan]]]:
    """A file that replaces `destination` once all spans put into the list read back as they were written.

    Raises: ExistsError; WriteError; UnreadableError when what is read has changed meanwhile.
    """
    with replacing_file(
        destination,
        num_bytes,
        overwrite=options.overwrite,
        sync=options.sync,
        before_rename=partial(last_check, checkpoint, options),
    ) as output:
        spans: list[WrittenSpan] = []
        yield output, spans
        if options.check:
            check_back(spans, output, options.progress)

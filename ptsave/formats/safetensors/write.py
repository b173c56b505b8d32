"""Writing safetensors: a JSON header with a fixed layout, then every tensor once, contiguous.

Source: the safetensors format description and `safetensors/src/tensor.rs` (0.8.0): the header's length as
8 bytes little-endian, the header in UTF-8, which may end in spaces; tensors without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.nodes import TensorEntry
from ptsave.core.record import KEY
from ptsave.core.values.digest import prefix
from ptsave.core.values.gather import contiguous
from ptsave.errors import LossyError, Option
from ptsave.formats.base import WriteOptions, Written
from ptsave.formats.stored import (
    Distinct,
    carried_metadata,
    distinct,
    expected_digests,
    overlaps,
    record_text,
    refuse_data,
    refuse_special_kinds,
    replacing_checked,
    source_path,
    with_source_checks,
    write_pieces,
)
from ptsave.storage.move import Move, move
from ptsave.storage.opening import check_file_destination

MAX_HEADER_BYTES = 100_000_000
"""Source: MAX_HEADER_SIZE in safetensors/src/tensor.rs; the library refuses to read more."""
PAGE_BYTES = 4096
"""Where large tensors begin, so that file systems with reflinks can share their blocks."""
LARGE_BYTES = 64 * 1024


def write(checkpoint: Checkpoint, destination: Location, options: WriteOptions) -> Written:
    """Write the tensors of `checkpoint` as one safetensors file.

    Tied tensors are stored once, under their first name; the record says which names are aliases, and so
    does `__metadata__[alias] = kept`, which is how `safetensors.torch.save_model` says it.

    Raises: LossyError when the format cannot hold something; ExistsError; WriteError; CorruptError.
    """
    check_file_destination(destination, overwrite=options.overwrite)
    refuse_unwritable(checkpoint)
    stored = distinct(checkpoint.tensors)
    layout = lay_out(stored.kept)
    start_bytes = len(header_bytes(layout, _metadata(checkpoint, stored, None, options)))
    moves = tensor_moves(checkpoint, stored, layout, start_bytes, options)
    num_bytes = start_bytes + layout.data_bytes
    with replacing_checked(checkpoint, destination, num_bytes, options) as (output, spans):
        spans += move(
            with_source_checks(list(moves.values())), output, source_path(checkpoint), options.progress
        )
        digests = all_digests(checkpoint, stored, moves, options)
        header = header_bytes(layout, _metadata(checkpoint, stored, digests, options))
        assert len(header) == start_bytes
        spans += write_pieces(output, [(0, header)], "the header")
    return Written(num_bytes, overlap_notes(stored), output.checked)


@dataclass(frozen=True)
class Layout:
    """Where each tensor lies in a safetensors file's data."""

    offsets: Mapping[str, int]
    """Name → first byte, from the end of the header."""
    entries: Mapping[str, TensorEntry]
    """In the order in which the header lists them."""
    data_bytes: int
    is_paged: bool
    """Whether the data begin at a multiple of PAGE_BYTES."""


def lay_out(entries: Mapping[str, TensorEntry]) -> Layout:
    """The order of the data: whole pages first, so that they stay aligned, then by falling element size.

    The format allows no gaps, so an order is all that keeps every tensor aligned to its elements.
    """
    by_order = sorted(
        entries.items(), key=lambda item: (item[1].num_bytes % PAGE_BYTES != 0, -item[1].dtype.itemsize)
    )
    offsets = {}
    position = 0
    for name, entry in by_order:
        offsets[name] = position
        position += entry.num_bytes
    is_paged = any(entry.num_bytes >= LARGE_BYTES for entry in entries.values())
    return Layout(offsets, entries, position, is_paged)


def header_bytes(layout: Layout, metadata: Mapping[str, str]) -> bytes:
    """The file up to its data: the header's length, the header, and the spaces that align what follows.

    Raises: LossyError when a name is no Unicode text, or the header exceeds what the library reads.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, entry in layout.entries.items():
        start = layout.offsets[name]
        header[name] = {
            "dtype": entry.dtype.safetensors,
            "shape": _shape(entry),
            "data_offsets": [start, start + entry.num_bytes],
        }
    try:
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        around = error.object[max(error.start - 40, 0) : error.end + 40]
        raise LossyError(
            "safetensors cannot hold a name that is no Unicode text",
            f"…{around}…",
            ("give it another", Option("rename", lead=" with "), ", or write pt"),
        ) from None
    unit = PAGE_BYTES if layout.is_paged else 64
    text += b" " * (-(8 + len(text)) % unit)
    if len(text) > MAX_HEADER_BYTES:
        raise LossyError(
            f"the header would have {len(text)} bytes, safetensors reads {MAX_HEADER_BYTES}",
            "",
            (Option("no_record", True, tail=" leaves the record out; or "), "write safetensors-sharded"),
        )
    return len(text).to_bytes(8, "little") + text


def most_described_bytes(name: str, entry: TensorEntry) -> int:
    """How many bytes of a header describe one tensor at most, wherever it lies."""
    spelled = json.dumps(name, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return len(spelled) + len(f"{list(entry.shape)}") + _MOST_DESCRIBED


_MOST_DESCRIBED = len('"dtype:"F8_E4M3FNUZ","shape":,"data_offsets":[,]},:{}') + 2 * len(str(2**63))


def _shape(entry: TensorEntry) -> list[int]:
    """The shape as the header has it: safetensors counts the two 4-bit elements of a byte one by one."""
    if entry.dtype.safetensors == "F4":
        return [*entry.shape[:-1], entry.shape[-1] * 2]
    return list(entry.shape)


def refuse_unwritable(checkpoint: Checkpoint, format_name: str = "safetensors") -> None:
    """Raise LossyError when the format cannot hold something of `checkpoint`."""
    refuse_data(checkpoint, format_name)
    refuse_special_kinds(checkpoint, format_name)
    for name, entry in checkpoint.tensors.items():
        if entry.dtype.safetensors is None or (entry.dtype.safetensors == "F4" and not entry.shape):
            raise LossyError(
                f"{format_name} cannot hold tensor {name!r}: it has no dtype {entry.dtype.name}",
                source_path(checkpoint),
                ("leave it out", Option("drop", lead=" with "), ", or write pt"),
            )
        if name == "__metadata__":
            raise LossyError(
                "safetensors cannot hold a tensor named '__metadata__'",
                source_path(checkpoint),
                Option("rename", tail=" it", otherwise="rename it"),
            )


def _metadata(
    checkpoint: Checkpoint, stored: Distinct, digests: Mapping[str, str] | None, options: WriteOptions
) -> dict[str, str]:
    metadata = {"format": "pt", **carried_metadata(checkpoint)}
    for alias, kept in stored.aliases.items():
        if alias in (KEY, "format") and not options.record:
            raise LossyError(
                f"safetensors cannot hold a tied tensor named {alias!r} without a record",
                source_path(checkpoint),
                ("leave ", Option("no_record", True), " out, or rename it", Option("rename", lead=" with ")),
            )
        metadata.setdefault(alias, kept)
    text = record_text(checkpoint, digests, stored.aliases, options, keeps_metadata=True)
    if text is not None:
        metadata[KEY] = text.decode()
    return metadata


def tensor_moves(
    checkpoint: Checkpoint, stored: Distinct, layout: Layout, start_bytes: int, options: WriteOptions
) -> dict[str, Move]:
    """One move for each tensor of `layout`, by kept name; the data begin at `start_bytes`."""
    names: dict[str, list[str]] = {name: [name] for name in layout.entries}
    for alias, kept in stored.aliases.items():
        if kept in names:
            names[kept].append(alias)
    moves = {}
    for name, entry in layout.entries.items():
        source, offset = contiguous(entry)
        moves[name] = Move(
            name,
            source,
            offset,
            entry.num_bytes,
            start_bytes + layout.offsets[name],
            prefix=prefix(entry.dtype, entry.shape),
            expected_digests=expected_digests(checkpoint, names[name], options),
        )
    return moves


def all_digests(
    checkpoint: Checkpoint, stored: Distinct, moves: Mapping[str, Move], options: WriteOptions
) -> dict[str, str]:
    """The digest of every tensor by name, aliases included, in the checkpoint's order, if wanted."""
    if not options.record:
        return {}
    return {name: moves[stored.aliases.get(name, name)].digest(options.digest) for name in checkpoint.tensors}


def overlap_notes(stored: Distinct) -> tuple[str, ...]:
    """A line for each pair of views that shared bytes and no longer do."""
    return tuple(
        f"{name!r} overlaps {other!r} in memory; they are stored separately and no longer share bytes"
        for other, name in overlaps(stored.kept.values())
    )

"""Writing torch's zip format without torch: `torch.load(weights_only=True, mmap=True)` opens it.

Source: `torch.serialization._save`, `torch._utils._rebuild_tensor_v2/_v3/_rebuild_parameter`, and PyTorch's
`caffe2/serialize/inline_container.cc`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from isal.isal_zlib import crc32

from ptsave.core.atomic import check_file_destination, replacing_file
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.digest import hasher, prefix
from ptsave.core.gather import contiguous
from ptsave.core.move import Move, check_back, move
from ptsave.core.nodes import TensorEntry
from ptsave.core.record import FILE_NAME
from ptsave.formats.base import WriteOptions, Written
from ptsave.formats.pickle_emit import Emitter
from ptsave.formats.storage_plan import Part, Place, View, plan_storages
from ptsave.formats.stored import (
    check_bytes_back,
    distinct,
    expected_digests,
    placeholder_digests,
    record_text,
    refuse_special_kinds,
    source_path,
    with_source_checks,
)
from ptsave.formats.zip_layout import ALIGN_BYTES, Entry, Frame

TOP = "archive"
"""The folder that every record lies in: fixed, so that the same input gives the same bytes."""
_DATA = f"{TOP}/data.pkl"
_RECORD = f"{TOP}/{FILE_NAME}"
_IDENTITY = f"{TOP}/.data/serialization_id"
_IDENTITY_BYTES = 40


def write(checkpoint: Checkpoint, destination: Path, options: WriteOptions) -> Written:
    """Write the whole tree of `checkpoint`, tensors and plain data, as one torch zip file.

    Tied tensors and views that touch stay on one storage; unused parts of storages are left behind. A root
    that is a flat dict of tensors becomes an OrderedDict, as state dicts are.

    Raises: LossyError when `weights_only` would not load something; ExistsError; WriteError; CorruptError.
    """
    check_file_destination(destination, overwrite=options.overwrite)
    refuse_special_kinds(checkpoint.tensors, "pt")
    names: dict[View, list[str]] = {}
    for name, entry in checkpoint.tensors.items():
        names.setdefault(entry.view, []).append(name)
    parts, places = plan_storages({view: checkpoint.tensors[same[0]] for view, same in names.items()})
    aliases = distinct(checkpoint.tensors).aliases
    draft = record_text(checkpoint, placeholder_digests(checkpoint.tensors, options), aliases, options)
    archive = _lay_out(_pickle(checkpoint, places), draft, parts)
    moves, by_view = _moves(checkpoint, parts, places, names, archive, options)
    num_bytes = archive.frame.num_bytes
    with replacing_file(destination, num_bytes, overwrite=options.overwrite, sync=options.sync) as output:
        spans = move(with_source_checks(moves), output, source_path(checkpoint), options.progress)
        if draft is not None:
            digests = {
                name: by_view[view].digest(options.digest) for view, same in names.items() for name in same
            }
            in_order = {name: digests[name] for name in checkpoint.tensors}
            archive.texts[_RECORD] = (record_text(checkpoint, in_order, aliases, options) or "").encode()
        pieces = archive.finished()
        for offset, piece in pieces:
            output.write_at(offset, piece)
        if options.check:
            check_back(spans, output, options.progress)
            for offset, piece in pieces:
                check_bytes_back(output, offset, piece, "the archive's frame")
    return Written(num_bytes)


@dataclass
class _Archive:
    """The places of all records, and the bytes of those that are not tensors'."""

    frame: Frame = field(default_factory=Frame)
    entries: dict[str, Entry] = field(default_factory=dict)
    """The records in `texts`, by name."""
    texts: dict[str, bytes] = field(default_factory=dict)
    """Record name → its bytes, where they do not come from a storage."""
    data: dict[str, Entry] = field(default_factory=dict)
    """Storage key → its record."""

    def add(self, name: str, text: bytes) -> None:
        self.entries[name] = self.frame.add(name, len(text))
        self.texts[name] = text

    def finished(self) -> list[tuple[int, bytes]]:
        """(offset, bytes) of everything but the storages, once the storages' CRCs are known."""
        pieces = []
        for name, entry in self.entries.items():
            text = self.texts[name]
            if name == _IDENTITY:
                # torch logs it and compares it with nothing; it names the content, as torch's own does.
                content = b"".join(other.directory_entry() for other in self.frame.entries[:-1])
                number = int(hasher("xxh3_128", content).hexdigest(), 16)
                text = str(number).zfill(_IDENTITY_BYTES).encode()
            pieces.append((entry.header_offset, entry.local_header(crc32(text)) + text))
        pieces.append((self.frame.end, self.frame.directory()))
        return pieces


def _lay_out(pickle: bytes, record: str | None, parts: list[Part]) -> _Archive:
    archive = _Archive()
    archive.add(_DATA, pickle)
    # "0": the offsets of storages cannot be computed from their sizes, since large ones are page-aligned.
    # torch then looks each one up, which is what it does by default anyway.
    archive.add(f"{TOP}/.format_version", b"0")
    archive.add(f"{TOP}/.storage_alignment", str(ALIGN_BYTES).encode())
    archive.add(f"{TOP}/byteorder", b"little")
    if record is not None:
        archive.add(_RECORD, record.encode())
    for part in parts:
        archive.data[part.key] = archive.frame.add(f"{TOP}/data/{part.key}", part.num_bytes)
    archive.add(f"{TOP}/version", b"3\n")
    archive.add(_IDENTITY, b"0" * _IDENTITY_BYTES)
    return archive


def _moves(
    checkpoint: Checkpoint,
    parts: list[Part],
    places: Mapping[View, Place],
    names: Mapping[View, list[str]],
    archive: _Archive,
    options: WriteOptions,
) -> tuple[list[Move], dict[View, Move]]:
    """One move for each part, and one that only digests for each view that is not just its part.

    Also by view: the move that digests it.
    """
    moves: list[Move] = []
    by_view: dict[View, Move] = {}
    for part in parts:
        entry = archive.data[part.key]
        whole = Move("", part.source, part.source_offset, part.num_bytes, entry.data_offset)
        whole.header, whole.header_bytes = entry.local_header, entry.header_bytes
        moves.append(whole)
        for key, view in part.views.items():
            whole.name = whole.name or names[key][0]
            wanted = expected_digests(checkpoint, names[key], options)
            if not wanted:
                continue
            item = whole
            if whole.expected_digests or not _fills(view, places[key]):
                source, offset = contiguous(view)
                item = Move(names[key][0], source, offset, view.num_bytes, None)
                moves.append(item)
            item.prefix = prefix(view.dtype, view.shape)
            item.expected_digests = wanted
            by_view[key] = item
    return moves, by_view


def _fills(view: TensorEntry, place: Place) -> bool:
    """Whether the part is exactly this view's elements in row-major order."""
    is_gathered = place.strides != view.strides
    return view.num_bytes == place.part.num_bytes and (is_gathered or view.is_contiguous)


def _pickle(checkpoint: Checkpoint, places: Mapping[View, Place]) -> bytes:
    root = checkpoint.root
    if type(root) is dict and root and all(isinstance(value, TensorEntry) for value in root.values()):
        ordered: Any = OrderedDict(root)
        if checkpoint.record is not None and checkpoint.record.module_versions is not None:
            ordered._metadata = OrderedDict(checkpoint.record.module_versions)
        root = ordered
    return Emitter(partial(_emit_tensor, places)).pickle(root)


def _emit_tensor(places: Mapping[View, Place], emitter: Emitter, entry: TensorEntry) -> None:
    """A tensor as torch pickles it; a Parameter stays a Parameter."""
    place = places[entry.view]
    if entry.kind == "parameter":
        emitter.constant("torch._utils", "_rebuild_parameter")
        emitter.mark()
        _emit_data(emitter, entry, place, requires_grad=False)
        emitter.boolean(entry.requires_grad)
        emitter.empty_ordered_dict()
        emitter.tuple()
        emitter.reduce()
    else:
        _emit_data(emitter, entry, place, requires_grad=entry.requires_grad)


def _emit_data(emitter: Emitter, entry: TensorEntry, place: Place, *, requires_grad: bool) -> None:
    part = place.part
    typed = part.storage_class
    emitter.constant("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
    emitter.mark()
    emitter.mark()
    emitter.word("storage")
    if typed:
        emitter.constant("torch", typed)
    else:
        emitter.constant("torch.storage", "UntypedStorage")
    emitter.text(part.key)
    emitter.word("cpu")
    emitter.integer(part.num_bytes // entry.dtype.itemsize if typed else part.num_bytes)
    emitter.tuple()
    emitter.persistent()
    emitter.integer(place.offset)
    emitter.integers(entry.shape)
    emitter.integers(place.strides)
    emitter.boolean(requires_grad)
    emitter.empty_ordered_dict()
    if not typed:
        emitter.constant("torch", entry.dtype.name)
    emitter.tuple()
    emitter.reduce()

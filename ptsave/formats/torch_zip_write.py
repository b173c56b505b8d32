"""Writing torch's zip format without torch: `torch.load(weights_only=True, mmap=True)` opens it.

Source: `torch.serialization._save`, `torch._utils._rebuild_tensor_v2/_v3/_rebuild_parameter`, and PyTorch's
`caffe2/serialize/inline_container.cc`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
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
_V2_REBUILD = ("torch._utils", "_rebuild_tensor_v2")
_V3_REBUILD = ("torch._utils", "_rebuild_tensor_v3")


def write(checkpoint: Checkpoint, destination: Path, options: WriteOptions) -> Written:
    """Write the whole tree of `checkpoint`, tensors and plain data, as one torch zip file.

    Tied tensors and views that touch stay on one storage; unused parts of storages are left behind. A root
    that is a flat dict of tensors becomes an OrderedDict, as state dicts are.

    Raises: LossyError when `weights_only` would not load something; ExistsError; WriteError; CorruptError.
    """
    check_file_destination(destination, overwrite=options.overwrite)
    refuse_special_kinds(checkpoint.tensors, "pt")
    parts, places = plan_storages(_entries(checkpoint))
    aliases = distinct(checkpoint.tensors).aliases
    draft = record_text(checkpoint, placeholder_digests(checkpoint.tensors, options), aliases, options)
    archive = _lay_out(_pickle(checkpoint, places), draft, parts)
    num_bytes = archive.frame.end + len(archive.frame.directory())
    moves, by_view = _moves(checkpoint, parts, places, archive.data, options)
    with replacing_file(destination, num_bytes, overwrite=options.overwrite) as output:
        move(with_source_checks(moves), output, source_path(checkpoint), options.progress)
        if archive.record is not None:
            digests = {
                name: by_view[entry.view].digests[options.digest]
                for name, entry in checkpoint.tensors.items()
            }
            text = record_text(checkpoint, digests, aliases, options)
            assert text is not None
            archive.texts[archive.record.name] = text.encode()
        pieces = archive.finished(moves)
        for offset, piece in pieces:
            output.write_at(offset, piece)
        if options.check:
            check_back(moves, output, options.progress)
            for offset, piece in pieces:
                check_bytes_back(output, offset, piece, "the archive's frame")
    return Written(num_bytes)


@dataclass
class _Archive:
    """The places of all records, and the bytes of those that are not tensors'."""

    frame: Frame
    texts: dict[str, bytes]
    """Record name → its bytes, where they do not come from a storage."""
    data: dict[str, Entry]
    """Storage key → its record."""
    record: Entry | None

    def finished(self, moves: list[Move]) -> list[tuple[int, bytes]]:
        """(offset, bytes) of everything but the storages, once the CRCs are known."""
        crcs = {item.target_offset: item.crc32 for item in moves if item.target_offset is not None}
        pieces = []
        for entry in self.frame.entries:
            text = self.texts.get(entry.name, b"")
            entry.crc32 = crc32(text) if entry.name in self.texts else crcs[entry.data_offset]
            pieces.append((entry.header_offset, entry.local_header() + text))
        # torch logs it and compares it with nothing; it names the content, as torch's own does.
        identity = self.frame.entries[-1]
        content = b"".join(entry.directory_entry() for entry in self.frame.entries[:-1])
        text = _identity(content)
        identity.crc32 = crc32(text)
        pieces[-1] = (identity.header_offset, identity.local_header() + text)
        pieces.append((self.frame.end, self.frame.directory()))
        return pieces


_IDENTITY_BYTES = 40


def _identity(content: bytes) -> bytes:
    """40 decimal digits that depend on `content` alone."""
    return str(int(hasher("xxh3_128", content).hexdigest(), 16)).zfill(_IDENTITY_BYTES).encode()


def _lay_out(pickle: bytes, record: str | None, parts: list[Part]) -> _Archive:
    frame = Frame()
    texts = {
        f"{TOP}/data.pkl": pickle,
        # "0": the offsets of storages cannot be computed from their sizes, since large ones are page-aligned.
        # torch then looks each one up, which is what it does by default anyway.
        f"{TOP}/.format_version": b"0",
        f"{TOP}/.storage_alignment": str(ALIGN_BYTES).encode(),
        f"{TOP}/byteorder": b"little",
    }
    for name, text in texts.items():
        frame.add(name, len(text))
    record_entry = None
    if record is not None:
        record_entry = frame.add(f"{TOP}/{FILE_NAME}", len(record))
        texts[record_entry.name] = record.encode()
    data = {part.key: frame.add(f"{TOP}/data/{part.key}", part.num_bytes) for part in parts}
    texts[f"{TOP}/version"] = b"3\n"
    frame.add(f"{TOP}/version", 2)
    texts[f"{TOP}/.data/serialization_id"] = b"0" * _IDENTITY_BYTES
    frame.add(f"{TOP}/.data/serialization_id", _IDENTITY_BYTES)
    return _Archive(frame, texts, data, record_entry)


def _entries(checkpoint: Checkpoint) -> list[TensorEntry]:
    """Every tensor of the tree, as often as it is met, with its name."""
    return list(checkpoint.tensors.values())


def _moves(
    checkpoint: Checkpoint,
    parts: list[Part],
    places: Mapping[View, Place],
    data: Mapping[str, Entry],
    options: WriteOptions,
) -> tuple[list[Move], dict[View, Move]]:
    """One move for each part, and one that only digests for each view that is not just its part."""
    names: dict[View, list[str]] = {}
    for name, entry in checkpoint.tensors.items():
        names.setdefault(entry.view, []).append(name)
    moves: list[Move] = []
    by_view: dict[View, Move] = {}
    for part in parts:
        whole = Move(
            names[part.views[0].view][0],
            part.source,
            part.source_offset,
            part.num_bytes,
            data[part.key].data_offset,
        )
        moves.append(whole)
        for view in part.views:
            wanted = expected_digests(checkpoint, names[view.view], options)
            if not wanted:
                continue
            if not whole.expected_digests and _fills(view, places[view.view]):
                item = whole
                item.prefix = prefix(view.dtype, view.shape)
                item.expected_digests = wanted
            else:
                source, offset = contiguous(view)
                item = Move(names[view.view][0], source, offset, view.num_bytes, None)
                item.prefix = prefix(view.dtype, view.shape)
                item.expected_digests = wanted
                moves.append(item)
            by_view[view.view] = item
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
            versions = checkpoint.record.module_versions
            ordered._metadata = OrderedDict(versions)
        root = ordered
    return Emitter(partial(_emit_tensor, places)).pickle(root)


def _emit_tensor(places: Mapping[View, Place], emitter: Emitter, entry: TensorEntry) -> None:
    """A tensor as torch pickles it; a Parameter stays a Parameter."""
    if entry.kind == "parameter":
        emitter.call(
            "torch._utils",
            "_rebuild_parameter",
            lambda: _emit_data(places, emitter, entry, False),
            lambda: emitter.boolean(entry.requires_grad),
            emitter.empty_ordered_dict,
        )
    else:
        _emit_data(places, emitter, entry, entry.requires_grad)


def _emit_data(
    places: Mapping[View, Place], emitter: Emitter, entry: TensorEntry, requires_grad: bool
) -> None:
    place = places[entry.view]
    part = place.part
    untyped = part.is_untyped
    item_bytes = 1 if untyped else entry.dtype.itemsize
    storage_class = (
        ("torch.storage", "UntypedStorage") if untyped else ("torch", entry.dtype.storage_class or "")
    )

    def storage() -> None:
        emitter.tuple_of(
            lambda: emitter.word("storage"),
            lambda: emitter.constant(*storage_class),
            lambda: emitter.text(part.key),
            lambda: emitter.word("cpu"),
            lambda: emitter.integer(part.num_bytes // item_bytes),
        )
        emitter.persistent()

    arguments = [
        storage,
        lambda: emitter.integer(place.offset),
        lambda: emitter.integers(entry.shape),
        lambda: emitter.integers(place.strides),
        lambda: emitter.boolean(requires_grad),
        emitter.empty_ordered_dict,
    ]
    if untyped:
        arguments.append(lambda: emitter.constant("torch", entry.dtype.name))
    emitter.call(*(_V3_REBUILD if untyped else _V2_REBUILD), *arguments)

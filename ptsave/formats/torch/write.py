"""Writing torch's zip format without torch: `torch.load(weights_only=True, mmap=True)` opens it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.nodes import UNRESOLVED, TensorEntry
from ptsave.core.tree import as_state_dict
from ptsave.core.values.digest import prefix
from ptsave.core.values.gather import contiguous
from ptsave.core.values.resolved import resolved
from ptsave.formats.base import WriteOptions, Written
from ptsave.formats.kinds.objects import is_tensor_object
from ptsave.formats.kinds.quantized import integers_of
from ptsave.formats.pickle.emit import Emitter, can_emit
from ptsave.formats.stored import (
    distinct,
    expected_digests,
    record_text,
    refuse_special_kinds,
    replacing_checked,
    source_path,
    with_source_checks,
    write_pieces,
)
from ptsave.formats.torch.archive import TorchArchive, emit_quantized, emit_tensor
from ptsave.formats.torch.storage_plan import PlannedStorage, PlannedView, View, names_by_view, plan_storages
from ptsave.formats.zip.layout import Entry
from ptsave.storage.move import Move, move
from ptsave.storage.opening import check_file_destination


def write(checkpoint: Checkpoint, destination: Location, options: WriteOptions) -> Written:
    """Write the whole tree of `checkpoint`, tensors and plain data, as one torch zip file.

    Tied tensors and views that touch stay on one storage; unused parts of storages are left behind. A root
    that is a flat dict of tensors becomes an OrderedDict, as state dicts are.

    Raises: LossyError when `weights_only` would not load something; ExistsError; WriteError; CorruptError.
    """
    check_file_destination(destination, overwrite=options.overwrite)
    refuse_special_kinds(checkpoint, "pt", UNRESOLVED)
    names = names_by_view(checkpoint.tensors)
    parts, places = plan_storages({view: checkpoint.tensors[same[0]] for view, same in names.items()})
    aliases = distinct(checkpoint.tensors).aliases
    draft = record_text(checkpoint, None, aliases, options)
    archive = TorchArchive(0, _pickle(checkpoint, places), parts, draft)
    moves = part_moves(parts, archive.data)
    by_view = digest_moves(checkpoint, parts, places, names, moves, options)
    num_bytes = archive.num_bytes
    with replacing_checked(checkpoint, destination, num_bytes, options) as (output, spans):
        where = source_path(checkpoint)
        everything = [*moves, *(item for item in by_view.values() if item.target_offset is None)]
        spans += move(with_source_checks(everything), output, where, options.progress)
        if draft is not None:
            by_name = {name: by_view[view] for view, same in names.items() for name in same}
            digests = {name: by_name[name].digest(options.digest) for name in checkpoint.tensors}
            archive.set_record(record_text(checkpoint, digests, aliases, options) or b"")
        spans += write_pieces(output, archive.pieces(), "the archive's frame")
    return Written(num_bytes, checked=output.checked)


def holds(leaf: Any) -> bool:
    """Whether a leaf of a checkpoint's tree, no tensor, can be written."""
    return can_emit(leaf) or is_tensor_object(leaf)


def part_moves(parts: list[PlannedStorage], entries: list[Entry], begin: int = 0) -> list[Move]:
    """The move of each part into its record, of an archive that begins at `begin`; it digests nothing yet."""
    return [
        Move(
            "",
            part.source,
            part.source_offset,
            part.num_bytes,
            begin + entry.data_offset,
            header=entry.local_header,
            header_bytes=entry.header_bytes,
        )
        for part, entry in zip(parts, entries, strict=True)
    ]


def digest_moves(
    checkpoint: Checkpoint,
    parts: list[PlannedStorage],
    places: Mapping[View, PlannedView],
    names: Mapping[View, list[str]],
    moves: list[Move],
    options: WriteOptions,
) -> dict[View, Move]:
    """By view, the move that digests it: its part's, or one that only reads where the part is not just it.

    `moves` are those of `parts`; they get their names and what they must turn out to be.
    """
    by_view: dict[View, Move] = {}
    for part, whole in zip(parts, moves, strict=True):
        for key, view in part.views.items():
            whole.name = whole.name or names[key][0]
            wanted = expected_digests(checkpoint, names[key], options)
            if not wanted:
                continue
            item = whole
            if whole.expected_digests or not _fills(view, places[key]):
                source, offset = contiguous(resolved(view))
                item = Move(names[key][0], source, offset, view.num_bytes, None)
            item.prefix = prefix(view.dtype, view.shape)
            item.expected_digests = wanted
            by_view[key] = item
    return by_view


def _fills(view: TensorEntry, place: PlannedView) -> bool:
    """Whether the part is exactly this view's elements in row-major order."""
    if view.kind in UNRESOLVED:  # whose digest is of its values, not of the bytes in the part
        return False
    is_gathered = place.strides != view.strides
    return view.num_bytes == place.part.num_bytes and (is_gathered or view.is_contiguous)


def _pickle(checkpoint: Checkpoint, places: Mapping[View, PlannedView]) -> bytes:
    root = checkpoint.root
    if type(root) is dict and root and all(isinstance(value, TensorEntry) for value in root.values()):
        versions = checkpoint.record.module_versions if checkpoint.record is not None else None
        root = as_state_dict(root, None if versions is None else OrderedDict(versions))
    emitter = Emitter(
        lambda e, entry: emit_tensor(e, entry, places[entry.view]),
        source_path(checkpoint),
        lambda e, value: emit_quantized(e, value, places[integers_of(value).view]),
    )
    return emitter.pickle(root)

"""Writing a folder that `torch.distributed.checkpoint.load` opens on any number of ranks.

Every tensor is one chunk, whole: ranks that want a part of it read it all, and take theirs.

Source: torch/distributed/checkpoint/_traverse.py, filesystem.py (`_write_item`), metadata.py and
default_planner.py of torch 2.13.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from ptsave.core.address import Location
from ptsave.core.caps import room
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import DType
from ptsave.core.nodes import TensorEntry, contiguous_strides
from ptsave.core.record import FILE_NAME, Record
from ptsave.core.tree import SCALARS, dotted
from ptsave.core.values.digest import hasher, prefix
from ptsave.core.values.gather import contiguous
from ptsave.errors import LimitError, LossyError, Option
from ptsave.formats.base import WriteOptions, Written
from ptsave.formats.dcp.read import MAX_METADATA_BYTES
from ptsave.formats.folder_files import DCP_METADATA, is_new_record, new_record_name, superfluous
from ptsave.formats.pickle.emit import Emitter, New, Reduce, Row, Slot, Table
from ptsave.formats.stored import (
    check_readable,
    check_record,
    distinct,
    expected_digests,
    last_check,
    record_text,
    refuse_special_kinds,
    source_path,
    with_source_checks,
    write_pieces,
)
from ptsave.formats.torch.archive import ItemFrame, TorchArchive, emit_tensor
from ptsave.formats.torch.storage_plan import PlannedStorage, PlannedView, View, names_by_view, plan_storages
from ptsave.formats.torch.write import digest_moves, part_moves
from ptsave.formats.zip.layout import ALIGN_BYTES, LARGE_BYTES, PAGE_BYTES
from ptsave.storage.move import Move, check_back, move
from ptsave.storage.opening import check_folder_destination, replacing_folder
from ptsave.storage.output import OutputFolder

_METADATA = "torch.distributed.checkpoint.metadata"
_FILESYSTEM = "torch.distributed.checkpoint.filesystem"
_CONTIGUOUS = 0
"""`_MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT`."""

MAX_SMALL_FILE_ITEMS = 100_000
"""Cap on the items out of a small file, each an archive of its own: of 3 KB, and plain data, which counts
twice, of 90 microseconds."""

Keys = tuple[str | int, ...]
"""A path: text for a dictionary's key, an integer for a list's place."""


def write(checkpoint: Checkpoint, destination: Location, options: WriteOptions) -> Written:
    """Write the whole tree of `checkpoint` as a DCP folder: `.metadata`, one data file, `ptsave.json`.

    Tied tensors are stored once, and both names point at the one place. Dictionary keys become text, as they
    do in torch's own saves; ptsave's reader makes an optimizer's parameter numbers numbers again.

    Raises: LossyError when the format cannot hold something; LimitError; ExistsError; WriteError;
    CorruptError.
    """
    check_folder_destination(destination, overwrite=options.overwrite)
    refuse_special_kinds(checkpoint, "dcp")
    names = names_by_view(checkpoint.tensors)
    layout = _Layout(checkpoint, names, options)
    notes: list[str] = []
    most = MAX_SMALL_FILE_ITEMS if room(checkpoint.source_bytes) == 1 else sys.maxsize
    for path, value in _flatten(checkpoint.root, source_path(checkpoint), notes):
        layout.add(path, value)
        if layout.cost > most:
            raise LimitError("converted_items", most, "more", source_path(checkpoint))
    aliases = distinct(checkpoint.tensors).aliases
    check_record(checkpoint, aliases, options)
    where = source_path(checkpoint)
    with replacing_folder(
        destination,
        layout.num_bytes,
        overwrite=options.overwrite,
        sync=options.sync,
        before_commit=partial(last_check, checkpoint, options),
    ) as folder:
        file_name, new_record = folder.fresh(lambda n: [f"__0_{n - 1}.distcp", new_record_name(n)])
        with folder.data_file(file_name, layout.num_bytes) as output:
            spans = move(with_source_checks(layout.every_move()), output, where, options.progress)
            spans += write_pieces(output, layout.pieces(), "an item's frame")
            if options.check:
                check_back(spans, output, options.progress)
        digests = layout.digests()
        metadata = layout.metadata(file_name)
        record = None
        if options.record:
            record = record_text(checkpoint, digests, aliases, options, belongs_to=metadata_digest(metadata))
        commit(folder, [file_name], metadata, record, new_record)
    num_bytes = layout.num_bytes + len(metadata) + len(record or b"")
    return Written(num_bytes, tuple(notes), output.checked)


def metadata_digest(metadata: bytes) -> str:
    """What a record says it belongs to."""
    return hasher("xxh3_128", metadata).hexdigest()


def commit(
    folder: OutputFolder, data_files: Sequence[str], metadata: bytes, record: bytes | None, new_record: str
) -> None:
    """Make a DCP checkpoint whose data files are written the one that readers see.

    `record` is the text of its record, if it has one, and `new_record` a name that is free.

    Raises: LossyError where the metadata is longer than what is read back; WriteError.
    """
    hint = "divide the checkpoint, or give its tensors shorter names"
    where = str(folder.destination)
    check_readable(DCP_METADATA, metadata, "metadata_bytes", MAX_METADATA_BYTES, where, hint)
    taken = set(folder.taken)
    if any(name == FILE_NAME or is_new_record(name) for name in taken):
        # for a moment the old record stands beside metadata that it does not belong to
        beside = record or Record(belongs_to=metadata_digest(metadata)).to_json().encode()
        folder.small_file(new_record, beside)
        taken.add(new_record)
    kept = [DCP_METADATA, *data_files, *([FILE_NAME] if record is not None else [])]
    beside_main = [(FILE_NAME, record)] if record is not None else []
    folder.commit((DCP_METADATA, metadata), beside_main, old=superfluous(taken, kept))


@dataclass(slots=True)
class _Item:
    """One entry of the data file."""

    path: Keys
    begin: int
    """Its first byte."""
    num_bytes: int
    about: TensorEntry | None
    """The tensor that it is; None for plain data."""


class _Layout:
    """The data file: one small torch zip after another."""

    def __init__(
        self, checkpoint: Checkpoint, names: Mapping[View, list[str]], options: WriteOptions
    ) -> None:
        self.num_bytes = 0
        self.cost = 0
        """Of all items, in tensors: plain data costs as much as two."""
        self._moves: list[Move] = []
        self._by_view: dict[View, Move] = {}
        """The move that digests a view."""
        self._checkpoint = checkpoint
        self._names = names
        self._options = options
        self._items: dict[str, _Item] = {}
        self._stored: dict[View, _Item] = {}
        """Where a tensor's bytes are already."""
        self._pickles: dict[tuple[DType, tuple[int, ...]], bytes] = {}
        self._frames: dict[tuple[int, int], ItemFrame] = {}
        """By the bytes of the pickle and of the storage."""
        self._unframed: list[TorchArchive] = []
        """Items around whose storages no move writes the rest."""

    def add(self, path: Keys, value: Any) -> None:
        """Lay out one item.

        Raises: LossyError when two items would have one name, or one holds what cannot be kept.
        """
        name = dotted(path)
        if name in self._items:
            raise LossyError(
                f"dcp cannot hold two values named {name!r}",
                source_path(self._checkpoint),
                Option("rename", tail=" one", otherwise="rename one"),
            )
        if isinstance(value, TensorEntry):
            self._items[name] = self._tensor(path, value)
            self.cost += 1
        else:
            self._items[name] = self._data(path, value)
            self.cost += 2

    def _tensor(self, path: Keys, entry: TensorEntry) -> _Item:
        known = self._stored.get(entry.view)
        if known is not None:
            return replace(known, path=path)
        source, offset = contiguous(entry)
        part = PlannedStorage(source, offset, entry.num_bytes, {}, entry.dtype.storage_class, "0")
        pickle = self._pickle(entry, part)
        frame = self._frames.get((len(pickle), part.num_bytes))
        if frame is None:
            frame = self._frames[len(pickle), part.num_bytes] = ItemFrame(pickle, part)
        begin = self._begin(part.num_bytes >= LARGE_BYTES)
        names = self._names[entry.view]
        whole = Move(names[0], source, offset, part.num_bytes, begin + frame.data_offset)
        whole.header, whole.header_bytes = partial(frame.before, pickle), frame.data_offset
        whole.trailer, whole.trailer_bytes = partial(frame.after, pickle), frame.trailer_bytes
        wanted = expected_digests(self._checkpoint, names, self._options)
        if wanted:
            whole.prefix, whole.expected_digests = prefix(entry.dtype, entry.shape), wanted
            self._by_view[entry.view] = whole
        self._moves.append(whole)
        self.num_bytes = begin + frame.data_offset + part.num_bytes + frame.trailer_bytes
        item = self._stored[entry.view] = _Item(path, begin, frame.num_bytes, entry)
        return item

    def _pickle(self, entry: TensorEntry, part: PlannedStorage) -> bytes:
        """What says of an item's storage which tensor it is: a plain one, contiguous."""
        found = self._pickles.get((entry.dtype, entry.shape))
        if found is None:
            plain = replace(entry, kind="tensor", requires_grad=False)
            place = PlannedView(part, 0, contiguous_strides(entry.shape))
            found = Emitter(lambda emitter, _: emit_tensor(emitter, plain, place)).pickle(plain)
            self._pickles[entry.dtype, entry.shape] = found
        return found

    def _data(self, path: Keys, value: Any) -> _Item:
        found = [] if type(value) in SCALARS else Checkpoint("", Path(), value).tensors.values()
        parts, places = plan_storages({entry.view: entry for entry in found})
        where = f"{source_path(self._checkpoint)}: {'.'.join(map(str, path))}"
        pickle = Emitter(lambda e, entry: emit_tensor(e, entry, places[entry.view]), where).pickle(value)
        archive = self._archive(pickle, parts)
        moves = part_moves(parts, archive.data, archive.begin)
        self._by_view |= digest_moves(self._checkpoint, parts, places, self._names, moves, self._options)
        self._moves += moves
        self._unframed.append(archive)
        return _Item(path, archive.begin, archive.num_bytes, None)

    def _archive(self, pickle: bytes, parts: list[PlannedStorage]) -> TorchArchive:
        begin = self._begin(any(part.num_bytes >= LARGE_BYTES for part in parts))
        archive = TorchArchive(begin, pickle, parts, is_item=True)
        self.num_bytes = begin + archive.num_bytes
        return archive

    def _begin(self, is_large: bool) -> int:
        """Where the next item begins."""
        return self.num_bytes + -self.num_bytes % (PAGE_BYTES if is_large else ALIGN_BYTES)

    def every_move(self) -> list[Move]:
        """What is written, and what is only read for its digest."""
        return [*self._moves, *(m for m in self._by_view.values() if m.target_offset is None)]

    def digests(self) -> dict[str, str]:
        """The digests of all tensors, where a record is wanted, once they have passed.

        It lets go of the moves: of a hundred thousand tensors, they take as much as the metadata does.
        """
        found = {}
        if self._options.record:
            digest = self._options.digest
            tensors = self._checkpoint.tensors
            found = {name: self._by_view[entry.view].digest(digest) for name, entry in tensors.items()}
        self._moves.clear()
        self._by_view.clear()
        return found

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of the frames that no move has written."""
        for archive in self._unframed:
            yield from archive.pieces()

    def metadata(self, file_name: str) -> bytes:
        """The `.metadata` pickle, once the data file has its name."""
        # plain data first, as torch writes it
        items = sorted(self._items.items(), key=lambda item: item[1].about is not None)
        state = {
            "state_dict_metadata": Table((name, _about(item.about)) for name, item in self._items.items()),
            "planner_data": Table((name, item.path) for name, item in self._items.items()),
            "storage_data": Table((_index(name, item.about), _info(file_name, item)) for name, item in items),
            "storage_meta": None,
            "version": "1.0.0",
        }
        return Emitter(_no_tensor, repeats_texts=True).pickle(New(_METADATA, "Metadata", state))


def _no_tensor(emitter: Emitter, entry: TensorEntry) -> None:
    raise AssertionError("the metadata holds no tensors")


def _size(numbers: Slot) -> Reduce:
    return Reduce("torch", "Size", (numbers,))


_DTYPE, _REQUIRES_GRAD, _SHAPE, _ORIGIN = map(Slot, range(4))
_PROPERTIES = (
    _DTYPE,
    Reduce("torch.serialization", "_get_layout", ("torch.strided",)),
    _REQUIRES_GRAD,
    Reduce(_METADATA, "_MEM_FORMAT_ENCODING", (_CONTIGUOUS,)),
    False,
)
_TENSOR = New(
    _METADATA,
    "TensorStorageMetadata",
    {
        "properties": New(_METADATA, "TensorProperties", _PROPERTIES),
        "size": _size(_SHAPE),
        "chunks": [
            New(_METADATA, "ChunkStorageMetadata", {"offsets": _size(_ORIGIN), "sizes": _size(_SHAPE)})
        ],
    },
)
_DATA = New(_METADATA, "BytesStorageMetadata")
_TENSOR_INDEX = New(_METADATA, "MetadataIndex", {"fqn": Slot(0), "offset": _size(Slot(1)), "index": 0})
_DATA_INDEX = New(_METADATA, "MetadataIndex", {"fqn": Slot(0), "offset": None, "index": None})
_INFO = New(_FILESYSTEM, "_StorageInfo", {"relative_path": Slot(0), "offset": Slot(1), "length": Slot(2)})


def _info(file_name: str, item: _Item) -> Row:
    return Row(_INFO, (file_name, item.begin, item.num_bytes))


def _index(name: str, about: TensorEntry | None) -> Row:
    if about is None:
        return Row(_DATA_INDEX, (name,))
    return Row(_TENSOR_INDEX, (name, _origin(len(about.shape))))


@cache
def _origin(rank: int) -> tuple[int, ...]:
    """Where the one chunk of a tensor begins: one object for all, which a pickle says once."""
    return (0,) * rank


def _about(entry: TensorEntry | None) -> New | Row:
    if entry is None:
        return _DATA
    return Row(_TENSOR, (entry.dtype, entry.requires_grad, entry.shape, _origin(len(entry.shape))))


def _flatten(root: Any, where: str, notes: list[str]) -> Iterator[tuple[Keys, Any]]:
    """The items of a nested state dict, as torch makes them: each tensor, and each value without one inside.

    Raises: LossyError when the root is not a dict, or a key would not survive being made text.
    """
    if not isinstance(root, dict):
        raise LossyError("dcp holds a dict of values, and this is none", where, "choose another format")
    yield from _flatten_dict(root, (), False, where, notes)


def _flatten_dict(
    node: dict[Any, Any], path: Keys, is_optimizer: bool, where: str, notes: list[str]
) -> Iterator[tuple[Keys, Any]]:
    wrong = next((key for key in node if type(key) not in (str, int)), None)
    if wrong is not None:
        raise LossyError(
            f"dcp cannot hold the key {wrong!r} of {_spell(path)}",
            where,
            (
                Option("drop", tail=" or ", otherwise="leave it out, or "),
                Option("rename", tail=" it", otherwise="rename it"),
            ),
        )
    if not is_optimizer and any(type(key) is int for key in node):
        notes.append(f"the integer keys of {_spell(path)} become text, as DCP has no others")
    for key, value in node.items():
        child = (*path, str(key))
        is_state = key == "state" and "param_groups" in node  # whose numbers the reader restores
        yield from _flatten_value(value, child, is_state, where, notes)


def _flatten_value(
    value: Any, path: Keys, is_optimizer: bool, where: str, notes: list[str]
) -> Iterator[tuple[Keys, Any]]:
    if isinstance(value, dict) and value:
        yield from _flatten_dict(value, path, is_optimizer, where, notes)
    elif isinstance(value, list) and not _is_terminal(value):
        for i, item in enumerate(value):
            yield from _flatten_value(item, (*path, i), False, where, notes)
    else:  # an empty dict too: torch would drop it
        yield path, value


def _is_terminal(value: list[Any]) -> bool:
    """Whether the list is one item: there is no tensor in it, and no dict that holds anything.

    So torch has it, which leaves empty dicts out: an item for each would make a list of values, which its
    loaders look for as one item.
    """
    return not any(
        isinstance(item, TensorEntry)
        or (isinstance(item, dict) and item)
        or (isinstance(item, list) and not _is_terminal(item))
        for item in value
    )


def _spell(path: Keys) -> str:
    return repr(dotted(path)) if path else "the root"

"""torch.distributed.checkpoint folders: `.metadata` and one or more `.distcp` files. The reading half.

`.metadata` says which window of which file holds which chunk of which tensor. Each window is a torch zip
of its own, so a chunk's bytes are windows into the `.distcp` file, and a tensor's chunks are presented as
one tensor without being read.

Source: torch/distributed/checkpoint/filesystem.py (`_write_item`, `FileSystemReader.read_data`) and
default_planner.py of torch 2.13.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property, partial
from typing import Any

from ptsave.core.accounts import Part
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import DType
from ptsave.core.finding import Finding, Kind
from ptsave.core.nodes import GlobalUse, TensorEntry, add_uses, contiguous_strides
from ptsave.core.record import FILE_NAME, Record
from ptsave.core.storage import MemoryStorage, Storage
from ptsave.core.values.digest import hasher
from ptsave.errors import CorruptError, LimitError, MissingFileError, UnreadableError
from ptsave.formats.base import FolderFormat
from ptsave.formats.dcp.chunks import Box, assemble, check_cover
from ptsave.formats.dcp.metadata import ItemLocation, TensorAbout, parse_metadata
from ptsave.formats.dcp.nesting import nest, restore_parameter_numbers
from ptsave.formats.dcp.remote import UnreadStorage, left_in, read_item, read_side_by_side
from ptsave.formats.folder_files import is_new_record
from ptsave.formats.pickle.inert import Unpickled
from ptsave.formats.torch.part import TorchParts
from ptsave.formats.zip.checks import check_storages
from ptsave.formats.zip.reader import read_directory
from ptsave.own_process import no_garbage_collection
from ptsave.storage.files import Extent, InputFile, InputFolder
from ptsave.storage.windows import FileStorage

METADATA = ".metadata"
MAX_METADATA_BYTES = 512 * 1024 * 1024
"""Cap on the `.metadata` pickle."""
MAX_FILES = 20_000
"""Cap on the `.distcp` files of one checkpoint."""
MAX_RECORDS = 8
"""How many files that may hold the record, beside the usual one, are looked at."""

Items = Mapping[str, TensorAbout | None]
"""What the metadata says of each item, by its name; None for what is not a tensor."""

_SUFFIX = ".distcp"
_DAMAGED = "the folder is incomplete or mixes two checkpoints; copy it again"


def sniff(folder: InputFolder) -> bool:
    """The table of contents, or data that lacks one."""
    return METADATA in folder.names or any(name.endswith(_SUFFIX) for name in folder.names)


def read(folder: InputFolder) -> Checkpoint:
    """Open a DCP folder; the nested state dict is rebuilt, with an optimizer's parameters by number.

    Raises: CorruptError, LimitError, MissingFileError, UnreadableError.
    """
    if METADATA not in folder.names:
        raise UnreadableError(
            "the folder is half written: it has .distcp files but no .metadata, which is written last",
            str(folder.path),
            "save the checkpoint again"
            + (" (with coordination among the ranks)" if _has_rank_metadata(folder) else ""),
        )
    with ExitStack() as on_failure, no_garbage_collection():
        reader = _Reader(folder, on_failure, _read_metadata(folder))
        reader.read_ahead(reader.metadata.places)
        values = [(name, reader.value(name)) for name in reader.metadata.items]
        if not reader.is_glance:
            reader.judge_places()
        paths = reader.metadata.paths
        where = str(folder.path / METADATA)
        root = nest(((paths.get(name, (name,)), value) for name, value in values), where)
        record = _read_record(folder, reader)
        checkpoint = Checkpoint(FORMAT.name, folder.path, root, globals=reader.globals, record=record)
        checkpoint.notes += reader.notes
        if reader.is_glance:
            checkpoint.notes.append(
                "only the table of contents was read: what is stored of each tensor is compared with it when "
                "it is read, as verify does"
            )
        if restore_parameter_numbers(root):
            checkpoint.notes.append(
                "the optimizer's parameters are numbered again (DCP makes text of numbers)"
            )
        checkpoint.dropped += reader.dropped
        checkpoint.parts.append(reader.parts)
        checkpoint.checks.append(reader.check)
        checkpoint.parts_of_checks += reader.parts_of_check()
        checkpoint.files = reader.owner = on_failure.pop_all()
    return checkpoint


def read_items(folder: InputFolder, metadata: bytes, choose: Callable[[Items], Iterable[str]]) -> Checkpoint:
    """Open some items of a folder whose `.metadata` is not written yet, side by side, without a record.

    `choose`: from all items, by the names that the metadata has for them, to the names of those.

    Raises: CorruptError, LimitError, MissingFileError, UnreadableError.
    """
    with ExitStack() as on_failure, no_garbage_collection():
        reader = _Reader(folder, on_failure, metadata)
        chosen = list(choose(reader.metadata.items))
        wanted = set(chosen)
        reader.read_ahead(key for key in reader.metadata.places if key[0] in wanted)
        root = {name: reader.value(name) for name in chosen}
        checkpoint = Checkpoint(FORMAT.name, folder.path, root, globals=reader.globals)
        checkpoint.notes += reader.notes
        checkpoint.dropped += reader.dropped
        checkpoint.files = on_failure.pop_all()
    return checkpoint


def names_in(folder: InputFolder, metadata: bytes) -> dict[str, GlobalUse]:
    """What a rank's own metadata names, and all items that it places, which may be parts of tensors only.

    Raises: CorruptError, LimitError, MissingFileError, UnreadableError.
    """
    with ExitStack() as owner, no_garbage_collection():
        reader = _Reader(folder, owner, metadata)
        reader.judge_places()
        return reader.globals


FORMAT = FolderFormat("dcp", sniff, read)


def _has_rank_metadata(folder: InputFolder) -> bool:
    return any(name.startswith("__") and name.endswith(METADATA) for name in folder.names)


def _read_record(folder: InputFolder, reader: _Reader) -> Record | None:
    """The record that was written with this metadata; none where there is none, or only another's.

    Where a save over this folder was cut short, its record may have its own name not yet.
    """
    candidates = [FILE_NAME] if FILE_NAME in folder.names else []
    candidates += [name for name in folder.names if is_new_record(name)][:MAX_RECORDS]
    for name in candidates:
        record = _record_at(folder, name)
        if record is not None and record.belongs_to in (None, reader.metadata_digest):
            return record
    if candidates:
        reader.notes[f"{FILE_NAME} belongs to an earlier save in this folder, and is left out"] = None
        reader.has_stale_record = True
    return None


def _record_at(folder: InputFolder, name: str) -> Record | None:
    """The record in the file `name`; none where a writer has just removed it, or has not finished it."""
    try:
        with folder.open(name) as file:
            return Record.from_json(file.read_at(0, file.size_bytes), str(file.path))
    except MissingFileError:
        return None
    except CorruptError:
        if is_new_record(name):
            return None
        raise


class _Reader:
    """The items of one folder, read one after the other."""

    def __init__(self, folder: InputFolder, owner: ExitStack, metadata: bytes | None) -> None:
        """Reads the metadata, unless it is given. The files are closed with `owner`."""
        self.folder = folder
        self.is_glance = folder.is_glanced_at and folder.is_remote
        """Whether the items of tensors are not looked into."""
        self.is_in_part = folder.is_read_in_part and folder.is_remote
        """Whether a file is opened only when something of it is read."""
        self._where = str(folder.path / METADATA)
        data = _read_metadata(folder) if metadata is None else metadata
        self.metadata = parse_metadata(data, self._where)
        self.metadata_digest = hasher("xxh3_128", data).hexdigest()
        self.globals: dict[str, GlobalUse] = {}
        add_uses(self.globals, self.metadata.globals)
        self.notes = dict.fromkeys(self.metadata.notes)
        self.dropped: dict[str, None] = {}
        """Each text once, in order: every item of a folder may have some of its own."""
        self.has_stale_record = False
        self.owner = owner
        """Closes the files."""
        self._files: dict[str, InputFile] = {}
        self._parts = [TorchParts()]
        """Those who have read the items."""
        self._left: dict[str, list[Extent]] = {}
        """Gaps between items that have more than padding, by file, where they were looked at."""
        self._by_place: dict[ItemLocation, tuple[str, Unpickled]] = {}
        self._by_chunks: dict[tuple[Any, ...], TensorEntry] = {}

    def read_ahead(self, keys: Iterable[tuple[str, tuple[int, ...] | None]]) -> None:
        """Read these items of a folder on another machine together, where each alone takes a round trip.

        With `is_glance`, tensors are left out.
        """
        if not self.folder.is_remote:
            return
        items: dict[ItemLocation, tuple[str, tuple[DType, tuple[int, ...]] | None]] = {}
        shapes = {
            (name, box.offsets): (about.dtype, box.sizes)
            for name, about in self.metadata.items.items()
            if about is not None
            for box in about.boxes
        }
        for name, offsets in keys:
            place = self.metadata.places[name, offsets]
            is_tensor = self.metadata.items.get(name) is not None
            if not (place.transforms or (self.is_glance and is_tensor)):
                kind = shapes.get((name, offsets)) if offsets is not None else None
                items.setdefault(place, (name, kind))
        read = read_side_by_side(
            self.folder,
            items,
            lambda item: self._file(item[1], item[0]),
            self._gaps,
            in_part=self.is_in_part,
        )
        for (place, name), loaded in read.loaded:
            self._keep(place, name, loaded)
        self._parts += read.parts
        self._left |= read.left
        self._share(len(self._files))  # of a tensor, each rank has a part

    def _share(self, num_files: int) -> None:
        """Say how many files are read in turn."""
        for file in [*self._files.values()]:
            file.share(num_files)

    def value(self, name: str) -> Any:
        """The tensor or the plain data of that name."""
        about = self.metadata.items[name]
        if about is None:
            return self._part(name, None).root
        return self._tensor(name, about)

    def _tensor(self, name: str, about: TensorAbout) -> TensorEntry:
        check_cover(about.shape, about.boxes, f"{self._where}, tensor {name!r}")
        # torch writes chunks of no elements too, some in another shape, and its readers pass them over
        stored = [box for box in about.boxes if box.num_elements]
        key = (about.shape, *((box, self.metadata.places.get((name, box.offsets))) for box in stored))
        if stored and key in self._by_chunks:  # two names of one tensor
            return self._by_chunks[key].named(name)
        chunks = [(box, self._chunk(name, about, box)) for box in stored]
        if chunks:
            self._by_chunks[key] = assemble(name, about.shape, chunks)
            return self._by_chunks[key]
        return TensorEntry(
            name, about.dtype, about.shape, contiguous_strides(about.shape), MemoryStorage(memoryview(b"")), 0
        )

    def _chunk(self, name: str, about: TensorAbout, box: Box) -> TensorEntry:
        if self.is_glance:
            return self._glanced(name, about, box)
        root = self._part(name, box.offsets).root
        if not isinstance(root, TensorEntry) or root.dtype is not about.dtype or root.shape != box.sizes:
            found = f"{root.dtype} {list(root.shape)}" if isinstance(root, TensorEntry) else "no tensor"
            raise CorruptError(
                f"a chunk of {name!r} should be {about.dtype} {list(box.sizes)}, and is {found}",
                str(self.folder.path),
                _DAMAGED,
            )
        return root

    def _glanced(self, name: str, about: TensorAbout, box: Box) -> TensorEntry:
        """What the metadata says of a chunk, which its file has room for."""
        place = self._place(name, box.offsets)
        where = str(self.folder.path / place.file_name)
        num_bytes = box.num_elements * about.dtype.itemsize
        size = self.folder.size_of(place.file_name)
        if size is None:
            raise self._missing(name, MissingFileError("no such file", where))
        end = place.offset_bytes + max(num_bytes, place.num_bytes)
        if end > size:
            what = f"truncated: the metadata places {name!r} up to byte {end}, the file has {size}"
            raise CorruptError(what, where, "copy or download the file again")
        storage = UnreadStorage(num_bytes, str(self.folder.path))
        return TensorEntry(name, about.dtype, box.sizes, contiguous_strides(box.sizes), storage, 0)

    def _place(self, name: str, offsets: tuple[int, ...] | None) -> ItemLocation:
        place = self.metadata.places.get((name, offsets))
        if place is None:
            raise CorruptError(
                f"the metadata does not say where {name!r} lies", str(self.folder.path), _DAMAGED
            )
        return place

    def _part(self, name: str, offsets: tuple[int, ...] | None) -> Unpickled:
        """The torch zip of one item."""
        place = self._place(name, offsets)
        if place in self._by_place:  # two names of one tensor
            return self._by_place[place][1]
        loaded = read_item(self._parts[0], self._file(name, place), (place, name))
        self._keep(place, name, loaded)
        return loaded

    def _keep(self, place: ItemLocation, name: str, loaded: Unpickled) -> None:
        """Note what an item says."""
        add_uses(self.globals, loaded.globals)
        self.notes |= dict.fromkeys(loaded.notes)
        self.dropped |= dict.fromkeys(loaded.dropped)
        self._by_place[place] = (name, loaded)

    def judge_places(self) -> None:
        """Tell what the items name that no value was made of: chunks without elements, places alone."""
        for (name, offsets), place in self.metadata.places.items():
            if place not in self._by_place:
                self._part(name, offsets)

    def _file(self, name: str, place: ItemLocation) -> InputFile:
        if place.transforms:
            raise UnreadableError(
                f"item {name!r} went through {', '.join(place.transforms)} before it was written",
                str(self.folder.path),
                "load it with torch and save it again without extensions",
            )
        if place.file_name not in self._files:
            if len(self._files) >= MAX_FILES:
                raise LimitError("distcp_files", MAX_FILES, "more", str(self.folder.path))
            try:
                file = self.folder.open(place.file_name)
            except MissingFileError as error:
                raise self._missing(name, error) from None
            self.owner.callback(file.close)
            self._files[place.file_name] = file
        return self._files[place.file_name]

    def _missing(self, name: str, error: MissingFileError) -> MissingFileError:
        what = f"{error.what}, though the metadata places {name!r} in it"
        return MissingFileError(what, error.where, "the save or the copy did not finish; do it again")

    def parts(self) -> Iterator[Part]:
        """The data files that the metadata does not name, what no item has of the others, and the records of
        items that are more than one tensor."""
        for parts in self._parts:
            yield from parts.records
        named = {place.file_name for place in self.metadata.places.values()}
        for name in self.folder.names:
            if name.endswith(_SUFFIX) and name not in named:
                with self.folder.open(name) as file:
                    yield Part(name, FileStorage(file, 0, file.size_bytes))
        for name, file in self._files.items():
            left = self._left.get(name)
            if left is None:
                left = left_in(file, self._gaps(name, file.size_bytes))
            for begin, size in left:
                yield Part(f"{name}, bytes {begin} to {begin + size}", FileStorage(file, begin, size))

    def _gaps(self, name: str, size_bytes: int) -> Iterator[Extent]:
        """What of a file of that size no item has."""
        reach = 0
        for begin, end in (*self._claimed.get(name, ()), (size_bytes, size_bytes)):
            if begin > reach:
                yield reach, begin - reach
            reach = max(reach, end)

    @cached_property
    def _claimed(self) -> Mapping[str, list[tuple[int, int]]]:
        """Where the items of each file begin and end, in order."""
        claimed: dict[str, list[tuple[int, int]]] = {}
        for (item, _), place in self.metadata.places.items():
            if item in self.metadata.items:
                end = place.offset_bytes + place.num_bytes
                claimed.setdefault(place.file_name, []).append((place.offset_bytes, end))
        return {name: sorted(extents) for name, extents in claimed.items()}

    def check(self) -> Iterator[Finding]:
        """Check every record of every item against its CRC-32, and the metadata against the record."""
        yield from self._check_record()
        yield from self._check_files(self._names_of_files())

    def parts_of_check(self) -> list[Callable[[], Iterator[Finding]]]:
        """`check`, divided by file, so that several processes can share the work.

        Of those with names by rank, each comes at the place of its rank, which may read it anyway.
        """
        names = sorted(self._names_of_files(), key=lambda name: (len(name), name))
        return [*(partial(self._check_files, (name,)) for name in names), self._check_record]

    def _names_of_files(self) -> Collection[str]:
        """The files that have items."""
        return {place.file_name for place in self._by_place}

    def _check_record(self) -> Iterator[Finding]:
        if self.has_stale_record:
            names = {"metadata": METADATA, "record": FILE_NAME}
            yield Finding("bytes", "fail", FILE_NAME, Kind.STALE_RECORD, facts=names)

    def _check_files(self, names: Collection[str]) -> Iterator[Finding]:
        yield from check_storages(self._records(names))

    def _records(self, names: Collection[str]) -> Iterator[tuple[str, Storage]]:
        """Every record of every item in these files, with the item's name."""
        items = [(place, name) for place, (name, _) in self._by_place.items() if place.file_name in names]
        if self.folder.is_remote:  # neighbours arrive together
            items.sort(key=lambda item: item[0][:3])
            self._share(1)
            for place, name in items:
                self._file(name, place).expect([(place.offset_bytes, place.num_bytes)])
        for place, name in items:
            file = self._file(name, place)
            # read again: to keep them all would take more memory than the tensors' names
            directory = read_directory(file, place.offset_bytes, place.num_bytes)
            yield from ((name, directory.storage(record)) for record in directory.entries)
            file.forget([(place.offset_bytes, place.num_bytes)])
        self._share(len(self._files))


def _read_metadata(folder: InputFolder) -> bytes:
    """The metadata pickle."""
    with folder.open(METADATA) as file:
        if file.size_bytes > MAX_METADATA_BYTES:
            raise LimitError("metadata_bytes", MAX_METADATA_BYTES, file.size_bytes, str(file.path))
        return file.read_at(0, file.size_bytes)

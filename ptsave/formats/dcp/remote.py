"""The items of a DCP folder on another machine: neighbours are asked for together, several files at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from isal.isal_zlib import crc32

from ptsave.core.dtypes import DType
from ptsave.core.nodes import TensorEntry
from ptsave.core.storage import Storage
from ptsave.errors import CorruptError, UnreadableError
from ptsave.formats.dcp.metadata import ItemLocation
from ptsave.formats.pickle.inert import Loaded
from ptsave.formats.torch.form import Form
from ptsave.formats.torch.part import TorchParts
from ptsave.storage.fetch import in_parallel
from ptsave.storage.files import Extent, InputFile, InputFolder
from ptsave.storage.scan import damaged

FRAME_BYTES = 8 * 1024
"""More than an item has before its storage, and after it: torch makes 1.6 KiB of both, ptsave up to 5 KiB."""
WHOLE_BYTES = 64 * 1024
"""Shorter items are asked for whole."""
MAX_LATER_BYTES = 8 * 1024 * 1024
"""The longest item that is looked into only when it is read: what lies before and after its storage is held
in memory with the storage then."""
LOOKED_AT = 64 * 1024
"""How many bytes of a gap between items are looked at: padding is zeros."""
Labelled = tuple[ItemLocation, str]
"""Where an item lies, and its name."""
Kind = tuple[DType, tuple[int, ...]]
"""The dtype and the shape of a tensor."""


class UnreadStorage(Storage):
    """The bytes of an item that was not looked into."""

    def __init__(self, num_bytes: int, where: str) -> None:
        self.num_bytes = num_bytes
        self._where = where

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        raise UnreadableError("only the table of contents was read", self._where, "open it again to read it")


class LaterStorage(Storage):
    """The bytes of an item that is looked into when it is read: another one of its file has the same length,
    dtype and shape, and so the same form.

    It compares itself with the item's CRC-32, which is not known before.
    """

    checks_itself = True

    def __init__(self, file: InputFile, item: Labelled, form: Form) -> None:
        self._input, self._item, self._form = file, item, form
        self.num_bytes = form.loaded.root.storage.num_bytes
        self._lock = threading.Lock()
        self._found: Storage | None = None
        self._passed: dict[int, tuple[int, int]] = {}
        """How far each thread has come that reads it in order, and the CRC-32 up to there."""

    @property
    def is_seekable(self) -> bool:
        return True

    def remote_place(self) -> tuple[int, int]:
        return id(self._input), self._item[0].offset_bytes

    def expect(self, offset_bytes: int, num_bytes: int) -> None:
        place, head, tail = self._item[0], self._form.head_bytes, self._form.tail_bytes
        begin, end = place.offset_bytes, place.offset_bytes + place.num_bytes
        extents = [(begin + head + offset_bytes, num_bytes)]
        if self._found is None:
            extents += [(begin, head), (end - tail, tail)]
        self._input.expect(extents)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        found = self._look()
        found.read_into(offset_bytes, buffer)
        thread = threading.get_ident()
        position, crc = self._passed.pop(thread, (0, 0))
        if offset_bytes == 0:
            position = crc = 0
        if offset_bytes != position or found.crc32 is None:
            return
        position, crc = position + len(buffer), crc32(buffer, crc)
        if position < self.num_bytes:
            self._passed[thread] = position, crc
        elif crc != found.crc32:
            raise damaged(str(self._input.path), self._item[1], "CRC-32")

    def _look(self) -> Storage:
        """The storage, once the item was looked into.

        Raises: CorruptError; UnreadableError where it says more than its neighbour lets expect.
        """
        with self._lock:
            if self._found is None:
                place, form = self._item[0], self._form
                self._found = (form.read(self._input, place.offset_bytes) or self._another()).root.storage
                end = place.offset_bytes + place.num_bytes
                frame = [(place.offset_bytes, form.head_bytes), (end - form.tail_bytes, form.tail_bytes)]
                self._input.forget(frame)
            return self._found

    def _another(self) -> Loaded:
        """What the item says, which is of another form."""
        parts = TorchParts()
        loaded, known = read_item(parts, self._input, self._item), self._form.loaded
        first: TensorEntry = known.root
        if not (
            isinstance(root := loaded.root, TensorEntry)
            and (root.dtype, root.shape, root.kind) == (first.dtype, first.shape, first.kind)
            and is_whole(root)
            and (loaded.globals, loaded.notes, loaded.dropped) == (known.globals, known.notes, known.dropped)
            and not parts.records
        ):
            raise UnreadableError(
                f"item {self._item[1]!r} is written in another way than others of its file",
                str(self._input.path),
                "download the folder, and read the copy",
            )
        return loaded

    def loaded(self) -> Loaded:
        """What the item says, if it is of the form."""
        known = self._form.loaded
        return replace(known, root=replace(known.root, storage=self))


def is_whole(entry: TensorEntry) -> bool:
    """Whether a tensor is all of its storage, row by row."""
    return entry.is_contiguous and entry.byte_range == (0, entry.storage.num_bytes)


@dataclass
class FileRead:
    """What one file's items say."""

    loaded: list[tuple[Labelled, Loaded]]
    parts: TorchParts
    """What the files' records are."""
    left: list[Extent]
    """The gaps between the items that have more than zeros."""


def read_side_by_side(
    folder: InputFolder,
    items: Mapping[ItemLocation, tuple[str, Kind | None]],
    open_file: Callable[[Labelled], InputFile],
    gaps: Callable[[str, InputFile], Iterable[Extent]],
) -> dict[str, FileRead]:
    """What the items say, by file. Of those of one kind and length in a file, the first is looked into now.

    `items`: the name of each, and its dtype and shape where it is a tensor. `open_file` opens the file that
    an item lies in, from any thread; `gaps`: what of a file, given its name, no item has.

    Raises: CorruptError, LimitError, MissingFileError, UnreadableError.
    """
    by_file: dict[str, list[Labelled]] = {}
    for place in sorted(items, key=lambda place: place[:3]):
        by_file.setdefault(place.file_name, []).append((place, items[place][0]))
    opened = in_parallel(lambda name: open_file(by_file[name][0]), list(by_file), folder.num_at_once)
    files = dict(opened)
    now: dict[str, list[Labelled]] = {}
    wanted: dict[str, list[Extent]] = {}
    for file_name, group in by_file.items():
        firsts: dict[object, Labelled] = {}
        for item in group:
            kind = items[item[0]][1] if item[0].num_bytes <= MAX_LATER_BYTES else None
            firsts.setdefault((item[0].num_bytes, kind) if kind is not None else item, item)
        now[file_name] = list(firsts.values())
        extents = [extent for place, _ in now[file_name] for extent in frames(place)]
        wanted[file_name] = extents + looks(gaps(file_name, files[file_name]))
    most_bytes = max((sum(size for _, size in extents) for extents in wanted.values()), default=0)

    def read(file_name: str) -> FileRead:
        file, found = files[file_name], FileRead([], TorchParts(), [])
        file.expect(wanted[file_name])
        for item in now[file_name]:
            found.loaded.append((item, read_item(found.parts, file, item)))
            file.forget(frames(item[0]))
        found.left += left_in(file, gaps(file_name, file))
        file.forget(wanted[file_name])
        done = {place for place, _ in now[file_name]}
        others = [item for item in by_file[file_name] if item[0] not in done]
        forms = {item: _form_of(found.parts, item, items[item[0]][1]) for item in others}
        file.expect(extent for item, form in forms.items() if form is None for extent in frames(item[0]))
        for item, form in forms.items():
            place = item[0]
            if form is not None and place.offset_bytes + place.num_bytes > file.size_bytes:
                raise file.too_short(place.offset_bytes, place.num_bytes)
            if form is not None:
                loaded = LaterStorage(file, item, form).loaded()
            else:
                loaded = read_item(found.parts, file, item)
                file.forget(frames(item[0]))
            found.loaded.append((item, loaded))
        return found

    return dict(in_parallel(read, list(by_file), folder.num_side_by_side(most_bytes)))


def _form_of(parts: TorchParts, item: Labelled, kind: Kind | None) -> Form | None:
    """The form that an item has which is not looked into now."""
    form = parts.form_of(item[0].num_bytes, *kind) if kind is not None else None
    return form if form is not None and is_whole(form.loaded.root) else None


def read_item(parts: TorchParts, file: InputFile, item: Labelled) -> Loaded:
    """What the torch zip of one item says.

    Raises: CorruptError, LimitError, UnreadableError.
    """
    place, name = item
    try:
        return parts.read(file, place.offset_bytes, place.num_bytes, name)
    except CorruptError as error:
        raise CorruptError(f"item {name!r}: {error.what}", error.where, error.hint) from None


def frames(place: ItemLocation) -> list[Extent]:
    """What of an item must be read to know what it says."""
    begin, size = place.offset_bytes, place.num_bytes
    if size <= WHOLE_BYTES:
        return [(begin, size)]
    return [(begin, FRAME_BYTES), (begin + size - FRAME_BYTES, FRAME_BYTES)]


def looks(gaps: Iterable[Extent]) -> list[Extent]:
    """What of gaps is looked at."""
    return [(begin, min(size, LOOKED_AT)) for begin, size in gaps]


def left_in(file: InputFile, gaps: Iterable[Extent]) -> list[Extent]:
    """Those of the gaps between items that are more than padding. Raises: UnreadableError."""
    return [(begin, size) for begin, size in gaps if file.read_at(begin, min(size, LOOKED_AT)).strip(b"\0")]

"""The items of a DCP folder on another machine: neighbours are asked for together, several files at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from isal.isal_zlib import crc32

from ptsave.core.dtypes import DType
from ptsave.core.nodes import TensorEntry
from ptsave.core.storage import Storage
from ptsave.errors import CorruptError, UnreadableError
from ptsave.formats.dcp.metadata import ItemLocation
from ptsave.formats.pickle.inert import Unpickled
from ptsave.formats.torch.form import Form
from ptsave.formats.torch.part import TorchParts
from ptsave.storage.fetch import in_parallel
from ptsave.storage.files import Extent, InputFile, InputFolder
from ptsave.storage.scan import damaged
from ptsave.storage.windows import FileStorage

FRAME_BYTES = 8 * 1024
"""More than an item has before its storage, and after it: torch makes 1.6 KiB of both, ptsave up to 5 KiB."""
WHOLE_BYTES = 64 * 1024
"""Shorter items are asked for whole."""
LONG_BYTES = 1024 * 1024
"""Of longer items, read in order, the end is looked at when it is reached: to look at it before would take a
request of its own, or its neighbours' bytes twice."""
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


class LaterFile:
    """A data file that is opened when something of it is read."""

    def __init__(self, open_file: Callable[[], InputFile]) -> None:
        self._open = open_file
        self._lock = threading.Lock()
        self._file: InputFile | None = None
        self._expected: list[Extent] = []

    @property
    def file(self) -> InputFile:
        """The file, open by now. Raises: as `open_file`."""
        with self._lock:
            if self._file is None:
                self._file = self._open()
                self._file.expect(self._expected)
                self._expected.clear()
            return self._file

    def expect(self, extents: Iterable[Extent]) -> None:
        with self._lock:
            if self._file is None:
                self._expected += extents
            else:
                self._file.expect(extents)


class LaterStorage(Storage):
    """The bytes of an item that is looked into when it is read: another one has the same length, dtype and
    shape, and so the same form.

    It compares itself with the item's CRC-32, which is not known before.
    """

    checks_itself = True

    def __init__(self, file: LaterFile, item: Labelled, form: Form) -> None:
        self._later, self._item, self._form = file, item, form
        self.num_bytes = form.loaded.root.storage.num_bytes
        self._lock = threading.Lock()
        self._head = b""
        """What lies before the storage, where that was looked at."""
        self._found: Storage | None = None
        self._passed: dict[int, tuple[int, int]] = {}
        """How far each thread has come that reads it in order, and the CRC-32 up to there."""

    def remote_place(self) -> tuple[int, int]:
        return id(self._later), self._item[0].offset_bytes

    def expect(self, offset_bytes: int, num_bytes: int) -> None:
        place, head, tail = self._item[0], self._form.head_bytes, self._form.tail_bytes
        begin, end = place.offset_bytes, place.offset_bytes + place.num_bytes
        extents = [(begin + head + offset_bytes, num_bytes)]
        if self._found is None:
            extents += [(begin, head), (end - tail, tail)]
        self._later.expect(extents)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        thread = threading.get_ident()
        position, crc = self._passed.pop(thread, (0, 0))
        if offset_bytes == 0:
            position = crc = 0
        is_next = offset_bytes == position
        storage = self._found
        if storage is None and is_next and self.num_bytes > LONG_BYTES and (position or self._has_head()):
            storage = self._expected()
        (storage or self._look()).read_into(offset_bytes, buffer)
        if not is_next:
            return
        position, crc = position + len(buffer), crc32(buffer, crc)
        if position < self.num_bytes:
            self._passed[thread] = position, crc
            return
        found = self._look()
        if storage is not self._found and found.offset_bytes != self._expected().offset_bytes:
            raise self._is_another(self._later.file)
        if found.crc32 not in (None, crc):
            raise damaged(str(self._later.file.path), self._item[1], "CRC-32")

    def _expected(self) -> Storage:
        """Where the storage lies, if the item is of the form."""
        begin = self._item[0].offset_bytes + self._form.head_bytes
        return FileStorage(self._later.file, begin, self.num_bytes)

    def _has_head(self) -> bool:
        """Whether what lies before the storage is of the form."""
        with self._lock:
            place, file = self._item[0], self._later.file
            self._head = self._head or self._form.head_of(file, place.offset_bytes)
            if self._head:
                file.forget([(place.offset_bytes, len(self._head))])
            return bool(self._head)

    def _look(self) -> Storage:
        """The storage, once the item was looked into.

        Raises: CorruptError; UnreadableError where it says more than its neighbour lets expect.
        """
        with self._lock:
            if self._found is None:
                place, form, file = self._item[0], self._form, self._later.file
                loaded = form.read(file, place.offset_bytes, self._head) or self._another(file)
                self._found = loaded.root.storage
                end = place.offset_bytes + place.num_bytes
                frame = [(place.offset_bytes, form.head_bytes), (end - form.tail_bytes, form.tail_bytes)]
                file.forget(frame)
                self._head = b""
            return self._found

    def _another(self, file: InputFile) -> Unpickled:
        """What the item says, which is of another form."""
        parts = TorchParts()
        loaded, known = read_item(parts, file, self._item), self._form.loaded
        first: TensorEntry = known.root
        if not (
            isinstance(root := loaded.root, TensorEntry)
            and (root.dtype, root.shape, root.kind) == (first.dtype, first.shape, first.kind)
            and is_whole(root)
            and (loaded.globals, loaded.notes, loaded.dropped) == (known.globals, known.notes, known.dropped)
            and not parts.records
        ):
            raise self._is_another(file)
        return loaded

    def _is_another(self, file: InputFile) -> UnreadableError:
        return UnreadableError(
            f"item {self._item[1]!r} is written in another way than others",
            str(file.path),
            "download the folder, and read the copy",
        )

    def loaded(self) -> Unpickled:
        """What the item says, if it is of the form."""
        known = self._form.loaded
        return replace(known, root=replace(known.root, storage=self))


def is_whole(entry: TensorEntry) -> bool:
    """Whether a tensor is all of its storage, row by row."""
    return entry.is_contiguous and entry.byte_range == (0, entry.storage.num_bytes)


@dataclass
class ItemsRead:
    """What items say, and their files."""

    loaded: list[tuple[Labelled, Unpickled]]
    parts: list[TorchParts]
    """What the files' records are."""
    left: dict[str, list[Extent]]
    """The gaps between the items that have more than zeros, by file, where they were looked at."""


def read_side_by_side(
    folder: InputFolder,
    items: Mapping[ItemLocation, tuple[str, Kind | None]],
    open_file: Callable[[Labelled], InputFile],
    gaps: Callable[[str, int], Iterable[Extent]],
    *,
    in_part: bool = False,
) -> ItemsRead:
    """What the items say. Of those of one kind and length in a file, the first is looked into now.

    `items`: the name of each, and its dtype and shape where it is a tensor. `open_file` opens the file that
    an item lies in, from any thread; `gaps`: what of a file, given its name and its size, no item has.
    `in_part`: whether only some of the items will be read. Then the first of those of one kind and length in
    the folder is looked into, and a file that has none of these, and no gaps, is opened when it is read.

    Raises: CorruptError, LimitError, MissingFileError, UnreadableError.
    """
    by_file: dict[str, list[Labelled]] = {}
    for place in sorted(items, key=lambda place: place[:3]):
        by_file.setdefault(place.file_name, []).append((place, items[place][0]))
    files = {name: LaterFile(partial(open_file, group[0])) for name, group in by_file.items()}
    parts: dict[str, TorchParts] = {}
    loaded: dict[Labelled, Unpickled] = {}

    def alike(item: Labelled) -> object:
        """What is equal for items of which one is looked into now."""
        kind = items[item[0]][1]
        return item if kind is None else ("" if in_part else item[0].file_name, item[0].num_bytes, kind)

    def read_now(chosen: Mapping[str, list[Labelled]], looked_at: Mapping[str, Sequence[Extent]]) -> None:
        wanted = {
            name: [extent for place, _ in chosen.get(name, ()) for extent in frames(place)]
            + looks(looked_at.get(name, ()))
            for name in {**chosen, **looked_at}
        }

        def read(name: str) -> None:
            file, own = files[name].file, parts.setdefault(name, TorchParts())
            file.expect(wanted[name])
            for item in chosen.get(name, ()):
                loaded[item] = read_item(own, file, item)
                file.forget(frames(item[0]))
            if name in looked_at:
                left[name] = left_in(file, looked_at[name])
            file.forget(wanted[name])

        most_bytes = max((sum(size for _, size in extents) for extents in wanted.values()), default=0)
        for _ in in_parallel(read, list(wanted), folder.num_side_by_side(most_bytes)):
            pass

    firsts: dict[object, Labelled] = {}
    for item in chain.from_iterable(by_file.values()):
        firsts.setdefault(alike(item), item)
    now = _by_file(firsts.values())
    left: dict[str, list[Extent]] = {}
    opened = [name for name in by_file if name in now or any(gaps(name, folder.size_of(name) or 0))]
    for _ in in_parallel(lambda name: files[name].file, opened, folder.num_at_once):
        pass
    read_now(now, {name: list(gaps(name, files[name].file.size_bytes)) for name in opened})
    forms = {key: _form_of(parts[item[0].file_name], item, items[item[0]][1]) for key, item in firsts.items()}
    others = [item for group in by_file.values() for item in group if item not in loaded]
    read_now(_by_file(item for item in others if forms[alike(item)] is None), {})
    for item in others:
        place, form = item[0], forms[alike(item)]
        if form is not None:
            size = folder.size_of(place.file_name)
            if size is None or place.offset_bytes + place.num_bytes > size:
                raise files[place.file_name].file.too_short(place.offset_bytes, place.num_bytes)
            loaded[item] = LaterStorage(files[place.file_name], item, form).loaded()
    return ItemsRead([(i, loaded[i]) for group in by_file.values() for i in group], [*parts.values()], left)


def _by_file(items: Iterable[Labelled]) -> dict[str, list[Labelled]]:
    """The items, by the name of their file."""
    found: dict[str, list[Labelled]] = {}
    for item in items:
        found.setdefault(item[0].file_name, []).append(item)
    return found


def _form_of(parts: TorchParts, item: Labelled, kind: Kind | None) -> Form | None:
    """The form of an item that was looked into, if others may have it."""
    form = parts.form_of(item[0].num_bytes, *kind) if kind is not None else None
    return form if form is not None and is_whole(form.loaded.root) else None


def read_item(parts: TorchParts, file: InputFile, item: Labelled) -> Unpickled:
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

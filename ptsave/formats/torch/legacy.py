"""torch's first format (`torch.save` before 1.6, and with `_use_new_zipfile_serialization=False`).

Layout: five pickles one after the other (a magic number, the protocol version, the system's type sizes,
the object, the keys of its storages), then for each key in that order the number of elements (int64) and
the bytes, both little-endian on any machine. There are no checksums.

Source: torch/serialization.py (`_legacy_save`, `_legacy_load`), torch/csrc/serialization.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from ptsave.core.accounts import Part
from ptsave.core.caps import room
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import DType
from ptsave.core.finding import Finding, Kind
from ptsave.core.nodes import GlobalUse, add_uses
from ptsave.errors import CorruptError, LimitError
from ptsave.formats.base import FileFormat
from ptsave.formats.pickle.inert import Unpickled, load
from ptsave.formats.torch.objects import torch_shapes
from ptsave.formats.torch.storages import (
    UNTYPED,
    StorageNode,
    check_location,
    not_loaded,
    storage_id,
    storage_type,
)
from ptsave.storage.files import InputFile
from ptsave.storage.windows import FileStorage

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
MAX_STORAGES = 400_000
"""Cap on the storages of one small file."""

_MAGIC_BINARY = MAGIC_NUMBER.to_bytes(10, "little")
_MAGIC_TEXT = str(MAGIC_NUMBER).encode()
_MAGIC_WITHIN = 64
_HINT = "the file is damaged; copy or download it again"

Key = str | int | bytes
"""Keys are equal where Python says so: torch keeps them in one dict, as the pickle has them."""


def sniff(file: InputFile, head: bytes) -> bool:
    """A file that begins with the magic number, pickled in any protocol."""
    start = head[:_MAGIC_WITHIN]
    return start[:1] in (b"\x80", b"L", b"\x8a") and (_MAGIC_BINARY in start or _MAGIC_TEXT in start)


def read(file: InputFile) -> Checkpoint:
    """Open a legacy file. Tensors are windows into it; none of their bytes is read.

    Raises: CorruptError, LimitError.
    """
    with ExitStack() as on_failure:
        on_failure.callback(file.close)
        where = str(file.path)
        source = FileStorage(file, 0, file.size_bytes)
        magic = _load(source, 0, where)
        if magic.root != MAGIC_NUMBER:
            raise CorruptError("the file does not begin with torch's magic number", where, _HINT)
        version = _load(source, magic.end, where)
        if version.root != PROTOCOL_VERSION:
            raise CorruptError(
                f"the file does not have the protocol version {PROTOCOL_VERSION}", where, _HINT
            )
        system = _load(source, version.end, where)
        storages = LegacyStorages(file)
        loaded = load(source, system.end, torch_shapes(storages), where)
        keys = _load(source, loaded.end, where)
        end = storages.locate(keys.root, keys.end)
        uses: dict[str, GlobalUse] = {}
        for part in (loaded, magic, version, system, keys):  # torch unpickles them all
            add_uses(uses, part.globals)
        checkpoint = Checkpoint(
            FORMAT.name,
            file.path,
            loaded.root,
            globals=uses,
            notes=[*loaded.notes, *storages.notes],
            dropped=loaded.dropped,
        )
        checkpoint.parts.append(storages.parts)
        checkpoint.checks.append(lambda: _check_end(file, end))
        checkpoint.checks.append(lambda: not_loaded("torch.load", storages.refused))
        checkpoint.files = on_failure.pop_all()
    return checkpoint


FORMAT = FileFormat("pt-legacy", sniff, read)


def _load(source: FileStorage, offset_bytes: int, where: str) -> Unpickled:
    """One of the small pickles, which hold plain data."""
    return load(source, offset_bytes, torch_shapes(), where)


def _check_end(file: InputFile, end: int) -> Iterator[Finding]:
    """Say whether anything follows the last storage."""
    if end < file.size_bytes:
        yield Finding("bytes", "warn", "", Kind.TRAILING_BYTES, file.size_bytes - end)


class LegacyStorages:
    """The storages that the object's pickle names; where they lie is known only after it."""

    def __init__(self, file: InputFile) -> None:
        self.file = file
        self.notes: list[str] = []
        self.refused: set[str] = set()
        """Why torch.load does not read the file, which torch.save may have written."""
        self._roots: dict[Key, StorageNode] = {}
        self._storages: dict[Key, FileStorage] = {}
        self._views: dict[Key, tuple[Key, StorageNode]] = {}
        self._empty: dict[tuple[Key, DType], StorageNode] = {}

    def __call__(self, persistent_id: Any) -> Any:
        """`("storage", class, key, location, number of elements, view)` or `("module", class, file, source)`.

        Raises: CorruptError when it is neither, or contradicts an earlier one.
        """
        persistent_id = storage_id(persistent_id)
        if type(persistent_id) is not tuple or not persistent_id:
            raise CorruptError("the pickle refers to an object that is neither a storage nor a module")
        tag, *rest = persistent_id
        if tag in ("module", b"module") and len(rest) == 3:
            if any(rest[1:]):
                self.notes.append("it carries the source code of its modules, which ptsave does not run")
                self.notes[:] = dict.fromkeys(self.notes)
            return rest[0]
        if tag not in ("storage", b"storage") or len(rest) != 5:
            raise CorruptError("the pickle refers to an object that is neither a storage nor a module")
        kind, raw_key, location, count, view = rest
        dtype = storage_type(kind)
        key = _key(raw_key)
        if dtype is None or type(count) is not int or not 0 <= count < 2**63:
            raise CorruptError(f"storage {str(key)[:40]} is described impossibly")
        check_location(location, count)
        if kind.name in UNTYPED:
            self.refused.add("it knows no untyped storages (of float8 and uint16) in this format")
        root = self._root(key, kind.name, dtype, count)
        return root if view is None else self._view(view, key, root)

    def _root(self, key: Key, name: str, dtype: DType, count: int) -> StorageNode:
        root = self._roots.get(key)
        if root is None:
            most = room(self.file.stored_bytes) * MAX_STORAGES
            if len(self._roots) >= most:
                raise LimitError("storages", most, "more")
            num_bytes = count * dtype.itemsize
            if num_bytes > self.file.size_bytes:
                raise CorruptError(
                    f"storage {str(key)[:40]} should have {num_bytes} bytes, "
                    f"the whole file has {self.file.size_bytes}"
                )
            storage = self._storages[key] = FileStorage(self.file, -1, num_bytes)
            root = self._roots[key] = StorageNode(name, dtype, count, storage)
        elif root.num_elements == 0 and count == 0 and root.dtype is not dtype:
            # torch: no two tensors share a storage of no bytes, so each may have a type of its own
            root = self._empty.setdefault((key, dtype), StorageNode(name, dtype, 0, self._storages[key]))
        elif root.dtype is not dtype or root.num_elements != count:
            raise CorruptError(f"storage {str(key)[:40]} is described in two ways")
        if key in self._views:
            raise self._is_two(key)
        return root

    def _is_two(self, key: Key) -> CorruptError:
        """Storages and views of them have one namespace: torch takes whichever came first."""
        return CorruptError(f"the key {str(key)[:40]} is of a storage and of a view")

    def _view(self, view: Any, root_key: Key, root: StorageNode) -> StorageNode:
        """`(key, offset, number of elements)`: a part of a storage, shared under a key of its own."""
        if type(view) is not tuple or len(view) != 3:
            raise CorruptError("a view of a storage is malformed")
        key, (offset, count) = _key(view[0]), view[1:]
        if type(offset) is not int or type(count) is not int or offset < 0 or count < 0:
            raise CorruptError("a view of a storage is malformed")
        if offset + count > root.num_elements:
            raise CorruptError(f"a view of storage {str(root_key)[:40]} goes past its end")
        if key in self._roots:
            raise self._is_two(key)
        known = self._views.get(key)
        if known is None:
            node = StorageNode(root.name, root.dtype, count, root.storage, first=offset)
            self._views[key] = (root_key, node)
            return node
        if known[0] != root_key or (known[1].first, known[1].num_elements) != (offset, count):
            raise CorruptError("a view of a storage is described in two ways")
        return known[1]

    def parts(self) -> Iterator[Part]:
        """The storages that tensors may view."""
        for key, storage in self._storages.items():
            yield Part(f"storage {key!r}", storage)

    def locate(self, keys: Any, offset_bytes: int) -> int:
        """Tell each storage where its bytes lie: in the order of `keys`, from `offset_bytes` on.

        Returns the offset after the last one.

        Raises: CorruptError when the keys are not exactly those of the pickle, a length differs, or the
        file ends too early.
        """
        where = str(self.file.path)
        if type(keys) is not list:
            raise CorruptError("the file has no list of its storages", where, _HINT)
        missing = dict(self._roots)
        for raw_key in keys:
            try:
                key = _key(raw_key)
            except CorruptError as error:
                raise CorruptError(error.what, where, _HINT) from None
            node = missing.pop(key, None)
            if node is None:
                raise CorruptError(
                    f"the file lists storage {str(key)[:40]} twice, or without use", where, _HINT
                )
            storage = self._storages[key]
            count = int.from_bytes(self.file.read_at(offset_bytes, 8), "little")
            if count != node.num_elements:
                raise CorruptError(
                    f"storage {str(key)[:40]} has {count} elements where {node.num_elements} were described",
                    where,
                    _HINT,
                )
            offset_bytes += 8
            if offset_bytes + storage.num_bytes > self.file.size_bytes:
                raise self.file.too_short(offset_bytes, storage.num_bytes)
            storage.offset_bytes = offset_bytes
            offset_bytes += storage.num_bytes
        if missing:
            raise CorruptError(
                f"the file does not hold storage {str(next(iter(missing)))[:40]}", where, _HINT
            )
        return offset_bytes


def _key(raw: Any) -> Key:
    """A storage's key: text of a number in most files, a number or Python 2's bytes in some."""
    if type(raw) is str or type(raw) is int or type(raw) is bytes:
        return raw
    raise CorruptError("a storage's key is neither text nor a number")

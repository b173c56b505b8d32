"""torch's tar format (`torch.save` before 0.1.10): four members, three of them full of pickles.

- `storages`: the number of storages; for each the pickle `(key, location, storage class)`, the number of
  elements (int64) and the bytes; then the pickled list of views `(key, root key, offset, elements)`
- `tensors`: the number of tensors; for each the pickle `(key, storage key, tensor class)`, the rank
  (int32, padded to 8 bytes), the shape, the strides and the offset (int64 each)
- `pickle`: the object, with the tensors' keys as persistent ids
- `sys_info`: the writing system's type sizes

Source: torch/serialization.py (`_legacy_load.legacy_load`); POSIX.1-1988 for the ustar header.
"""

from __future__ import annotations

from contextlib import ExitStack
from struct import Struct
from typing import Any

from ptsave.core.accounts import Part
from ptsave.core.caps import room
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.nodes import GlobalUse, TensorEntry, add_uses
from ptsave.errors import CorruptError, LimitError
from ptsave.formats.base import FileFormat
from ptsave.formats.pickle.inert import load
from ptsave.formats.torch.objects import torch_shapes
from ptsave.formats.torch.storages import StorageNode, check_location, storage_type
from ptsave.formats.torch.tar_members import MemberBytes, holds_torch, is_tar
from ptsave.formats.torch.tar_members import members as torch_members
from ptsave.formats.torch.tensors import MAX_RANK, tensor
from ptsave.storage.files import InputFile
from ptsave.storage.windows import FileStorage

MAX_TENSORS = 200_000
"""Cap on the storages, the views and the tensors, each."""

_RANK = Struct("<i4x")
_INT64 = 8
_HINT = "the file is damaged; copy or download it again"


def sniff(file: InputFile, head: bytes) -> bool:
    """A tar archive that has one of torch's members."""
    return is_tar(head) and holds_torch(file)


def read(file: InputFile) -> Checkpoint:
    """Open a tar file. Tensors are windows into it.

    Raises: CorruptError, LimitError.
    """
    with ExitStack() as on_failure:
        on_failure.callback(file.close)
        members = torch_members(file)
        uses: dict[str, GlobalUse] = {}
        storages = _read_storages(_Reader(file, members["storages"], "storages", uses))
        tensors = _read_tensors(_Reader(file, members["tensors"], "tensors", uses), storages)

        def persistent_load(persistent_id: Any) -> Any:
            if type(persistent_id) is tuple and persistent_id:
                return persistent_id[0]  # (class, file, source): a module whose source came along
            key = _int(persistent_id)
            if key not in tensors:
                raise CorruptError(f"the file refers to the tensor {key}, which it does not hold")
            return tensors[key]

        where = f"{file.path}, member 'pickle'"
        begin, end = members["pickle"]
        loaded = load(FileStorage(file, begin, end - begin), 0, torch_shapes(persistent_load), where)
        add_uses(uses, loaded.globals)
        checkpoint = Checkpoint(FORMAT.name, file.path, loaded.root, globals=uses, notes=loaded.notes)
        checkpoint.dropped += loaded.dropped
        checkpoint.parts.append(
            lambda: (Part(f"storage {key}", node.storage) for key, node in storages.items())
        )
        checkpoint.files = on_failure.pop_all()
    return checkpoint


FORMAT = FileFormat("pt-tar", sniff, read)


class _Reader:
    """Reads one member from its beginning to its end; what its pickles name is added to `uses`."""

    def __init__(self, file: InputFile, member: MemberBytes, name: str, uses: dict[str, GlobalUse]) -> None:
        self.file = file
        self.uses = uses
        self.at, self.end = member
        self.where = f"{file.path}, member {name!r}"

    def pickle(self) -> Any:
        rest = FileStorage(self.file, self.at, self.end - self.at)
        loaded = load(rest, 0, torch_shapes(), self.where)
        self.at += loaded.end
        add_uses(self.uses, loaded.globals)
        return loaded.root

    def count(self) -> int:
        """A pickled number of things that follow."""
        value = self.pickle()
        if type(value) is not int or value < 0:
            raise self.corrupt("a number of things is malformed")
        most = room(self.file.stored_bytes) * MAX_TENSORS
        if value > most:
            raise LimitError("tensors", most, value, self.where)
        return value

    def take(self, num_bytes: int) -> bytes:
        return self.file.read_at(self.skip(num_bytes), num_bytes)

    def skip(self, num_bytes: int) -> int:
        """Go past `num_bytes`; returns where they begin."""
        begin = self.at
        if begin + num_bytes > self.end:
            raise self.corrupt(f"truncated: needs {num_bytes} more bytes")
        self.at += num_bytes
        return begin

    def ints(self, count: int) -> tuple[int, ...]:
        return Struct(f"<{count}q").unpack(self.take(count * _INT64))

    def corrupt(self, what: str) -> CorruptError:
        return CorruptError(what, self.where, _HINT)


def _read_storages(reader: _Reader) -> dict[int, StorageNode]:
    storages: dict[int, StorageNode] = {}
    for _ in range(reader.count()):
        described = reader.pickle()
        if type(described) is not tuple or len(described) != 3:
            raise reader.corrupt("a storage's description is malformed")
        dtype = storage_type(described[2])
        key = described[0]
        if dtype is None or type(key) is not int or key in storages:
            raise reader.corrupt("a storage's description is malformed")
        count = int.from_bytes(reader.take(_INT64), "little")
        try:
            check_location(described[1], count)
        except CorruptError as error:
            raise reader.corrupt(error.what) from None
        num_bytes = count * dtype.itemsize
        storage = FileStorage(reader.file, reader.skip(num_bytes), num_bytes)
        storages[key] = StorageNode(described[2].name, dtype, count, storage)
    views = reader.pickle()
    if type(views) is not list or len(views) > MAX_TENSORS:
        raise reader.corrupt("the list of views is malformed")
    for view in views:
        if type(view) is not tuple or len(view) != 4 or not all(type(part) is int for part in view):
            raise reader.corrupt("a view of a storage is malformed")
        key, root_key, offset, count = view
        root = storages.get(root_key)
        if root is None or key in storages or offset < 0 or count < 0 or offset + count > root.num_elements:
            raise reader.corrupt("a view of a storage is malformed")
        storages[key] = StorageNode(root.name, root.dtype, count, root.storage, first=root.first + offset)
    return storages


def _read_tensors(reader: _Reader, storages: dict[int, StorageNode]) -> dict[int, TensorEntry]:
    tensors: dict[int, TensorEntry] = {}
    for _ in range(reader.count()):
        described = reader.pickle()
        if type(described) is not tuple or len(described) != 3:
            raise reader.corrupt("a tensor's description is malformed")
        key, storage_key = described[:2]
        if type(key) is not int or type(storage_key) is not int:
            raise reader.corrupt("the key of a tensor or of its storage is not a number")
        (rank,) = _RANK.unpack(reader.take(_RANK.size))
        # torch keeps storages and tensors in one table
        if key in tensors or key in storages or storage_key not in storages or not 0 <= rank <= MAX_RANK:
            raise reader.corrupt("a tensor's description is malformed")
        shape, strides = reader.ints(rank), reader.ints(rank)
        (offset,) = reader.ints(1)
        node = storages[storage_key]
        try:
            tensors[key] = tensor(node, node.dtype, offset, shape, strides, False)
        except CorruptError as error:
            raise reader.corrupt(error.what) from None
    return tensors


def _int(value: Any) -> int:
    """A key, which is a number or the text of one."""
    if type(value) is str and value.isascii() and value.isdigit() and len(value) < 32:
        return int(value)
    if type(value) is int:
        return value
    raise CorruptError(f"a key is a {type(value).__name__}, not a number")

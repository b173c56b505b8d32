"""The `.metadata` pickle of a DCP folder, as plain values; nothing that it names is imported.

torch reads it with the unrestricted `pickle.load`. Here only the dataclasses of DCP itself, in exactly
the shape that torch gives them, mean anything.

Source: torch/distributed/checkpoint/metadata.py, filesystem.py and planner.py of torch 2.13; before torch
2.0 the same classes lay under torch.distributed._shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, TypeGuard

from ptsave.core.dtypes import DType
from ptsave.core.nodes import GlobalUse, Opaque
from ptsave.core.tree import dotted
from ptsave.errors import CorruptError, LimitError
from ptsave.formats.dcp.chunks import Box
from ptsave.formats.pickle.inert import load
from ptsave.formats.pickle.shapes import UNKNOWN, Budget, Known, Shapes
from ptsave.formats.torch.objects import NAMES, build

MAX_RANK = 64

_INT = {int}
_INT64_MAX = 2**63 - 1
_HINT = "the checkpoint's metadata is damaged; copy the folder again"
_DATACLASSES = (
    "Metadata",
    "TensorStorageMetadata",
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "TensorProperties",
    "MetadataIndex",
    "StorageMeta",
)
_HOMES = (
    "torch.distributed.checkpoint.metadata",
    "torch.distributed._shard.checkpoint.metadata",
    "torch.distributed._shard.sharded_tensor.metadata",
)
_FILESYSTEM_HOMES = (
    "torch.distributed.checkpoint.filesystem",
    "torch.distributed._shard.checkpoint.filesystem",
)


@dataclass(frozen=True, slots=True)
class TensorAbout:
    """What the metadata says about a tensor."""

    dtype: DType
    shape: tuple[int, ...]
    requires_grad: bool
    boxes: tuple[Box, ...]


class ItemLocation(NamedTuple):
    """The window of a file that an item fills."""

    file_name: str
    offset_bytes: int
    num_bytes: int
    transforms: tuple[str, ...]
    """What the item's bytes went through before they were written (compression)."""


BYTES_PER_ROOM = 4 * 1024 * 1024
"""For each so many bytes of metadata, the usual caps of a pickle once more. Torch writes 200 bytes and 65
units for a tensor or a chunk, so 40,000 of them would exceed the caps for a state dict."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """A DCP folder's table of contents."""

    items: dict[str, TensorAbout | None]
    """By fully qualified name, in the file's order; None for what is not a tensor."""
    places: dict[tuple[str, tuple[int, ...] | None], ItemLocation]
    """By name and the chunk's offsets (None for what is not a tensor)."""
    paths: dict[str, tuple[str | int, ...]]
    """The path in the nested state dict of each name that was flattened."""
    globals: Mapping[str, GlobalUse]
    notes: list[str]


def parse_metadata(data: bytes, where: str) -> Metadata:
    """Interpret the pickle.

    Raises: CorruptError when it is not the metadata of a checkpoint; LimitError.
    """
    room = 1 + len(data) // BYTES_PER_ROOM
    loaded = load(data, 0, Shapes(_ALL_NAMES, _build, None, room), where, is_whole=True)
    try:
        fields = _fields(loaded.root, "Metadata")
        # what is done with is let go, so that the table is not in memory twice
        places = _unique(map(_place, _table(fields.pop("storage_data"))))
        items = {_text(name): _item(about) for name, about in _table(fields.pop("state_dict_metadata"))}
        paths = _paths(fields.get("planner_data"))
    except _ShapeError as error:
        raise CorruptError(
            f"the file is not the metadata of a DCP checkpoint: {error}", where, _HINT
        ) from None
    except KeyError as error:
        raise CorruptError(f"the metadata has no {error.args[0]}", where, _HINT) from None
    return Metadata(items, places, paths, loaded.globals, loaded.notes)


class _ShapeError(Exception):
    """The metadata has something in a place where torch puts something else."""


class _Part(Opaque):
    """An object of one of DCP's dataclasses, of which there are three for each chunk."""

    def __init__(self, name: str) -> None:
        self.name = name  # all else is as the class has it


def _build(target: Any, state: Any, budget: Budget) -> bool:
    if type(target) is _Part and target.state is None:
        target.state = state
        return True
    return build(target, state, budget)


def _made_empty(name: str) -> Known:
    """A dataclass that the pickle makes without arguments, and whose attributes it sets afterwards."""

    def make(args: tuple[Any, ...], budget: Budget) -> Any:
        budget.spend(4)
        return UNKNOWN if args else _Part(name)

    return Known(name, make, new=True)


def _made_of_values(name: str) -> Known:
    """An enum member or a path: made of plain values, with no effect."""

    def make(args: tuple[Any, ...], budget: Budget) -> Any:
        budget.spend(4)
        return Opaque(name, args) if all(type(arg) in (str, int) for arg in args) else UNKNOWN

    return Known(name, make)


_NAMES: dict[str, Known] = {
    **{f"{home}.{name}": _made_empty(name) for home in _HOMES for name in _DATACLASSES},
    **{
        f"{home}.{name}": _made_empty(name)
        for home in _FILESYSTEM_HOMES
        for name in ("_StorageInfo", "_StoragePrefix")
    },
    **{
        f"{home}.{name}": _made_of_values(name)
        for home in _HOMES
        for name in ("_MEM_FORMAT_ENCODING", "MEM_FORMAT_ENCODING")
    },
    **{
        f"{home}.{name}": _made_of_values(f"pathlib.{name}")
        for home in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
}
_ALL_NAMES = NAMES | _NAMES


def _fields(node: Any, name: str) -> dict[str, Any]:
    """The attributes of one of DCP's dataclasses."""
    if not isinstance(node, Opaque) or node.name != name or node.args or node.items:
        raise _ShapeError(f"there is no {name} where one should be")
    if node.state is None:
        return {}
    if not isinstance(node.state, dict):
        raise _ShapeError(f"a {name} has malformed attributes")
    return node.state


def _table(value: Any) -> Any:
    if not isinstance(value, dict):
        raise _ShapeError("there is no dict where one should be")
    return value.items()


def _text(value: Any) -> str:
    if type(value) is not str:
        raise _ShapeError("a name is not text")
    return value


def _is_numbers(value: Any) -> TypeGuard[tuple[int, ...]]:
    if type(value) is not tuple or not {*map(type, value)} <= _INT:
        return False
    return not value or (min(value) >= 0 and max(value) <= _INT64_MAX)


def _item(node: Any) -> TensorAbout | None:
    if isinstance(node, Opaque) and node.name == "BytesStorageMetadata":
        return None
    fields = _fields(node, "TensorStorageMetadata")
    shape = fields["size"]
    if not _is_numbers(shape) or prod(filter(None, shape)) > _INT64_MAX:
        raise _ShapeError("a tensor's size is malformed")
    if len(shape) > MAX_RANK:
        raise LimitError("rank", MAX_RANK, len(shape))
    dtype, requires_grad = _properties(fields["properties"])
    chunks = fields["chunks"]
    if type(chunks) is not list:
        raise _ShapeError("a tensor's chunks are malformed")
    distinct = {id(chunk): chunk for chunk in chunks}  # a small file can have one stand there a million times
    read = {key: _box(chunk) for key, chunk in distinct.items()}
    return TensorAbout(dtype, shape, requires_grad, tuple(read[id(chunk)] for chunk in chunks))


def _properties(node: Any) -> tuple[DType, bool]:
    """(dtype, requires_grad) of a `TensorProperties`, whose state is a tuple."""
    if not isinstance(node, Opaque) or node.name != "TensorProperties" or type(node.state) is not tuple:
        raise _ShapeError("a tensor's properties are malformed")
    if len(node.state) != 5 or not isinstance(node.state[0], DType):
        raise _ShapeError("a tensor's dtype is malformed")
    return node.state[0], node.state[2] is True


def _box(node: Any) -> Box:
    fields = _fields(node, "ChunkStorageMetadata")
    offsets, sizes = fields["offsets"], fields["sizes"]
    if not _is_numbers(offsets) or not _is_numbers(sizes):
        raise _ShapeError("a chunk is malformed")
    return Box(offsets, sizes)


def _place(item: tuple[Any, Any]) -> tuple[tuple[str, tuple[int, ...] | None], ItemLocation]:
    key, value = item
    index = _fields(key, "MetadataIndex")
    offsets = index.get("offset")
    if offsets is not None and not _is_numbers(offsets):
        raise _ShapeError("a chunk's index is malformed")
    info = _fields(value, "_StorageInfo")
    start, length = info["offset"], info["length"]
    if not _is_numbers((start, length)):
        raise _ShapeError("an item's place in its file is malformed")
    place = ItemLocation(
        _text(info["relative_path"]), start, length, _transforms(info.get("transform_descriptors"))
    )
    return (_text(index["fqn"]), offsets), place


def _unique(
    items: Iterable[tuple[tuple[str, tuple[int, ...] | None], ItemLocation]],
) -> dict[tuple[str, tuple[int, ...] | None], ItemLocation]:
    places: dict[tuple[str, tuple[int, ...] | None], ItemLocation] = {}
    for key, place in items:
        if places.setdefault(key, place) is not place:
            raise _ShapeError(f"it says twice where {key[0][:60]!r} lies")
    return places


def _transforms(value: Any) -> tuple[str, ...]:
    if not value:
        return ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise _ShapeError("an item's transforms are malformed")
    return tuple(value)


def _paths(value: Any) -> dict[str, tuple[str | int, ...]]:
    """`planner_data`: what `flatten_state_dict` did; empty for a state dict that was flat."""
    if not isinstance(value, dict):
        return {}
    paths: dict[str, tuple[str | int, ...]] = {}
    for name, path in value.items():
        if type(path) is not tuple or not path or not all(type(key) in (str, int) for key in path):
            raise _ShapeError("the path of an item is malformed")
        if dotted(path) != _text(name):
            # dcp.load finds items by the names of its own state dict, and never looks here
            raise _ShapeError(f"it gives {name[:60]!r} the path of another item")
        paths[name] = path
    return paths

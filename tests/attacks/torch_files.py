"""Small builders of torch's own containers, from parts that may lie."""

from __future__ import annotations

import json
import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .pickles import Call, Name, New, Pers, dump
from .zips import Entry, zip_bytes

FOUR = struct.pack("<4f", 0, 1, 2, 3)
"""The bytes of the float32 tensor that most attacks carry."""
REBUILD = Name("torch._utils", "_rebuild_tensor_v2")


def storage(kind: str = "FloatStorage", key: Any = "0", numel: Any = 4, location: Any = "cpu") -> Pers:
    return Pers(("storage", Name("torch", kind), key, location, numel))


def tensor(
    offset: Any = 0,
    size: Any = (4,),
    stride: Any = (1,),
    *,
    of: Any = None,
    rest: tuple[Any, ...] = (False, OrderedDict()),
) -> Call:
    """`_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`."""
    return Call(REBUILD, (storage() if of is None else of, offset, size, stride, *rest))


def pt_entries(
    pickle: bytes, records: Mapping[str, bytes] | None = None, top: str = "archive"
) -> list[Entry]:
    """The entries of a torch zip file as `torch.save` names them."""
    records = {"0": FOUR} if records is None else records
    return [
        Entry(f"{top}/data.pkl", pickle),
        Entry(f"{top}/byteorder", b"little"),
        *(Entry(f"{top}/data/{key}", data) for key, data in records.items()),
        Entry(f"{top}/version", b"3\n"),
    ]


def pt_raw(pickle: bytes, records: Mapping[str, bytes] | None = None) -> bytes:
    """A torch zip around any pickle bytes."""
    return zip_bytes(pt_entries(pickle, records))


def pkl(*code: bytes) -> bytes:
    """A torch zip around the opcodes of a pickle."""
    return pt_raw(b"".join(code))


def pt(root: Any, records: Mapping[str, bytes] | None = None) -> bytes:
    """A torch zip around a tree."""
    return pt_raw(dump(root), records)


MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM_INFO = {
    "protocol_version": 1001,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


def legacy(
    root: Any,
    keys: Any = ("0",),
    storages: Sequence[tuple[int, bytes]] = ((4, FOUR),),
    *,
    magic: Any = MAGIC,
    protocol: Any = 1001,
    info: Any = SYSTEM_INFO,
) -> bytes:
    """A file as torch before 1.6 wrote it; `root` may be pickle bytes, `storages` are (numel, bytes)."""
    pickle = root if isinstance(root, bytes) else dump(root)
    keys = list(keys) if isinstance(keys, tuple) else keys
    head = dump(magic) + dump(protocol) + dump(info) + pickle + dump(keys)
    return head + b"".join(struct.pack("<q", numel) + data for numel, data in storages)


def legacy_tensor(
    size: Any = (4,), stride: Any = (1,), numel: Any = 4, view: Any = None, key: Any = "0"
) -> Call:
    of = Pers(("storage", Name("torch", "FloatStorage"), key, "cpu", numel, view))
    return tensor(0, size, stride, of=of)


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file around a header: a tree, or text or bytes that are taken as they are."""
    if isinstance(header, str):
        header = header.encode()
    elif not isinstance(header, bytes):
        header = json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def info(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    """One tensor of a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


PLAIN_SAFETENSORS = safetensors({"w": info()}, FOUR)

META = "torch.distributed.checkpoint.metadata"
FILESYSTEM = "torch.distributed.checkpoint.filesystem"


def dcp_size(*sizes: Any) -> Call:
    return Call(Name("torch", "Size"), (tuple(sizes),))


def dcp_chunk(offsets: Any = (0,), sizes: Any = (4,)) -> New:
    state = {"offsets": dcp_size(*offsets), "sizes": dcp_size(*sizes)}
    return New(Name(META, "ChunkStorageMetadata"), state=state)


def dcp_tensor(size: Any = (4,), chunks: Sequence[Any] | None = None, dtype: Any = None) -> New:
    dtype = Name("torch", "float32") if dtype is None else dtype
    layout = Call(Name("torch.serialization", "_get_layout"), ("torch.strided",))
    memory = Call(Name(META, "_MEM_FORMAT_ENCODING"), (0,))
    properties = New(Name(META, "TensorProperties"), state=(dtype, layout, False, memory, False))
    chunks = [dcp_chunk()] if chunks is None else chunks
    state = {"properties": properties, "size": dcp_size(*size), "chunks": list(chunks)}
    return New(Name(META, "TensorStorageMetadata"), state=state)


def dcp_index(fqn: Any = "w", offset: Any = (0,), index: Any = 0) -> New:
    state = {"fqn": fqn, "offset": None if offset is None else dcp_size(*offset), "index": index}
    return New(Name(META, "MetadataIndex"), state=state)


def dcp_place(path: Any = "__0_0.distcp", offset: Any = 0, length: Any = None) -> New:
    length = len(DCP_ITEM) if length is None else length
    return New(
        Name(FILESYSTEM, "_StorageInfo"), state={"relative_path": path, "offset": offset, "length": length}
    )


def dcp_metadata(
    tensors: Mapping[str, Any] | None = None, places: Mapping[Any, Any] | None = None, **more: Any
) -> New:
    """The root of a `.metadata` pickle; `places` maps indices to places in the `.distcp` files."""
    state: dict[str, Any] = {
        "state_dict_metadata": {"w": dcp_tensor()} if tensors is None else dict(tensors),
        "planner_data": {"w": ("w",)},
        "storage_data": {dcp_index(): dcp_place()} if places is None else dict(places),
        "storage_meta": None,
        "version": "1.0.0",
    }
    return New(Name(META, "Metadata"), state=state | more)


DCP_ITEM = pt(tensor())
"""One item of a `.distcp` file: a small torch zip of one tensor."""


def dcp(folder: Path, metadata: Any = None, files: Mapping[str, bytes] | None = None) -> Path:
    """A DCP folder; `metadata` is a tree or pickle bytes."""
    home = folder / "checkpoint"
    home.mkdir()
    metadata = dcp_metadata() if metadata is None else metadata
    (home / ".metadata").write_bytes(metadata if isinstance(metadata, bytes) else dump(metadata))
    for name, data in ({"__0_0.distcp": DCP_ITEM} if files is None else files).items():
        (home / name).write_bytes(data)
    return home


def sharded(folder: Path, index: Any = None, files: Mapping[str, bytes] | None = None) -> Path:
    """A sharded safetensors folder; `index` is a tree, or text that is taken as it is."""
    home = folder / "model"
    home.mkdir()
    if index is None or isinstance(index, Mapping):
        index = json.dumps({"metadata": {"total_size": 16}, "weight_map": index or {"w": SHARD}})
    (home / "model.safetensors.index.json").write_text(index)
    for name, data in ({SHARD: PLAIN_SAFETENSORS} if files is None else files).items():
        (home / name).write_bytes(data)
    return home


SHARD = "model-00001-of-00001.safetensors"

"""What is read of GGUF files, against what gguf-py wrote and reads."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quantize

import ptsave
from ptsave.core.values.gather import contiguous
from ptsave.errors import CorruptError, LimitError, LossyError, UnreadableError
from ptsave.formats import open_checkpoint
from ptsave.formats.gguf.types import BLOCKS, DTYPES
from ptsave.formats.kinds.packed import MAX_OBJECTS
from ptsave.verbs.checks.subject import Subject
from ptsave.verbs.checks.whole import whole


def bytes_of(entry: Any) -> bytes:
    storage, offset_bytes = contiguous(entry)
    buffer = bytearray(entry.num_bytes)
    storage.read_into(offset_bytes, memoryview(buffer))
    return bytes(buffer)


def values(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def written(
    path: Path, tensors: dict[str, Any], order: GGUFEndian = GGUFEndian.LITTLE, **metadata: Any
) -> Path:
    """A file of gguf-py's. `tensors`: arrays, or (array of blocks, type)."""
    writer = GGUFWriter(path, "llama", endianess=order)
    for key, value in metadata.items():
        key = key.replace("__", ".")
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for name, value in tensors.items():
        if isinstance(value, tuple):
            writer.add_tensor(name, value[0], raw_dtype=value[1])
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


ARRAYS = {
    "float32": values(3, 5),
    "float16": values(2, 3, 4).astype(np.float16),
    "float64": values(7).astype(np.float64),
    "int8": np.arange(-3, 3, dtype=np.int8),
    "int16": np.arange(6, dtype=np.int16).reshape(2, 3),
    "int32": np.arange(6, dtype=np.int32),
    "int64": np.arange(6, dtype=np.int64).reshape(3, 2),
}


@pytest.mark.parametrize("order", GGUFEndian, ids=lambda order: order.name.lower())
def test_every_dtype(order: GGUFEndian, tmp_path: Path) -> None:
    tensors = {name: array.copy() for name, array in ARRAYS.items()}  # the writer swaps their bytes in place
    path = written(tmp_path / "m.gguf", tensors, order)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "gguf"
        assert {n: (e.dtype.name, e.shape) for n, e in checkpoint.tensors.items()} == {
            name: (name, array.shape) for name, array in ARRAYS.items()
        }
        for name, entry in checkpoint.tensors.items():
            assert bytes_of(entry) == ARRAYS[name].tobytes()
        assert not checkpoint.accounts.left_out
        assert checkpoint.notes == [f"GGUF of version 3, {order.name.lower()}-endian"]


def test_bfloat16_is_converted_bit_by_bit(tmp_path: Path) -> None:
    array = quantize(values(4, 8), GGMLQuantizationType.BF16)
    path = written(tmp_path / "m.gguf", {"w": (array, GGMLQuantizationType.BF16)})
    ptsave.convert(path, tmp_path / "m.pt")
    made = torch.load(tmp_path / "m.pt")["w"]
    assert (made.dtype, made.shape) == (torch.bfloat16, (4, 8))
    assert made.view(torch.uint8).numpy().tobytes() == array.tobytes()


QUANTIZED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0")


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_tensors_are_listed_as_their_types(name: str, tmp_path: Path) -> None:
    kind = GGMLQuantizationType[name]
    array = quantize(values(4, 256), kind)
    path = written(tmp_path / "m.gguf", {"w": (array, kind), "b": values(4)})
    (theirs,) = (tensor for tensor in GGUFReader(path).tensors if tensor.name == "w")
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.data["w"].name == f"gguf.{name}"
        assert checkpoint.data["w.shape"] == (4, 256) == tuple(reversed(theirs.shape.tolist()))
        blocks = checkpoint.tensors[f"w.{name}"]
        assert (blocks.shape, bytes_of(blocks)) == (theirs.data.shape, theirs.data.tobytes())
        assert blocks.num_bytes == theirs.n_bytes


def test_quantized_tensors_are_not_converted_unasked(tmp_path: Path) -> None:
    array = quantize(values(4, 256), GGMLQuantizationType.Q8_0)
    path = written(tmp_path / "m.gguf", {"w": (array, GGMLQuantizationType.Q8_0), "b": values(4)})
    for name in ("m.safetensors", "m.pt", "m.npz"):
        with pytest.raises(LossyError, match=r"gguf\.Q8_0"):
            ptsave.convert(path, tmp_path / name)
        done = ptsave.convert(path, tmp_path / name, extras="drop")
        assert {"w", "w.Q8_0"} <= {*done.dropped}
        with open_checkpoint(tmp_path / name) as checkpoint:
            assert [*checkpoint.tensors] == ["b"]
    ptsave.convert(path, tmp_path / "kept.safetensors", extras="keep")
    with open_checkpoint(tmp_path / "kept.safetensors") as checkpoint:
        assert bytes_of(checkpoint.tensors["w.Q8_0"]) == array.tobytes()


def test_a_changed_block_is_a_difference(tmp_path: Path) -> None:
    array = quantize(values(4, 256), GGMLQuantizationType.Q8_0)
    a = written(tmp_path / "a.gguf", {"w": (array, GGMLQuantizationType.Q8_0)})
    data = bytearray(a.read_bytes())
    data[-1] ^= 1
    (tmp_path / "b.gguf").write_bytes(data)
    assert ptsave.verify(a, against=a, checks=["against"]).is_yes
    assert not ptsave.verify(a, against=tmp_path / "b.gguf", checks=["against"]).is_yes


def test_metadata_of_every_type(tmp_path: Path) -> None:
    metadata = {
        "general__name": "a name",
        "llama__block_count": 2,
        "llama__rope__freq_base": 10000.0,
        "tokenizer__add_bos": True,
        "tokenizer__tokens": ["<s>", "ü", "\u2581a"],
        "tokenizer__scores": [0.5, -1.0],
        "tokenizer__types": [1, 2, 3],
        "nested": [[1, 2], [3]],
    }
    path = written(tmp_path / "m.gguf", {"w": values(2)}, **metadata)
    with open_checkpoint(path) as checkpoint:
        found = dict(checkpoint.metadata)
    assert found.pop("general.architecture") == "llama"
    assert found.pop("general.name") == "a name"
    expected = {key.replace("__", "."): value for key, value in metadata.items() if key != "general__name"}
    assert {key: json.loads(text) for key, text in found.items()} == expected


def test_an_alignment_of_its_own(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(256)
    for name in "ab":
        writer.add_tensor(name, values(3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert bytes_of(checkpoint.tensors["b"]) == values(3).tobytes()
        assert not checkpoint.accounts.left_out


def test_the_types_are_those_of_gguf_py() -> None:
    for kind, (block, block_bytes) in GGML_QUANT_SIZES.items():
        if int(kind) in DTYPES:
            assert (block, block_bytes) == (1, DTYPES[int(kind)].itemsize)
        else:
            assert BLOCKS[int(kind)] == (kind.name, block, block_bytes)


# --- by hand ----------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def info(name: str = "w", sizes: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def gguf(*infos: bytes, data: bytes = bytes(32), keys: tuple[bytes, ...] = (), version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(keys)) + b"".join((*keys, *infos))
    return head + bytes(-len(head) % 32) + data


def opened(data: bytes, path: Path) -> Any:
    path.write_bytes(data)
    return open_checkpoint(path)


def test_version_2_is_read_and_1_is_not(tmp_path: Path) -> None:
    with opened(gguf(info(), version=2), tmp_path / "m") as checkpoint:
        assert checkpoint.tensors["w"].shape == (8,)
    for version in (0, 1, 4):
        with pytest.raises(UnreadableError, match=f"version {version}"):
            opened(gguf(info(), version=version), tmp_path / "m")


def test_a_type_of_tomorrow_is_listed_by_its_number(tmp_path: Path) -> None:
    with opened(gguf(info(kind=77), info("v", offset=32), data=bytes(64)), tmp_path / "m") as checkpoint:
        assert checkpoint.data["w"].name == "gguf.TYPE_77"
        assert checkpoint.tensors["w.TYPE_77"].num_bytes == 32
        assert checkpoint.tensors["v"].num_bytes == 32


def test_bytes_of_no_tensor_are_named(tmp_path: Path) -> None:
    data = gguf(info(), info("v", offset=96), data=bytes(128 + 64))
    with opened(data, tmp_path / "m") as checkpoint:
        named = [f.where for f in whole(Subject(checkpoint)) if f.level == "fail"]
    start = len(data) - 192
    assert named == [f"bytes {start + 32} to {start + 96}", f"bytes {start + 128} to {start + 192}"]


def test_there_is_a_cap_on_the_quantized_tensors_of_a_small_file(tmp_path: Path) -> None:
    infos = (info(f"{i}", (0,), 2) for i in range(MAX_OBJECTS + 1))
    with pytest.raises(LimitError, match="gguf_objects"):
        opened(gguf(*infos), tmp_path / "m")


def test_one_of_several_files_says_so(tmp_path: Path) -> None:
    key = text("split.count") + struct.pack("<IH", 2, 3)
    with opened(gguf(info(), keys=(key,)), tmp_path / "m") as checkpoint:
        assert checkpoint.dropped == ["what is in the 2 other files of the model, of which this is one"]


@pytest.mark.parametrize(
    ("says", "data"),
    {
        "which is not aligned": gguf(info(offset=16), data=bytes(64)),
        "share the bytes": gguf(info(sizes=(16,)), info("v", offset=32), data=bytes(64)),
        "two tensors are called": gguf(info(), info(offset=32), data=bytes(64)),
        "or one has no name": gguf(info("")),
        "blocks of 32": gguf(info(kind=2)),
        "the alignment 3": gguf(info(), keys=(text("general.alignment") + struct.pack("<II", 4, 3),)),
        "two values under": gguf(info(), keys=2 * (text("k") + struct.pack("<II", 4, 3),)),
        "unknown type 13": gguf(info(), keys=(text("k") + struct.pack("<II", 13, 3),)),
        "truncated": gguf(info(sizes=(9,))),
    }.items(),
)
def test_what_is_wrong_is_named(says: str, data: bytes, tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match=says) as caught:
        opened(data, tmp_path / "m")
    assert caught.value.hint

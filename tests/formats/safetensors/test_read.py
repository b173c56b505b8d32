"""safetensors files, checked against what the safetensors library reads and refuses."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file, save_model

from ptsave.core.dtypes import TABLE
from ptsave.errors import CorruptError, LimitError, UnknownFormatError
from ptsave.formats import open_checkpoint
from ptsave.formats.safetensors import read as safetensors_read
from ptsave.storage.local.file import LocalFile
from ptsave.storage.windows import FileStorage
from tests.formats.torch_reading import assert_same

DTYPES = [getattr(torch, dtype.name) for dtype in TABLE if dtype.safetensors and hasattr(torch, dtype.name)]


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    """A file with this header: JSON text as it is, anything else as JSON spells it."""
    text = header if isinstance(header, (bytes, str)) else json.dumps(header)
    raw = text.encode() if isinstance(text, str) else text
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def info(dtype: str = "U8", shape: Any = (2,), offsets: Any = (0, 2)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_every_dtype_and_odd_shapes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    raw = torch.randint(0, 2, (3, 4, 16), dtype=torch.uint8)
    state = {str(dtype): raw.clone().view(dtype) for dtype in DTYPES}
    state |= {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 5), "näme\n\x1b[31m": torch.ones(1)}
    save_file(state, path, metadata={"format": "pt", "note": "hello"})
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "safetensors"
        assert checkpoint.metadata == {"format": "pt", "note": "hello"}
        loaded = load_file(path)
        assert checkpoint.tensors.keys() == loaded.keys()
        for name, entry in checkpoint.tensors.items():
            assert_same(entry, loaded[name])
            assert isinstance(entry.storage, FileStorage)
            assert entry.storage.num_bytes == entry.num_bytes


def test_no_tensors_at_all(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
        assert checkpoint.tensors == {}


def test_any_order_in_the_header(tmp_path: Path) -> None:
    header = {"b": info(offsets=(2, 4)), "none": info(shape=(0, 7), offsets=(2, 2)), "a": info()}
    with open_checkpoint(write(tmp_path / "m", header, b"aabb")) as checkpoint:
        assert list(checkpoint.tensors) == ["b", "none", "a"]
        assert checkpoint.tensors["b"].storage.num_bytes == 2


def test_what_the_library_accepts_around_the_header(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(124):
        deep = [deep]
    text = json.dumps({"__metadata__": None, "a": info() | {"more": [[1]], "deep": deep, "wide": "é"}})
    assert list(load(write(tmp_path / "m", f"{text}   ", b"ab").read_bytes())) == ["a"]
    with open_checkpoint(write(tmp_path / "m", f" {text}   ", b"ab")) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]


GOOD = info()
WRONG = {
    "two keys": b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{}}',
    "two keys 'shape'": b'{"a":{"dtype":"U8","shape":[1],"shape":[2],"data_offsets":[0,2]}}',
    "not JSON": b'{"a":',
    "not JSON (invalid start byte)": b'{"\xff":1}',
    "nests too deeply": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "not Unicode": b'{"\\ud800":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}',
    "negative zero": b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[-0,2]}}',
    "malformed dtype": {"a": info(shape=(2.0,))},
    "'bool' has a malformed": {"bool": info(shape=(True, 2))},
    "'text' has a malformed": {"text": info(offsets=("0", 2))},
    "'few' has a malformed": {"few": info(offsets=(2,))},
    "'missing' has a malformed": {"missing": {"dtype": "U8", "shape": [2]}},
    "'list' has a malformed": {"list": ["U8", [2], [0, 2]]},
    "no tensor can have": {"a": info(shape=(-2, -1))},
    "'huge' has a shape": {"huge": info(shape=(2**62, 4, 0), offsets=(0, 0))},
    "needs 8 bytes, and has 2": {"a": info("F32")},
    "odd number of 4-bit": {"a": info("F4", (2, 1), (0, 1))},
    "hole of 1 bytes": {"a": info(offsets=(1, 3))},
    "overlaps": {"a": info(), "b": info(offsets=(1, 3))},
    "1 bytes follow": {"a": info(shape=(1,), offsets=(0, 1))},
    "1 bytes of tensors are missing": {"a": info(shape=(3,), offsets=(0, 3))},
    "__metadata__ is not": {"__metadata__": {"a": 1}, "a": GOOD},
}


@pytest.mark.parametrize(("message", "header"), WRONG.items(), ids=WRONG)
def test_what_is_refused(message: str, header: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "m", header, b"ab")
    with pytest.raises(CorruptError) as error:
        open_checkpoint(path)
    assert message in str(error.value)


def test_an_unknown_dtype_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormatError, match="dtype 'F6_E2M3'"):
        open_checkpoint(write(tmp_path / "m", {"a": info("F6_E2M3")}, b"ab"))


def test_the_caps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m"
    path.write_bytes(struct.pack("<Q", 100_000_001) + b'{"')
    with pytest.raises(LimitError, match="header_bytes = 100000000"):
        open_checkpoint(path)
    with pytest.raises(LimitError, match="rank = 64"):
        open_checkpoint(write(path, {"a": info(shape=(1,) * 64 + (2,))}, b"ab"))
    with pytest.raises(LimitError, match="json_values"):
        open_checkpoint(write(path, b"{" + b"[]," * 2_600_000 + b"}"))
    monkeypatch.setattr(safetensors_read, "MAX_TENSORS", 1)
    with pytest.raises(LimitError, match="tensors = 1"):
        open_checkpoint(write(path, {"a": info(), "b": info(offsets=(2, 4))}, b"aabb"))


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_file({"a": torch.ones(3), "b": torch.ones(2)}, path)
    data = path.read_bytes()
    for num_bytes in range(len(data)):
        path.write_bytes(data[:num_bytes])
        with LocalFile(path) as file, pytest.raises(CorruptError):
            safetensors_read.read_header(file)


def record(**fields: Any) -> dict[str, str]:
    return {"ptsave": json.dumps({"schema_version": 1, **fields})}


def test_ties_of_the_record_come_back_in_its_order(tmp_path: Path) -> None:
    digests = {"algorithm": "xxh3_128", "tensors": {"b": "00", "tied": "00", "a": "00"}}
    metadata = record(aliases={"tied": "a"}, digests=digests) | {"tied": "a"}
    header = {"__metadata__": metadata, "a": info(), "b": info(offsets=(2, 4))}
    with open_checkpoint(write(tmp_path / "m", header, b"aabb")) as checkpoint:
        assert list(checkpoint.tensors) == ["b", "tied", "a"]
        assert checkpoint.tensors["tied"].view == checkpoint.tensors["a"].view
        assert checkpoint.record is not None
        assert checkpoint.metadata == {}
        assert checkpoint.notes == []


def test_ties_that_contradict_the_file(tmp_path: Path) -> None:
    header = {"__metadata__": record(aliases={"c": "d"}), "a": info(), "b": info(offsets=(2, 4))}
    with pytest.raises(CorruptError, match="which is missing"):
        open_checkpoint(write(tmp_path / "m", header, b"aabb"))


def test_names_that_save_model_left_out_are_restored_and_noted(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    save_model(model, str(tmp_path / "m"), metadata={"0.bias": "0.weight", "made by": "hand"})
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert checkpoint.tensors.keys() == model.state_dict().keys()
        assert checkpoint.tensors["1.weight"].view == checkpoint.tensors["0.weight"].view
        assert checkpoint.metadata == {"0.bias": "0.weight", "made by": "hand"}
        assert checkpoint.notes == [
            "1.weight is taken to be 0.weight: only one is stored, because they share memory"
        ]

"""Small sound checkpoints of every format, to be damaged byte by byte and bit by bit."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.values.gather import contiguous
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.writers import BY_NAME
from ptsave.storage.windows import FileStorage
from ptsave.verbs.convert import convert
from ptsave.verbs.edit import Edits

from . import gguf_lies, protobuf
from . import torch_files as tf
from .old_formats import pt2, pt2_weight, script
from .pickles import Name, New
from .zips import DEFLATED, zip_bytes


@dataclass(frozen=True)
class Sample:
    """A sound checkpoint."""

    path: Path
    parts: tuple[Path, ...]
    """The files that are worth damaging."""
    is_protected: bool
    """Whether checksums in it cover every tensor: its names, dtypes, shapes and bytes."""
    compressed: frozenset[str] = frozenset()
    """The storages that are deflated: torch.load(mmap=True) takes their compressed bytes for numbers."""


Contents = tuple[dict[str, tuple[str, tuple[int, ...], bytes]], dict[str, str]]


def contents(checkpoint: Checkpoint) -> Contents:
    """Everything that a reader hands out: the tensors with their bytes, and the other leaves."""
    tensors = {}
    for name, entry in checkpoint.tensors.items():
        storage, offset_bytes = contiguous(entry)
        buffer = bytearray(entry.num_bytes)
        storage.read_into(offset_bytes, memoryview(buffer))
        tensors[name] = (entry.dtype.name, entry.shape, bytes(buffer))
    return tensors, {name: repr(value) for name, value in checkpoint.data.items()}


def spans(checkpoint: Checkpoint) -> Iterator[tuple[Path, int, int]]:
    """Where tensors lie as they are: the file, the first byte and the number of bytes."""
    for entry in checkpoint.tensors.values():
        storage = entry.storage
        if isinstance(storage, FileStorage):
            yield storage.file.path, storage.offset_bytes, storage.num_bytes


# Built from parts, without torch


def _file(name: str, data: bytes, is_protected: bool = False, *compressed: str) -> Callable[[Path], Sample]:
    def make(folder: Path) -> Sample:
        path = folder / name
        path.write_bytes(data)
        return Sample(path, (path,), is_protected, frozenset(compressed))

    return make


def _onnx() -> bytes:
    """A model with a tensor as it is, one of varints (150 and 2), and one in a graph in its graph."""
    inner = protobuf.graph(protobuf.tensor("k", (1,), 2, b"a"))
    node = protobuf.node("If", protobuf.data(1, "then") + protobuf.data(6, inner), name="n")
    numbers = protobuf.tensor("v", (2,), 7, raw=None, more=protobuf.data(7, b"\x96\1\2"))
    return protobuf.model(protobuf.tensor(), numbers, nodes=(node,))


def _beside(folder: Path) -> Sample:
    """An ONNX model whose tensor lies in another file."""
    home = folder / "model"
    home.mkdir()
    (home / "w.data").write_bytes(tf.FOUR)
    path = home / "a.onnx"
    path.write_bytes(protobuf.model(protobuf.external(length="16"), protobuf.tensor("v")))
    return Sample(path, (path, home / "w.data"), False)


def _all(home: Path, is_protected: bool = False) -> Sample:
    return Sample(home, tuple(sorted(path for path in home.iterdir() if path.is_file())), is_protected)


def _deflated() -> bytes:
    entries = tf.pt_entries(tf.dump(OrderedDict(w=tf.tensor(), n=3)))
    for entry in entries:
        entry.method = DEFLATED
    return zip_bytes(entries)


BUILT: dict[str, Callable[[Path], Sample]] = {
    "pt": _file("a.pt", tf.pt(OrderedDict(w=tf.tensor(), n=3)), True),
    "pt_deflated": _file("a.pt", _deflated(), True, "archive/data/0"),
    "legacy": _file("a.pt", tf.legacy(OrderedDict(w=tf.legacy_tensor(), n=3))),
    "safetensors": _file("a.safetensors", tf.PLAIN_SAFETENSORS),
    "sharded": lambda folder: _all(tf.sharded(folder)),
    "dcp": lambda folder: _all(tf.dcp(folder)),
    "torchscript": _file("a.pt", script(New(Name("__torch__", "M"), state={"w": tf.tensor()})), True),
    "onnx": _file("a.onnx", _onnx()),
    "onnx_external": lambda folder: _beside(folder),
    "gguf": _file("a.gguf", gguf_lies.SOUND),
    "pt2": _file(
        "a.pt2",
        pt2({"data/weights/model_weights_config.json": pt2_weight(), "data/weights/weight_0": tf.FOUR}),
        True,
    ),
}


# Made by the libraries themselves


def _state() -> Any:
    import torch

    return OrderedDict(w=torch.arange(6.0).reshape(2, 3), v=torch.tensor([1, -1], dtype=torch.int16))


def torch_pt(folder: Path) -> Sample:
    import torch

    torch.save(_state(), folder / "a.pt")
    return Sample(folder / "a.pt", (folder / "a.pt",), True)


def torch_legacy(folder: Path) -> Sample:
    import torch

    torch.save(_state(), folder / "a.pt", _use_new_zipfile_serialization=False)
    return Sample(folder / "a.pt", (folder / "a.pt",), False)


def torch_deflated(folder: Path) -> Sample:
    made = torch_pt(folder).path
    packed = folder / "packed.pt"
    with zipfile.ZipFile(made) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(zipfile.ZipInfo(name), source.read(name), zipfile.ZIP_DEFLATED)
        storages = frozenset(name for name in source.namelist() if "/data/" in name)
    return Sample(packed, (packed,), True, storages)


def torch_module(folder: Path) -> Sample:
    import torch

    torch.save(torch.nn.Linear(2, 1), folder / "a.pt")
    return Sample(folder / "a.pt", (folder / "a.pt",), True)


def torch_training(folder: Path) -> Sample:
    import torch

    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = {
        "epoch": 3,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
    }
    torch.save(made, folder / "a.pt")
    return Sample(folder / "a.pt", (folder / "a.pt",), True)


def torch_script(folder: Path) -> Sample:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Identity()), folder / "a.pt")
    return Sample(folder / "a.pt", (folder / "a.pt",), True)


def hf_safetensors(folder: Path) -> Sample:
    from safetensors.torch import save_file

    save_file(dict(_state()), folder / "a.safetensors", {"format": "pt"})
    return Sample(folder / "a.safetensors", (folder / "a.safetensors",), False)


def hf_sharded(folder: Path) -> Sample:
    from safetensors.torch import save_file

    home = folder / "model"
    home.mkdir()
    weight_map = {}
    for i, (name, tensor) in enumerate(_state().items(), 1):
        shard = f"model-{i:05}-of-00002.safetensors"
        save_file({name: tensor}, home / shard, {"format": "pt"})
        weight_map[name] = shard
    index = {"metadata": {"total_size": 28}, "weight_map": weight_map}
    (home / "model.safetensors.index.json").write_text(json.dumps(index))
    return _all(home)


def numpy_npz(folder: Path) -> Sample:
    import numpy as np

    np.savez(folder / "a.npz", **{name: tensor.numpy() for name, tensor in _state().items()})
    return Sample(folder / "a.npz", (folder / "a.npz",), True)


def numpy_npz_compressed(folder: Path) -> Sample:
    import numpy as np

    np.savez_compressed(folder / "a.npz", w=_state()["w"].numpy())
    return Sample(folder / "a.npz", (folder / "a.npz",), True)


def onnx_model(folder: Path) -> Sample:
    from onnx import TensorProto, helper, numpy_helper

    state = {name: tensor.numpy() for name, tensor in _state().items()}
    initializers = [numpy_helper.from_array(array, name) for name, array in state.items()]
    initializers.append(helper.make_tensor("i", TensorProto.INT64, [2], [1, -1]))
    node = helper.make_node(
        "Constant", [], ["y"], value=helper.make_tensor("", TensorProto.FLOAT, [1], [2.0])
    )
    port = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])
    path = folder / "a.onnx"
    path.write_bytes(
        helper.make_model(helper.make_graph([node], "g", [], [port], initializers)).SerializeToString()
    )
    return Sample(path, (path,), False)


def gguf_file(folder: Path) -> Sample:
    from gguf import GGUFWriter

    path = folder / "a.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_array("tokens", ["a", "b"])
    for name, tensor in _state().items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Sample(path, (path,), False)


def torch_dcp(folder: Path) -> Sample:
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": dict(_state())}, checkpoint_id=folder / "checkpoint")
    return _all(folder / "checkpoint")


def recorded(format: str, name: str) -> Callable[[Path], Sample]:
    """What ptsave itself writes, with its record."""

    def make(folder: Path) -> Sample:
        source = torch_pt(folder).path
        destination = folder / name
        with open_checkpoint(source) as checkpoint:
            convert([checkpoint], destination, BY_NAME[format], WriteOptions(), Edits())
        if destination.is_dir():
            return _all(destination, True)
        return Sample(destination, (destination,), True)

    return make


LIBRARIES: dict[str, Callable[[Path], Sample]] = {
    make.__name__: make
    for make in (
        torch_pt,
        torch_legacy,
        torch_deflated,
        torch_module,
        torch_training,
        torch_script,
        hf_safetensors,
        hf_sharded,
        numpy_npz,
        numpy_npz_compressed,
        torch_dcp,
        onnx_model,
        gguf_file,
    )
}
RECORDED = {"pt": "b.pt", "safetensors": "b.safetensors", "safetensors-sharded": "b", "dcp": "b"}
LIBRARIES |= {
    f"recorded_{format}": recorded(format, name) for format, name in RECORDED.items() if format in BY_NAME
}

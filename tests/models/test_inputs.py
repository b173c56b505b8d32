"""Inputs made, read from files and fitted to forward(); outputs named and written."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from ptsave.config.input_tables import parse_inputs
from ptsave.config.inputs import InputsSpec, RandomTensor
from ptsave.config.model import ConfigPlace
from ptsave.core.dtypes import BY_NAME
from ptsave.errors import (
    CorruptError,
    ExistsError,
    MissingFileError,
    PtsaveError,
    UnreadableError,
    UsageError,
)
from ptsave.models.inputs import (
    check_outputs,
    inputs_from_file,
    make_inputs,
    output_tensors,
    random_tensor,
    read_tensors,
    write_tensors,
)


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        return x * scale if y is None else x + y * scale


class Anything(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs


class PositionalOnly(nn.Module):
    def forward(self, x: Tensor, mask: Tensor, /) -> Tensor:
        return x * mask


def spec(value: Any, folder: Path = Path()) -> InputsSpec:
    return parse_inputs(value, ConfigPlace("c.toml", ("inputs",)), folder)


def refusal(value: Any, model: nn.Module, folder: Path = Path()) -> UsageError:
    with pytest.raises(UsageError) as caught:
        make_inputs(spec(value, folder), model)
    assert caught.value.hint
    return caught.value


# --- made -------------------------------------------------------------------------------------------


def test_pinned() -> None:
    """What behaviour records rest on: these numbers may never change."""
    x = random_tensor(RandomTensor((2, 2)), "x")
    assert x.dtype == torch.float32
    assert x.tolist() == [
        [-0.21553827822208405, -0.47432759404182434],
        [-0.17411957681179047, 1.2593779563903809],
    ]
    assert random_tensor(RandomTensor((4,), BY_NAME["int64"], 3, 0, 1000), "input_ids").tolist() == [
        269,
        230,
        570,
        887,
    ]


@pytest.mark.parametrize(
    "name",
    [
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
        "complex64",
        "complex128",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint64",
        "uint32",
        "uint16",
        "uint8",
        "bool",
    ],
)
def test_every_dtype(name: str) -> None:
    parsed = spec({"x": {"shape": [3, 5], "dtype": name}}).named["x"]
    assert isinstance(parsed, RandomTensor)
    tensor = random_tensor(parsed, "x")
    assert tensor.dtype == getattr(torch, name)
    assert tensor.shape == (3, 5)
    assert len(set(map(str, tensor.flatten().tolist()))) > 1
    assert random_tensor(RandomTensor((0, 3), BY_NAME[name]), "x").shape == (0, 3)
    assert random_tensor(RandomTensor((), BY_NAME[name]), "x").shape == ()


def test_narrow_floats_are_float32_rounded() -> None:
    wide = random_tensor(RandomTensor((100,)), "x")
    for name in ("float16", "bfloat16"):
        narrow = random_tensor(RandomTensor((100,), BY_NAME[name]), "x")
        assert torch.equal(narrow, wide.to(narrow.dtype))


def test_two_inputs_of_one_seed_are_not_the_same() -> None:
    made = make_inputs(spec({"x": {"shape": [3]}, "y": {"shape": [3]}}), Two())
    assert not torch.equal(made.kwargs["x"], made.kwargs["y"])
    args = make_inputs(spec([{"shape": [3]}, {"shape": [3]}]), Two()).args
    assert not torch.equal(*args)


def test_every_form(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.arange(3.0))
    np.savez(tmp_path / "two.npz", a=np.arange(2), b=np.arange(4))
    made = make_inputs(
        spec(
            {
                "data": {"data": [[1, 2], [3, 4]]},
                "floats": {"data": [1, 2.5]},
                "flags": {"data": [True, False]},
                "bytes": {"data": [1, 255], "dtype": "uint8"},
                "double": {"data": 0.1, "dtype": "float64"},
                "large": {"data": [2**64 - 1], "dtype": "uint64"},
                "complex": {"data": [0.1, 2], "dtype": "complex128"},
                "half": {"data": 3, "dtype": "float8_e4m3fn"},
                "plain": {"value": [1, "a", {"b": True}]},
                "dtype": {"value": {"_dtype_": "float16"}},
                "one": {"file": "one.npy"},
                "b": {"file": "two.npz", "key": "b"},
                "images": {"list": [{"shape": [1]}, {"shape": [2]}]},
                "batch": {"dict": {"x": {"shape": [1]}, "n": {"value": 3}}},
            },
            tmp_path,
        ),
        Anything(),
    )
    k = made.kwargs
    assert made.args == ()
    assert k["data"].dtype == torch.int64
    assert k["data"].tolist() == [[1, 2], [3, 4]]
    assert k["floats"].dtype == torch.float32
    assert k["flags"].dtype == torch.bool
    assert k["bytes"].tolist() == [1, 255]
    assert k["double"].item() == 0.1
    assert k["large"].tolist() == [2**64 - 1]
    assert k["complex"].tolist() == [0.1, 2]
    assert float(k["half"]) == 3.0
    assert k["half"].shape == ()
    assert k["plain"] == [1, "a", {"b": True}]
    assert k["dtype"] is torch.float16
    assert k["one"].tolist() == [0.0, 1.0, 2.0]
    assert k["b"].tolist() == [0, 1, 2, 3]
    assert [image.shape for image in k["images"]] == [(1,), (2,)]
    assert k["batch"]["n"] == 3


def test_positional() -> None:
    made = make_inputs(spec([{"shape": [2]}, {"data": [1.0, 2.0]}]), Two())
    assert len(made.args) == 2
    assert made.call(Two()).shape == (2,)


def test_names_of_positional_only_arguments() -> None:
    made = make_inputs(spec({"mask": {"data": [0.0]}, "x": {"data": [5.0]}}), PositionalOnly())
    assert [arg.tolist() for arg in made.args] == [[5.0], [0.0]]


@pytest.mark.parametrize(
    ("value", "what", "where", "hint"),
    [
        ({"z": {"shape": [1]}}, "forward() takes no 'z'", ".z", "known arguments of forward(): x, y, scale"),
        ({"X": {"shape": [1]}}, "forward() takes no 'X'", ".X", "did you mean 'x'?"),
        ({"y": {"shape": [1]}}, "missing a required argument: 'x'", "", "forward(x"),
        ([{"shape": [1]}] * 3, "too many positional arguments", "", "forward(x"),
        ({"x": {"data": [256], "dtype": "float16"}, "y": {"data": [2**64]}}, "cannot become", ".y.data", ""),
        ({"x": {"data": [256], "dtype": "uint8"}}, "cannot become a tensor", ".x.data", ""),
        ({"x": {"list": [{"data": [2**64]}]}}, "cannot become a tensor", ".x.list.0.data", ""),
    ],
)
def test_refused(value: Any, what: str, where: str, hint: str) -> None:
    error = refusal(value, Two())
    assert what in error.what
    assert error.where == f"c.toml: inputs{where}"
    assert hint in error.hint


# --- from files -------------------------------------------------------------------------------------


def save(path: Path, tensors: dict[str, Tensor]) -> Path:
    write_tensors(path, tensors, overwrite=True)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_file_by_names(tmp_path: Path, suffix: str) -> None:
    x, y = torch.rand(3), torch.arange(3.0)
    made = inputs_from_file(save(tmp_path / f"in{suffix}", {"y": y, "x": x}), Two())
    assert made.args == ()
    assert torch.equal(made.call(Two()), x + y)


def test_a_checkpoint_is_as_good(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "in.pt")
    assert inputs_from_file(tmp_path / "in.pt", Two()).kwargs["x"].tolist() == [1.0, 1.0]


def test_a_file_without_names(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.ones((2, 3), np.float32))
    assert inputs_from_file(tmp_path / "in.npy", Two()).args[0].shape == (2, 3)
    np.savez(tmp_path / "in.npz", np.zeros(1), np.ones(1))
    made = inputs_from_file(tmp_path / "in.npz", Two())
    assert [arg.tolist() for arg in made.args] == [[0.0], [1.0]]


def test_a_file_beside_tables(tmp_path: Path) -> None:
    save(tmp_path / "in.npz", {"x": torch.ones(2)})
    made = make_inputs(spec({"file": "in.npz", "y": {"data": [1.0, 1.0]}}, tmp_path), Two())
    assert made.call(Two()).tolist() == [2.0, 2.0]
    error = refusal({"file": "in.npz", "x": {"shape": [2]}}, Two(), tmp_path)
    assert "'x' is both in" in error.what


def test_unknown_names_in_a_file(tmp_path: Path) -> None:
    path = save(tmp_path / "in.safetensors", {"x": torch.ones(2), "scal": torch.ones(2)})
    with pytest.raises(UsageError) as caught:
        inputs_from_file(path, Two())
    assert caught.value.what == "forward() takes no 'scal'"
    assert caught.value.where == f"{path}: scal"
    assert caught.value.hint == "did you mean 'scale'?"


def test_keys_of_a_file(tmp_path: Path) -> None:
    save(tmp_path / "in.npz", {"aa": torch.ones(1), "b": torch.ones(1)})
    error = refusal({"x": {"file": "in.npz"}}, Two(), tmp_path)
    assert "holds 2 tensors" in error.what
    assert "aa, b" in error.hint
    error = refusal({"x": {"file": "in.npz", "key": "aaa"}}, Two(), tmp_path)
    assert error.where == "c.toml: inputs.x.key"
    assert error.hint == "did you mean 'aa'?"


@pytest.mark.parametrize("kind", ["C", "F", "big-endian", "bool", "strided"])
def test_layouts_of_npy(tmp_path: Path, kind: str) -> None:
    array = np.arange(12.0).reshape(3, 4)
    stored = {
        "C": array,
        "F": np.asfortranarray(array),
        "big-endian": array.astype(">f8"),
        "bool": array > 5,
        "strided": array[:, ::2],
    }[kind]
    np.save(tmp_path / "in.npy", stored)
    (tensor,) = read_tensors(tmp_path / "in.npy").values()
    assert tensor.tolist() == stored.tolist()


def test_nothing_in_a_file_runs(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.touch, (str(tmp_path / "ran"),))

    np.save(tmp_path / "in.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload()], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "in.npz", "w") as archive:
        archive.writestr("x.npy", buffer.getvalue())
    (tmp_path / "in.pt").write_bytes(pickle.dumps({"x": Payload()}))
    for name in ("in.npy", "in.npz", "in.pt"):
        with pytest.raises(PtsaveError):
            inputs_from_file(tmp_path / name, Two())
    assert not (tmp_path / "ran").exists()


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        read_tensors(tmp_path / "no.npz")
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(UnreadableError):
        read_tensors(tmp_path / "text.npy")
    np.save(tmp_path / "cut.npy", np.zeros(100))
    whole = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-1])
    with pytest.raises(CorruptError):
        read_tensors(tmp_path / "cut.npy")
    header = whole[:128].replace(b"(100,)", b"(10000000000000,)").replace(b" " * 11 + b"\n", b"\n")
    (tmp_path / "huge.npy").write_bytes(header + whole[128:])
    with pytest.raises(UnreadableError):
        read_tensors(tmp_path / "huge.npy")
    safetensors.torch.save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(UsageError, match="holds no tensors"):
        read_tensors(tmp_path / "empty.safetensors")


# --- outputs ----------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "left right")


@dataclass
class Out:
    loss: Tensor | None
    states: tuple[Tensor, ...]


def test_names_of_outputs() -> None:
    from transformers.modeling_outputs import BaseModelOutput  # a second of imports for one line

    t = torch.ones(1)
    assert list(output_tensors(t)) == ["output"]
    assert list(output_tensors((t, None, [t, t]))) == ["0", "2.0", "2.1"]
    assert list(output_tensors({"a": t, "b": {"c": t}, 3: t})) == ["a", "b.c", "3"]
    assert list(output_tensors(OrderedDict(z=t, a=t))) == ["z", "a"]
    assert list(output_tensors(Pair(t, (t,)))) == ["left", "right.0"]
    assert list(output_tensors(Out(None, (t, t)))) == ["states.0", "states.1"]
    assert list(output_tensors(BaseModelOutput(last_hidden_state=t, hidden_states=(t,)))) == [
        "last_hidden_state",
        "hidden_states.0",
    ]
    assert list(output_tensors({"a.b": t, "a": {"b": t}})) == ["a.b", "a.b~2"]
    assert output_tensors([3, 2.5, "text"])["1"].tolist() == 2.5
    assert output_tensors(None) == {}


def test_what_refers_to_itself_ends() -> None:
    loop: list[Any] = [torch.ones(1)]
    loop.append(loop)
    assert len(output_tensors(loop)) < 100


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_written_and_read(tmp_path: Path, suffix: str) -> None:
    shared = torch.arange(6.0)
    tensors = {
        "file": shared,
        "hidden_states.0": shared,
        "t": shared.reshape(2, 3).t(),
        "scalar": torch.tensor(True),
        "empty": torch.empty(0, 3, dtype=torch.int8),
        "c": torch.tensor([1 + 2j]).conj(),
        "sparse": torch.eye(2).to_sparse(),
        "grad": torch.ones(2, requires_grad=True),
    }
    path = save(tmp_path / f"out{suffix}", tensors)
    read = read_tensors(path)
    plain = safetensors.torch.load_file(path) if suffix == ".safetensors" else np.load(path)
    for name, tensor in tensors.items():
        expected = tensor.detach().to_dense()
        assert torch.equal(read[name], expected.resolve_conj())
        assert torch.equal(torch.as_tensor(plain[name]), expected.resolve_conj())


def test_bfloat16(tmp_path: Path) -> None:
    tensors = {"x": torch.rand(4).bfloat16()}
    assert torch.equal(read_tensors(save(tmp_path / "x.safetensors", tensors))["x"], tensors["x"])
    with pytest.raises(UsageError, match="NumPy has no bfloat16") as caught:
        write_tensors(tmp_path / "x.npz", tensors)
    assert ".safetensors" in caught.value.hint
    assert not (tmp_path / "x.npz").exists()


def test_npy_holds_one(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.npy", {"output": torch.arange(3)})
    assert np.load(tmp_path / "x.npy").tolist() == [0, 1, 2]
    with pytest.raises(UsageError, match="holds one tensor, and there are 2: a, b"):
        write_tensors(tmp_path / "y.npy", {"a": torch.ones(1), "b": torch.ones(1)})


def test_the_same_outputs_give_the_same_bytes(tmp_path: Path) -> None:
    for suffix in (".npz", ".safetensors", ".npy"):
        a = save(tmp_path / f"a{suffix}", {"x": torch.ones(3)}).read_bytes()
        assert a == save(tmp_path / f"b{suffix}", {"x": torch.ones(3)}).read_bytes()


def test_destinations_refused(tmp_path: Path) -> None:
    for name in ("x.txt", "x"):
        with pytest.raises(UsageError, match="does not say how to write"):
            check_outputs(tmp_path / name)
    path = tmp_path / "x.npz"
    path.write_bytes(b"old")
    with pytest.raises(ExistsError):
        check_outputs(path)
    with pytest.raises(ExistsError):
        write_tensors(path, {"x": torch.ones(1)})
    assert path.read_bytes() == b"old"
    check_outputs(path, overwrite=True)
    write_tensors(path, {"x": torch.ones(1)}, overwrite=True)
    assert read_tensors(path)["x"].tolist() == [1.0]

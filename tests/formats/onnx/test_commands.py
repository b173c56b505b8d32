"""ONNX models through the commands: into other formats, beside other checkpoints, and from an address."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper

import ptsave
from ptsave.cli import main
from ptsave.errors import LossyError
from ptsave.formats import open_checkpoint
from tests.attacks.samples import contents
from tests.servers.folders import folder
from tests.servers.serving import Server

from .models import model, save, save_external, tensor

STATE = {"fc.weight": np.arange(6, dtype="f4").reshape(2, 3), "fc.bias": np.ones(2, "f4")}


def saved(path: Path, state: dict[str, np.ndarray] = STATE) -> Path:  # type: ignore[type-arg]
    return save(model([numpy_helper.from_array(value, name) for name, value in state.items()]), path)


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.npz", "m.dcp"])
def test_initializers_go_into_every_format_and_are_the_same_there(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx")
    ptsave.convert(path, tmp_path / name, format="dcp" if name == "m.dcp" else None)
    assert ptsave.verify(path, against=tmp_path / name, checks=["against"]).is_yes
    with open_checkpoint(path) as a, open_checkpoint(tmp_path / name) as b:
        assert contents(a) == contents(b)


def test_a_state_dict_under_a_key_is_found(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": {k: torch.from_numpy(v) for k, v in STATE.items()}}, tmp_path / "m.pt")
    path = saved(tmp_path / "m.onnx")
    found = ptsave.verify(path, against=tmp_path / "m.pt", checks=["against"])
    assert not [f for f in found.findings if f.level == "fail" and f.where in STATE]


def test_another_value_is_a_difference(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "a.onnx")
    other = saved(tmp_path / "b.onnx", STATE | {"fc.bias": np.zeros(2, "f4")})
    assert main.run(["inspect", str(path), "--diff", str(other), "--json"]) == 1
    assert [t["name"] for t in json.loads(capfd.readouterr().out)["tensors"]] == ["fc.bias"]


def test_texts_and_packed_integers_are_not_converted_unasked(tmp_path: Path) -> None:
    texts = helper.make_tensor("s", 8, [1], [b"a"])
    small = tensor("i", [1, 2], 22)
    path = save(model([tensor("w"), texts, small]), tmp_path / "m.onnx")
    with pytest.raises(LossyError, match=r"s \(onnx\.STRING.*i \(onnx\.INT4"):
        ptsave.convert(path, tmp_path / "m.safetensors")
    done = ptsave.convert(path, tmp_path / "m.safetensors", extras="drop")
    assert {"s", "i", "i.INT4"} <= {*done.dropped}
    with open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        assert [*checkpoint.tensors] == ["w"]


def test_inspect_says_what_goes_in_and_comes_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nodes = [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")]
    path = save(model([tensor("w")], nodes, opsets=(("", 21), ("com.microsoft", 1))), tmp_path / "m.onnx")
    assert main.run(["inspect", str(path)]) == 0
    shown = capfd.readouterr().out
    for line in (
        "program",
        "input   x  float32  [batch, 3]",
        "output  y  float32  [batch, ?]",
        "operators  1 com.microsoft.Gelu",
        "opsets     ai.onnx 21, com.microsoft 1",
        "producer   test 1",
    ):
        assert line in shown.splitlines()
    assert main.run(["inspect", str(path), "--json"]) == 0
    (program,) = json.loads(capfd.readouterr().out)["programs"]
    assert program["inputs"] == [{"name": "x", "type": "float32", "shape": ["batch", 3]}]
    assert program["operators"] == {"com.microsoft.Gelu": 1}


def test_at_an_address(tmp_path: Path) -> None:
    """What is read is the model and where its tensors are, until they are wanted."""
    large = {f"w{i}": np.full(200_000, i, "f4") for i in range(4)}
    made = model([numpy_helper.from_array(value, name) for name, value in large.items()])
    inline = save(made, tmp_path / "inline.onnx")
    beside = save_external(made, tmp_path / "beside.onnx", location="beside.data")
    with Server(folder(tmp_path)) as server:
        for path in (inline, beside):
            before = server.num_bytes_out
            with open_checkpoint(path) as near, open_checkpoint(f"{server.url}/{path.name}") as far:
                assert far.tensors.keys() == large.keys()
                assert server.num_bytes_out - before < 600_000
                assert contents(far) == contents(near)

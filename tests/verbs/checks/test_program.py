"""The check `program`: an exported program runs again on the recorded inputs, and says what is another."""

from __future__ import annotations

import gzip
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.support import Command

CONFIG = """
[model]
class = "tests.export.models.Mlp"
[model.args]
[inputs.x]
shape = ["batch=4", 6]
"""


def weights(model: onnx.ModelProto) -> None:
    """Another value in an initializer."""
    tensor = next(one for one in model.graph.initializer if one.name == "fc1.weight")
    array = numpy_helper.to_array(tensor).copy()
    array[0, 0] += 0.5
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def exchanged(model: onnx.ModelProto) -> None:
    names = {"norm.weight": "norm.bias", "norm.bias": "norm.weight"}
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def node(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(one for one in model.graph.node if one.op_type == kind)


def eps(model: onnx.ModelProto) -> None:
    attribute = next(a for a in node(model, "LayerNormalization").attribute if a.name == "epsilon")
    attribute.f = 1e-2


def activation(model: onnx.ModelProto) -> None:
    found = node(model, "Gelu")
    del found.attribute[:]
    found.attribute.append(onnx.helper.make_attribute("approximate", "tanh"))


def fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def dropped(model: onnx.ModelProto) -> None:
    """What a Dropout in train mode does to one node's output: scales it."""
    found = node(model, "Gelu")
    tensor = numpy_helper.from_array(np.float32(2), "two")
    model.graph.initializer.append(tensor)
    scaled = onnx.helper.make_node("Mul", [f"{found.output[0]}_", "two"], [found.output[0]], name="scaled")
    found.output[0] = f"{found.output[0]}_"
    at = list(model.graph.node).index(found)
    model.graph.node.insert(at + 1, scaled)


def dtype(model: onnx.ModelProto) -> None:
    """Half precision in between."""
    found = node(model, "Gelu")
    out = found.output[0]
    found.output[0] = f"{out}_"
    there = onnx.helper.make_node("Cast", [f"{out}_"], [f"{out}__"], name="down", to=onnx.TensorProto.FLOAT16)
    back = onnx.helper.make_node("Cast", [f"{out}__"], [out], name="up", to=onnx.TensorProto.FLOAT)
    at = list(model.graph.node).index(found)
    model.graph.node.insert(at + 1, back)
    model.graph.node.insert(at + 1, there)


def swapped(model: onnx.ModelProto) -> None:
    found = node(model, "LayerNormalization")
    found.input[1], found.input[2] = found.input[2], found.input[1]


def hidden(model: onnx.ModelProto) -> None:
    """A node under the name of a later one."""
    name, first = node(model, "Gelu").name, model.graph.node[0]
    made = onnx.helper.make_node("Neg", [first.output[0]], ["unused"], name=name)
    model.graph.node.insert(1, made)


FAULTS: dict[Callable[[onnx.ModelProto], None], str] = {
    weights: "damaged: 1 of",
    exchanged: "tensors do not match their checksum",
    eps: "another graph: node_layer_norm (LayerNormalization)",
    activation: "another graph: node_gelu (Gelu)",
    fixed_batch: "another graph: inputs, outputs",
    dropped: "another graph: node_gelu",
    dtype: "another graph: node_gelu",
    swapped: "another graph: node_layer_norm",
    hidden: "another graph: node_gelu (Neg) and 1 more",
}


@pytest.mark.slow
def test_each_fault_of_an_onnx_model_is_a_no_with_its_cause(ptsave_here: Command, tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(CONFIG)
    ptsave_here("save", "model.toml", "model.safetensors")
    ptsave_here("convert", "model.safetensors", "model.onnx", "-c", "model.toml")
    done = ptsave_here("verify", "model.onnx", "--checks", "program").stdout
    assert "output: explained by rounding" in done or "output: bitwise equal" in done
    assert "nodes are those that were exported" in done
    model = onnx.load(tmp_path / "model.onnx")
    onnx.save(model, tmp_path / "again.onnx")
    done = ptsave_here("verify", "again.onnx").stdout
    assert (
        "its nodes are those that were exported; it is run where this check is named (--checks program)"
        in done
    )
    assert "program (its nodes" in done.splitlines()[-1]
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.write(tmp_path / "model.onnx", "model.onnx")
    (tmp_path / "model.onnx.gz").write_bytes(gzip.compress((tmp_path / "model.onnx").read_bytes()))
    for path in ("in.zip", "model.onnx.gz"):
        done = ptsave_here("verify", path, "--checks", "program", code=1).stdout
        assert "nodes are those that were exported; it is not run: onnxruntime reads no archive" in done
    for fault, cause in FAULTS.items():
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        fault(changed)
        onnx.save(changed, tmp_path / "changed.onnx")
        done = ptsave_here("verify", "changed.onnx", code=1).stdout
        assert cause in done, (fault.__name__, done)


def test_a_pt2_runs_again_and_says_where_it_is_another(
    ptsave_here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.toml").write_text(CONFIG)
    ptsave_here("save", "model.toml", "model.safetensors")
    ptsave_here("convert", "model.safetensors", "model.pt2", "-c", "model.toml")
    assert (
        "program    ok       output: bitwise equal"
        in ptsave_here("verify", "model.pt2", "--checks", "program").stdout
    )
    with (
        zipfile.ZipFile(tmp_path / "model.pt2") as old,
        zipfile.ZipFile(tmp_path / "changed.pt2", "w") as new,
    ):
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("models/model.json"):
                assert data.count(b'"as_float": 1e-05') == 1
                data = data.replace(b'"as_float": 1e-05', b'"as_float": 3e-01')
            new.writestr(entry.filename, data)
    done = ptsave_here("verify", "model.pt2").stdout
    assert "program    skipped  its nodes are those that were exported" in done
    assert "[batch, 6]" in ptsave_here("inspect", "model.pt2").stdout
    done = ptsave_here("verify", "changed.pt2", code=1).stdout
    assert "another graph: layer_norm (aten.layer_norm.default)" in done
    done = ptsave_here("verify", "changed.pt2", "--checks", "program", code=1).stdout
    assert "output: differs" in done
    with monkeypatch.context() as process:
        process.setitem(sys.modules, "torch", None)
        done = ptsave_here("verify", "model.pt2", "--checks", "program", code=1).stdout
    assert (
        "program    skipped  its nodes are those that were exported; it is not run: torch is not installed"
        in done
    )


def test_a_checkpoint_that_is_no_program_is_skipped(ptsave_here: Command, tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(CONFIG)
    ptsave_here("save", "model.toml", "model.safetensors")
    done = ptsave_here("verify", "model.safetensors", "--checks", "program", code=1).stdout
    assert "it is not an exported program with a record" in done

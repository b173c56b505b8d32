"""onnxruntime in another process: arrays come and go as they are, and its death is an error."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ptsave.verbs.programs.onnx_process import BFLOAT16, OnnxruntimeError, OnnxSession


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A model that adds two arrays, and counts what one of them has."""
    nodes = [helper.make_node("Add", ["x", "y"], ["sum"]), helper.make_node("Size", ["x"], ["count"])]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y", "sum")]
    count = helper.make_tensor_value_info("count", TensorProto.INT64, [])
    graph = helper.make_graph(nodes, "g", ports[:2], [ports[2], count])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_arrays_come_and_go_as_they_are(path: Path) -> None:
    session = OnnxSession(path)
    assert (session.inputs, session.outputs) == (["x", "y"], ["sum", "count"])
    x = np.arange(6, dtype="float32").reshape(2, 3).T  # not contiguous
    for array in (x, x[:0]):
        total, count = session.run({"x": array, "y": array})
        np.testing.assert_array_equal(total, array * 2)
        assert (count.shape, count.dtype, int(count)) == ((), np.dtype("int64"), array.size)
    with pytest.raises(OnnxruntimeError, match=r"^InvalidArgument: "):
        list(session.run({"x": x.astype("float64"), "y": x}))
    total, _ = session.run({"x": x, "y": x})  # an error of one run is not the end
    np.testing.assert_array_equal(total, x * 2)


def test_bfloat16_comes_and_goes_as_its_bits(tmp_path: Path) -> None:
    ports = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, ["n", 2]) for name in ("x", "y")]
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Neg", ["wide"], ["less"]),
        helper.make_node("Cast", ["less"], ["y"], to=TensorProto.BFLOAT16),
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    session = OnnxSession(tmp_path / "model.onnx")
    one, two = 0x3F80, 0x4000
    x = np.array([[one, two], [two, one]], "<u2").view(BFLOAT16)
    for array in (x, x[:0]):
        (negative,) = session.run({"x": array})
        assert negative.dtype == np.dtype(BFLOAT16)
        np.testing.assert_array_equal(negative.view("<u2"), array.view("<u2") | 0x8000)
    with pytest.raises(OnnxruntimeError, match=r"expected: \(tensor\(bfloat16\)\)"):
        list(session.run({"x": np.zeros((1, 2), "float32")}))


def test_a_file_that_is_no_model_is_an_error(path: Path) -> None:
    path.write_bytes(b"\x08\x07no model")
    with pytest.raises(OnnxruntimeError, match="InvalidProtobuf"):
        OnnxSession(path)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals to die of")
def test_its_death_is_an_error_that_names_the_signal(path: Path) -> None:
    session = OnnxSession(path)
    os.kill(session._process.pid, signal.SIGSEGV)
    session._process.wait()
    x = np.zeros((1, 2), "float32")
    with pytest.raises(OnnxruntimeError, match=r"onnxruntime died of it \(SIGSEGV\)"):
        list(session.run({"x": x, "y": x}))

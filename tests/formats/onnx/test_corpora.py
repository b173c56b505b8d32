"""Models that the onnx and onnxruntime packages carry, read as the onnx library reads them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from ptsave.formats import open_checkpoint

from .test_read import bytes_of

PACKAGES = (onnx, onnxruntime)
MODELS = sorted(path for package in PACKAGES for path in Path(package.__file__).parent.rglob("*.onnx"))


def assert_read_alike(path: Path) -> None:
    theirs = onnx.load(path)
    with open_checkpoint(path) as checkpoint:
        (program,) = checkpoint.programs
        names = {tensor.name for tensor in theirs.graph.initializer}
        for tensor in theirs.graph.initializer:
            array, entry = numpy_helper.to_array(tensor), checkpoint.tensors[tensor.name]
            assert (entry.shape, bytes_of(entry)) == (array.shape, array.tobytes())
        constants = [node for node in theirs.graph.node if node.op_type == "Constant"]
        for node in constants:
            for attribute in node.attribute:
                if attribute.name == "value":
                    array = numpy_helper.to_array(attribute.t)
                    assert bytes_of(checkpoint.tensors[f"CONSTANTS.{node.output[0]}"]) == array.tobytes()
    assert [port.name for port in program.inputs] == [
        v.name for v in theirs.graph.input if v.name not in names
    ]
    assert [port.name for port in program.outputs] == [v.name for v in theirs.graph.output]
    assert Counter(program.operators).total() >= len(theirs.graph.node)


def test_there_are_enough() -> None:
    assert len(MODELS) > 100


@pytest.mark.parametrize("path", MODELS[::8], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_some(path: Path) -> None:
    assert_read_alike(path)


@pytest.mark.slow
@pytest.mark.parametrize("path", MODELS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_all(path: Path) -> None:
    assert_read_alike(path)

"""Small ONNX models, made with the onnx library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

FLOAT = TensorProto.FLOAT


def tensor(name: str, values: Any = (1.0, 2.0), data_type: int = FLOAT, **fields: Any) -> Any:
    """A TensorProto with its values in a typed field."""
    values = np.asarray(values)
    return helper.make_tensor(name, data_type, values.shape, values.reshape(-1), **fields)


def model(
    initializers: Sequence[Any] = (),
    nodes: Sequence[Any] = (),
    *,
    functions: Sequence[Any] = (),
    opsets: Sequence[tuple[str, int]] = (("", 21),),
    **graph: Any,
) -> onnx.ModelProto:
    """A model of one input `x` of shape [batch, 3] and one output `y`, which the nodes need not make."""
    made = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", FLOAT, ["batch", None])],
        list(initializers),
        **graph,
    )
    return helper.make_model(
        made,
        producer_name="test",
        producer_version="1",
        opset_imports=[helper.make_opsetid(*opset) for opset in opsets],
        functions=list(functions),
    )


def save(made: onnx.ModelProto, path: Path) -> Path:
    """Write a model, whatever it is: the library checks nothing."""
    path.write_bytes(made.SerializeToString())
    return path


def save_external(made: onnx.ModelProto, path: Path, **options: Any) -> Path:
    """Write a model with its tensors beside it."""
    onnx.save_model(made, path, save_as_external_data=True, size_threshold=0, **options)
    return path

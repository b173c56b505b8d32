"""What goes wrong with exported programs: edits of any ONNX model and of any .pt2, each of another kind."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OnnxFault = Callable[[onnx.ModelProto], None]
Pt2Fault = Callable[["Archive"], None]
DAMAGED, GRAPH = "damaged: ", "another graph: "


def _float_output(model: onnx.ModelProto) -> tuple[str, int]:
    """The name of an output of floating-point numbers, and the place of the node that computes it."""
    floats = (TensorProto.FLOAT,)
    name = next(out.name for out in model.graph.output if out.type.tensor_type.elem_type in floats)
    return name, next(i for i, node in enumerate(model.graph.node) if name in node.output)


def _between(model: onnx.ModelProto, *nodes: Callable[[str, str], onnx.NodeProto]) -> None:
    """Put nodes between an output of the model and what computed it."""
    name, at = _float_output(model)
    made = model.graph.node[at]
    made.output[list(made.output).index(name)] = given = f"{name}.0"
    for i, node in enumerate(nodes, 1):
        to = name if i == len(nodes) else f"{name}.{i}"
        model.graph.node.insert(at + i, node(given, to))
        given = to


def _initializers(model: onnx.ModelProto) -> list[TensorProto]:
    found = [one for one in model.graph.initializer if one.data_type == TensorProto.FLOAT]
    return sorted(found, key=lambda one: -len(one.raw_data))


def onnx_weights(model: onnx.ModelProto) -> None:
    tensor = _initializers(model)[0]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))


def onnx_initialiser(model: onnx.ModelProto) -> None:
    """One bit of the smallest."""
    tensor = _initializers(model)[-1]
    data = bytearray(tensor.raw_data)
    data[-1] ^= 1
    tensor.raw_data = bytes(data)


def onnx_eps(model: onnx.ModelProto) -> None:
    """Another number in a node: an epsilon, an axis, a stride."""
    numbers = (a for node in model.graph.node for a in node.attribute if a.type in (a.FLOAT, a.INT))
    found = next(numbers, None)
    if found is None:
        model.graph.node[0].attribute.append(helper.make_attribute("epsilon", 0.5))
    elif found.type == found.FLOAT:
        found.f += 0.1
    else:
        found.i += 1


def onnx_activation(model: onnx.ModelProto) -> None:
    _between(model, lambda x, y: helper.make_node("Relu", [x], [y], name="another"))


def onnx_fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def onnx_train_mode(model: onnx.ModelProto) -> None:
    """What dropout does in training: it scales."""
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1.1), "scale"))
    _between(model, lambda x, y: helper.make_node("Mul", [x, "scale"], [y], name="scaled"))


def onnx_dtype(model: onnx.ModelProto) -> None:
    def cast(to: int) -> Callable[[str, str], onnx.NodeProto]:
        return lambda x, y: helper.make_node("Cast", [x], [y], name=f"cast_{to}", to=to)

    _between(model, cast(TensorProto.FLOAT16), cast(TensorProto.FLOAT))


def onnx_swapped(model: onnx.ModelProto) -> None:
    node = next(one for one in model.graph.node if len(set(filter(None, one.input))) > 1)
    node.input[0], node.input[1] = node.input[1], node.input[0]


ONNX: dict[OnnxFault, str] = {
    onnx_weights: DAMAGED,
    onnx_initialiser: DAMAGED,
    onnx_eps: GRAPH,
    onnx_activation: GRAPH,
    onnx_fixed_batch: GRAPH,
    onnx_train_mode: GRAPH,
    onnx_dtype: GRAPH,
    onnx_swapped: GRAPH,
}


class Archive:
    """A .pt2 in memory: its program as JSON, its other records as bytes."""

    def __init__(self, path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            self.records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        (self.model,) = (name for name in self.records if name.endswith("models/model.json"))
        self.program = json.loads(self.records[self.model])

    def write(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in (self.records | {self.model: json.dumps(self.program).encode()}).items():
                archive.writestr(name, data)

    @property
    def graph(self) -> dict[str, Any]:
        graph: dict[str, Any] = self.program["graph_module"]["graph"]
        return graph

    def arguments(self, kind: str) -> list[dict[str, Any]]:
        """The arguments of nodes that are of a kind, as `as_float`."""
        given = (one["arg"] for node in self.graph["nodes"] for one in node["inputs"])
        return [argument for argument in given if kind in argument]

    def weights(self) -> list[str]:
        """The records of weights, the largest first."""
        found = [name for name in self.records if "/data/weights/weight_" in name]
        return sorted(found, key=lambda name: -len(self.records[name]))


def pt2_weights(archive: Archive) -> None:
    name = archive.weights()[0]
    data = np.frombuffer(archive.records[name], np.float32) * np.float32(1.01)
    archive.records[name] = data.tobytes()


def pt2_initialiser(archive: Archive) -> None:
    name = archive.weights()[-1]
    data = bytearray(archive.records[name])
    data[0] ^= 1
    archive.records[name] = bytes(data)


def pt2_eps(archive: Archive) -> None:
    floats, integers = archive.arguments("as_float"), archive.arguments("as_int")
    if floats:
        floats[0]["as_float"] += 0.1
    elif integers:
        integers[0]["as_int"] += 1
    else:
        archive.graph["nodes"][0]["inputs"][0]["name"] = "other"


def pt2_activation(archive: Archive) -> None:
    archive.graph["nodes"][-1]["target"] = "torch.ops.aten.relu.default"


def pt2_fixed_batch(archive: Archive) -> None:
    for meta in archive.graph["tensor_values"].values():
        meta["sizes"] = [size if "as_int" in size else {"as_int": 2} for size in meta["sizes"]]


def pt2_train_mode(archive: Archive) -> None:
    """What dropout does in training, where there is one: else another node's switch."""
    node = archive.graph["nodes"][-1]
    switches = archive.arguments("as_bool") or [{}]
    switches[0]["as_bool"] = not switches[0].get("as_bool")
    node["inputs"].append({"name": "train", "arg": {"as_bool": True}, "kind": 1})


def pt2_dtype(archive: Archive) -> None:
    half = 6  # schema.ScalarType
    outputs = (output for node in archive.graph["nodes"] for output in node["outputs"])
    name = next(output["as_tensor"]["name"] for output in outputs if "as_tensor" in output)
    archive.graph["tensor_values"][name]["dtype"] = half


def pt2_swapped(archive: Archive) -> None:
    for node in archive.graph["nodes"]:
        tensors = [one for one in node["inputs"] if "as_tensor" in one["arg"]]
        if len(tensors) > 1 and tensors[0]["arg"] != tensors[1]["arg"]:
            tensors[0]["arg"], tensors[1]["arg"] = tensors[1]["arg"], tensors[0]["arg"]
            return
    raise AssertionError("no node has two tensors")


PT2: dict[Pt2Fault, str] = {
    pt2_weights: DAMAGED,
    pt2_initialiser: DAMAGED,
    pt2_eps: GRAPH,
    pt2_activation: GRAPH,
    pt2_fixed_batch: GRAPH,
    pt2_train_mode: GRAPH,
    pt2_dtype: GRAPH,
    pt2_swapped: GRAPH,
}

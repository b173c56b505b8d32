"""ONNX models: run by onnxruntime, and their nodes as digests. Needs no torch."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ptsave.config.arrays import arrays
from ptsave.config.inputs import InputsSpec
from ptsave.core.behaviour import Sample
from ptsave.core.values.sketch import sample_of
from ptsave.verbs.programs.nodes import INTERFACE, Nodes, by_name
from ptsave.verbs.programs.onnx_process import OnnxSession

SCOPES = "pkg.torch.onnx.name_scopes"
"""The key of a node's metadata under which torch's exporter keeps the modules that it is in.

Source: torch/onnx/_internal/exporter/_core.py of torch 2.13.
"""


def module_of(node: Any) -> str:
    """The module in whose code a node is, by the exporter's note; empty for the model itself."""
    text = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")
    try:
        scopes = ast.literal_eval(text) if text else []
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ""
    if not isinstance(scopes, list) or len(scopes) < 2 or not isinstance(scopes[-2], str):
        return ""
    return scopes[-2].partition("@")[0]


def node_digests(data: bytes) -> Nodes:
    """Name of each node of a model → its digest, and its operator and module for a person.

    `data`: the bytes of the model's file.

    Raises: what the onnx library raises.
    """
    import onnx

    return by_name(_nodes(onnx.ModelProto.FromString(data)))


def _nodes(model: Any) -> Iterator[tuple[str, bytes, str]]:
    graph = model.graph
    for number, node in enumerate(graph.node):
        where, described = module_of(node), node.op_type
        del node.metadata_props[:]
        described += f" in {where!r}" if where else ""
        yield node.name or f"node {number}", node.SerializeToString(deterministic=True), described
    ports = {port.name for port in graph.input}
    for tensor in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        if tensor.name in ports:  # taken where nothing else is given, and onnxruntime lists no such input
            yield f"default of {tensor.name}", b"", "initializer"
    del graph.node[:], graph.initializer[:], graph.sparse_initializer[:], graph.value_info[:]
    del graph.metadata_props[:], model.metadata_props[:]
    for field in ("producer_name", "producer_version", "model_version", "doc_string"):
        model.ClearField(field)
    yield INTERFACE, model.SerializeToString(deterministic=True), ""


def run_onnx(path: Path, inputs: InputsSpec, program: Mapping[str, Any]) -> dict[str, Sample]:
    """What the model at `path` computes from `inputs`, by the paths of the outputs.

    `program`: what the record says; an input of the graph is known by the digest of what it was given.

    Raises: ValueError where the record does not fit the model; what onnxruntime raises.
    """
    made = {sample_of(array).digest: array for array in arrays(inputs)}
    loaded = OnnxSession(path)
    wanted, paths = program.get("inputs"), program.get("outputs")
    if not isinstance(wanted, dict) or not isinstance(paths, list):
        raise ValueError("the record does not say what goes into the program")
    feeds = {}
    for name in loaded.inputs:
        if wanted.get(name) not in made:
            raise ValueError(f"the record has no input {name!r}")
        feeds[name] = made[wanted[name]]
    results = list(loaded.run(feeds))
    if len(results) != len(paths):
        raise ValueError(f"{len(results)} outputs, {len(paths)} when it was recorded")
    return {str(name): sample_of(array) for name, array in zip(paths, results, strict=True)}

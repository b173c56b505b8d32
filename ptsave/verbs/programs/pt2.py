"""Programs of torch.export: their nodes as digests. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ptsave.formats.programs.pt2 import programs_in
from ptsave.formats.programs.pt2_ports import listed, table
from ptsave.storage.files import InputFile
from ptsave.verbs.programs.nodes import INTERFACE, Nodes, by_name


def node_digests(file: InputFile) -> Nodes:
    """Name of each node of the programs in an archive → its digest, and its operator and module for a person.

    Source: torch/_export/serde/schema.py (`Node`) and serialize.py (`serialize_metadata`) of torch 2.13.
    """
    return by_name(_nodes(programs_in(file)))


def _nodes(programs: dict[str, Any]) -> Iterator[tuple[str, bytes, str]]:
    for program, document in programs.items():
        front = f"{program}." if len(programs) > 1 else ""
        graph = table(table(document, "graph_module"), "graph")
        nodes = [node for node in listed(graph, "nodes") if isinstance(node, dict)]
        graph.pop("nodes", None)
        for number, node in enumerate(nodes):
            where = _module_of(node.pop("metadata", None))
            operator = str(node.get("target")).removeprefix("torch.ops.")
            name = f"{front}{node.get('name') or f'node {number}'}"
            yield name, _spelled(node), f"{operator} in {where!r}" if where else operator
        document.pop("torch_version", None)
        yield f"{front}{INTERFACE}", _spelled(document), ""


def _module_of(metadata: Any) -> str:
    """The module in whose code a node is, by torch's note; empty for the model itself."""
    stack = metadata.get("nn_module_stack") if isinstance(metadata, dict) else None
    if not isinstance(stack, str):
        return ""
    # `key,path,class` of each module, from the outside in; a path may have a call's number: `fc@1`.
    parts = stack.rpartition(";")[2].split(",")
    return parts[1].partition("@")[0] if len(parts) > 2 else ""


def _spelled(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True).encode()

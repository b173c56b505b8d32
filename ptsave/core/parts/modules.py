"""The tensors of a checkpoint by module, as the dots of their names nest; and what is a parameter of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ptsave.core.nodes import PARAMETER_, TensorEntry

MAX_TREE_DEPTH = 40
"""How deep `--tree` nests; a name with more dots stays in one piece below that."""
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""How the names of floating-point buffers end that torch's own modules have: batch and instance norms."""


@dataclass(frozen=True)
class TensorRow:
    """One line of the table."""

    entry: TensorEntry
    alias_of: str | None
    """The first tensor that is the same elements of the same storage."""
    view_of: str | None
    """The first tensor on the same storage that is not the same view."""
    files: Sequence[str] = ()
    """The names of the files that hold its bytes, of a checkpoint that has several."""


@dataclass
class ModuleNode:
    """One module of `--tree`: its own tensors and its submodules."""

    name: str
    rows: list[TensorRow] = field(default_factory=list)
    children: dict[str, ModuleNode] = field(default_factory=dict)
    num_elements: int = 0
    """Of all the tensors below it, tied ones once; so are the other numbers."""
    num_parameters: int = 0
    """Elements of parameters, not of buffers."""
    num_trainable: int = 0
    """Elements of parameters that require a gradient; 0 where the file does not say which do."""
    num_bytes: int = 0
    kind: int = 0
    """Modules of one tree that hold the same names, dtypes and shapes have the same."""


def module_tree(rows: Sequence[TensorRow]) -> ModuleNode:
    """The tensors of `rows` by module, as the dots of their names nest."""
    root = ModuleNode("")
    says = any(_is_parameter(row.entry) for row in rows)
    for row in rows:
        node = root
        nodes = [root]
        for part in row.entry.name.split(".", MAX_TREE_DEPTH)[:-1]:
            node = node.children.setdefault(part, ModuleNode(part))
            nodes.append(node)
        node.rows.append(row)
        if row.alias_of is None:
            size = row.entry.num_elements
            is_buffer = not _is_parameter(row.entry) if says else _looks_like_buffer(row.entry)
            for above in nodes:
                above.num_elements += size
                above.num_parameters += 0 if is_buffer else size
                above.num_trainable += size if row.entry.requires_grad else 0
                above.num_bytes += row.entry.num_bytes
    _set_kinds(root, {})
    return root


def _is_parameter(entry: TensorEntry) -> bool:
    """Whether the file says that it is one; state dicts say nothing of it."""
    return entry.kind == "parameter" or entry.kind.startswith(PARAMETER_)


def _looks_like_buffer(entry: TensorEntry) -> bool:
    """Whether it is no parameter, as far as its dtype and its name tell."""
    return entry.dtype.kind not in ("float", "complex") or entry.name.endswith(BUFFERS)


def alike(node: ModuleNode) -> list[list[ModuleNode]]:
    """The modules in `node`, in order: numbered neighbours that hold the same names, dtypes and shapes as one
    list."""
    groups: list[list[ModuleNode]] = []
    for child in node.children.values():
        last = groups[-1][-1] if groups else None
        if last is not None and last.kind == child.kind and _follows(child.name, last.name):
            groups[-1].append(child)
        else:
            groups.append([child])
    return groups


def _follows(name: str, before: str) -> bool:
    """Whether both are numbers, one more than the other."""
    is_number = all(one.isascii() and one.isdecimal() and len(one) < 8 for one in (name, before))
    return is_number and int(name) == int(before) + 1


def _set_kinds(node: ModuleNode, kinds: dict[Any, int]) -> int:
    """Number the modules, so that those which hold the same have one number."""
    rows = tuple(
        (row.entry.name.rpartition(".")[2], row.entry.dtype.name, row.entry.shape, bool(row.alias_of))
        for row in node.rows
    )
    inside = tuple((name, _set_kinds(child, kinds)) for name, child in node.children.items())
    node.kind = kinds.setdefault((rows, inside), len(kinds))
    return node.kind

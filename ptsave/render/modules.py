"""What `inspect` prints of a checkpoint's modules: the tensors in each, or its parameters."""

from __future__ import annotations

from collections.abc import Iterator

from ptsave.core.names import escape
from ptsave.core.parts.modules import ModuleNode, TensorRow, alike
from ptsave.render.terminal import out, table
from ptsave.render.words import count, shape, size


def show_tree(root: ModuleNode, depth: int | None, *, shows_all: bool) -> None:
    """The tensors by module, to `depth` names; with `shows_all`, layers that are alike are no one line."""
    rows: list[tuple[str, ...]] = []
    for branch, item in _walk(root, depth, "", shows_all=shows_all, shows_tensors=True):
        if isinstance(item, TensorRow):
            entry = item.entry
            label, what = entry.name.rpartition(".")[2], f"{entry.dtype.name} {shape(entry.shape)}"
            taken = "tied" if item.alias_of else _share(entry.num_bytes, root.num_bytes)
            rows.append((branch + escape(label), what, size(entry.num_bytes), taken))
        else:
            what = _times(len(item), count(item[0].num_elements, "element"))
            num_bytes = sum(one.num_bytes for one in item)
            rows.append((branch + _label(item), what, size(num_bytes), _share(num_bytes, root.num_bytes)))
    out()
    table(rows, right=(2, 3), names=(0,))


def show_parameters(root: ModuleNode, depth: int | None, *, shows_all: bool) -> None:
    """The number of parameters of each module, to `depth` names; those of buffers and, where the file says
    so, of what is trained stand beside it."""
    rows = [("all", *_numbers([root], root))]
    for branch, item in _walk(root, depth, "", shows_all=shows_all, shows_tensors=False):
        if not isinstance(item, TensorRow):
            rows.append((branch + _label(item), *_numbers(item, root)))
    header = ("module", "parameters", "", "buffers", "trainable")
    is_used = (True, True, True, root.num_parameters < root.num_elements, root.num_trainable > 0)
    shown = [i for i, used in enumerate(is_used) if used]
    out()
    table(
        [[row[i] for i in shown] for row in rows],
        [header[i] for i in shown],
        right=range(1, len(shown)),
        names=(0,),
    )


def _numbers(alike_ones: list[ModuleNode], root: ModuleNode) -> tuple[str, ...]:
    one, times = alike_ones[0], len(alike_ones)
    buffers = one.num_elements - one.num_parameters
    return (
        _times(times, f"{one.num_parameters:,}"),
        _share(times * one.num_parameters, root.num_parameters),
        *(_times(times, f"{number:,}") if number else "" for number in (buffers, one.num_trainable)),
    )


def _walk(
    node: ModuleNode, depth: int | None, indent: str, *, shows_all: bool, shows_tensors: bool, level: int = 1
) -> Iterator[tuple[str, TensorRow | list[ModuleNode]]]:
    """Each line of the tree below `node`: its branch, and a tensor or the modules that are alike."""
    groups = [[child] for child in node.children.values()] if shows_all else alike(node)
    lines: list[TensorRow | list[ModuleNode]] = [*(node.rows if shows_tensors else ()), *groups]
    for i, item in enumerate(lines):
        is_last = i == len(lines) - 1
        yield f"{indent}{'└─ ' if is_last else '├─ '}", item
        if not isinstance(item, TensorRow) and (depth is None or level < depth):
            below = indent + ("   " if is_last else "│  ")
            yield from _walk(
                item[0], depth, below, shows_all=shows_all, shows_tensors=shows_tensors, level=level + 1
            )


def _label(modules: list[ModuleNode]) -> str:
    first, last = modules[0], modules[-1]
    return escape(first.name if first is last else f"[{first.name}-{last.name}]")


def _times(number: int, what: str) -> str:
    return what if number == 1 else f"{number} × {what}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else ""

"""The differences between two checkpoints as one HTML page: by module, by tensor, ties and values."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ptsave.core.address import Location
from ptsave.core.verdict import Departure
from ptsave.render.report.html import MAX_PAGE_BYTES, ROOM_BYTES, document, listing, num_bytes, text
from ptsave.render.report.plot import MAX_POINTS, gathered, plot
from ptsave.render.words import count, shape, value
from ptsave.storage.opening import write_file
from ptsave.verbs.diff import MAX_RELATIVE, Diff, TensorDiff

_HEADS = ("Name", "Difference", "Dtype", "Shape", "Values", "Largest", "Relative")
_NUMBERS = ("Values", "Largest", "Relative")
MAX_OTHERS = 500
"""Ties and values beside the tensors that the page lists."""


def write_difference(path: Location, result: Diff, a: Location, b: Location) -> None:
    """Write the page about what differs between `a` and `b` to `path`, old or new; an older one is replaced.

    Raises: WriteError.
    """
    write_file(path, page(result, a, b).encode(), overwrite=True)


def page(result: Diff, a: Location, b: Location) -> str:
    """The page about what differs between the checkpoints at `a` and `b`."""
    word = "yes" if result.is_same else "no"
    head = [
        f'<header class="{word}"><p class="tool">ptsave inspect --diff</p>',
        f"<h1><code>{text(a)}</code> and <code>{text(b)}</code></h1>",
        f'<p class="outcome">{_sentence(result)}</p></header>',
        *_by_module(result),
        *_beside(result, a, b),
        '<section class="tensors"><h2>Tensors</h2>',
    ]
    room = MAX_PAGE_BYTES - ROOM_BYTES - num_bytes(head)
    num_rows = len(result.only_in_a) + len(result.only_in_b) + len(result.tensors)
    table = listing(_HEADS, _rows(result, a, b), room, num_rows, _NUMBERS)
    return document(f"{text(a)} and {text(b)} – ptsave inspect", [*head, *table, "</section>"])


def _sentence(result: Diff) -> str:
    if result.is_same:
        return f"The same: {count(len(result.tensors), 'tensor')}, bitwise equal."
    different = f"{len(result.different):,} of {count(len(result.tensors), 'tensor')} in both differ"
    alone = f"only in the first: {len(result.only_in_a):,}, only in the second: {len(result.only_in_b):,}"
    return f"{different}; {alone}."


def _by_module(result: Diff) -> Iterator[str]:
    """The largest difference in each module, in the order of the first checkpoint."""
    modules: dict[str, list[TensorDiff]] = {}
    for tensor in result.tensors:
        modules.setdefault(tensor.name.rpartition(".")[0], []).append(tensor)
    growth = [
        Departure(
            module,
            0,
            f"{sum(not t.is_bitwise_equal for t in tensors)} of {count(len(tensors), 'tensor')}",
            max(map(_largest, tensors)),
        )
        for module, tensors in modules.items()
    ]
    if not any(departure.relative for departure in growth):
        return
    share = gathered(growth)[1]
    gathering = f" Each point is the largest of {share} modules in a row." if len(growth) > MAX_POINTS else ""
    yield '<section class="growth"><h2>Difference by layer</h2>'
    yield (
        "<p>The largest difference between two values of each module, in the order of the first checkpoint, "
        f"on a logarithmic scale; NaN, infinities and other shapes are beyond it.{gathering}</p>"
    )
    drawing = plot(growth, about="Largest difference by module, in order", unit="module")
    yield f'<div class="frame">{drawing}</div></section>'


def _largest(tensor: TensorDiff) -> float:
    """How far apart two values of a tensor are; infinite where that is no number."""
    if tensor.is_equal:
        return 0.0
    values = tensor.values
    if values is None or values.num_nan_in_a or values.num_nan_in_b or values.num_infinite:
        return math.inf
    return float(values.max_abs)


def _beside(result: Diff, a: Location, b: Location) -> Iterator[str]:
    """Ties, and values that are not tensors."""
    lines = [(", ".join(names), "share memory in the first only") for names in result.ties_broken]
    lines += [(", ".join(names), "share memory in the second only") for names in result.ties_new]
    lines += [(path, f"only in {a}") for path in result.data_only_in_a]
    lines += [(path, f"only in {b}") for path in result.data_only_in_b]
    lines += [(d.path, f"{value(d.a)} against {value(d.b)}") for d in result.data_changed]
    if not lines:
        return
    yield '<section><h2>Beside the values of tensors</h2><dl class="facts">'
    for name, words in lines[:MAX_OTHERS]:
        yield f"<div><dt>{text(name)}</dt><dd>{text(words)}</dd></div>"
    yield "</dl>"
    if len(lines) > MAX_OTHERS:
        yield f"<p>Not shown: {len(lines) - MAX_OTHERS:,} more.</p>"
    yield "</section>"


def _rows(result: Diff, a: Location, b: Location) -> Iterator[str]:
    """The tensors in one checkpoint alone, those that differ, and those that are equal."""
    for names, where in ((result.only_in_a, a), (result.only_in_b, b)):
        yield from (f"<tr><td>{text(name)}<td>only in {text(where)}<td><td><td><td><td>" for name in names)
    yield from map(_row, result.different)
    yield from (_row(tensor) for tensor in result.tensors if tensor.is_bitwise_equal)


def _row(tensor: TensorDiff) -> str:
    """One row; HTML lets the ends of cells and rows be left out, which a page of 10,000 rows can use."""
    values = tensor.values
    dtype = tensor.dtype_a + (f" → {tensor.dtype_b}" if tensor.dtype_b != tensor.dtype_a else "")
    sizes = shape(tensor.shape_a) + (
        f" → {shape(tensor.shape_b)}" if tensor.shape_b != tensor.shape_a else ""
    )
    words, numbers = "equal" if tensor.is_equal else "differs", ["", "", ""]
    if tensor.shape_a != tensor.shape_b:
        words = "another shape"
    elif values is None and not tensor.is_equal:
        words = text(tensor.why_not)
    elif values is not None and values.num_different:
        relative = f"{values.max_rel:.3g}" if values.max_rel < MAX_RELATIVE else ""
        numbers = [f"{values.num_different}", f"{float(values.max_abs):.3g}", relative]
    cells = "".join(f"<td>{cell}" for cell in (words, dtype, sizes, *numbers))
    return f"<tr><td>{text(tensor.name)}{cells}"

"""A checkpoint as one HTML page: the modules' sizes as a treemap, and a table to search and sort."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ptsave.core.address import Location
from ptsave.core.names import hint_for
from ptsave.errors import UsageError
from ptsave.render.report.html import document, text
from ptsave.render.report.treemap import treemap
from ptsave.render.words import bars, count, shape, size
from ptsave.storage.opening import check_file_destination, write_file
from ptsave.verbs.inspect import Inspection, TensorRow
from ptsave.verbs.stats import TensorStats

MAX_PAGE_BYTES = 2_000_000
"""Cap on the page: rows that would exceed it are counted at its foot."""
_NUMBERS = ("Min", "Max", "Mean", "Std", "NaN")
"""Columns that the script sorts by the numbers that their cells show."""
_ROOM_BYTES = 20_000
"""Of that, what the foot, the script and the ends of elements take."""


def check_inspection_report(path: Location) -> None:
    """Refuse a report of another kind or at an impossible place, before the work.

    Raises: UsageError, WriteError.
    """
    if path.suffix.lower() != ".html":
        hint = hint_for(path.suffix.lower(), (".html",), "suffixes")
        raise UsageError(f"inspect writes pages, not {path.suffix!r}", f"--report {path}", hint)
    check_file_destination(path, overwrite=True)


def write_inspection(path: Location, result: Inspection) -> None:
    """Write the page about `result` to `path`, old or new; an older one is replaced.

    Raises: WriteError.
    """
    write_file(path, page(result).encode(), overwrite=True)


def page(result: Inspection) -> str:
    """The page about a checkpoint."""
    drawing = treemap(result.tree)
    head = [
        '<header><p class="tool">ptsave inspect</p>',
        f"<h1><code>{text(result.path)}</code></h1>",
        f'<p class="outcome">{text(_sentence(result))}</p></header>',
        f'<section><h2>Size by module</h2><div class="areas">{drawing}</div></section>' if drawing else "",
        '<section class="tensors"><h2>Tensors</h2>',
    ]
    room = MAX_PAGE_BYTES - _ROOM_BYTES - sum(len(part.encode()) for part in head)
    return document(f"{text(result.path)} – ptsave inspect", [*head, *_table(result, room), "</section>"])


def _sentence(result: Inspection) -> str:
    words = [result.format, count(result.num_tensors, "tensor"), count(result.num_elements, "element")]
    return f"{', '.join(words)}, {size(result.num_bytes)}."


def _table(result: Inspection, room_bytes: int) -> Iterator[str]:
    measured = result.stats
    heads = ["Name", "Dtype", "Shape", "Bytes"]
    if measured is not None:
        heads += ["Min", "Max", "Mean", "Std", "NaN", "From min to max"]
    yield '<table id="tensors" class="sortable searchable"><thead><tr>'
    yield "".join(f'<th scope="col"{" data-n" if head in _NUMBERS else ""}>{head}</th>' for head in heads)
    yield "</tr></thead><tbody>"
    shown = 0
    for i, row in enumerate(result.rows):
        line = _row(row, None if measured is None else measured[i])
        room_bytes -= len(line.encode()) + 1
        if room_bytes < 0:
            break
        shown += 1
        yield line
    yield "</tbody>"
    if hidden := result.num_tensors - shown:
        yield f'<tfoot><tr><td colspan="{len(heads)}">Not shown: {count(hidden, "tensor")}.</td></tr></tfoot>'
    yield "</table>"


def _row(row: TensorRow, measured: TensorStats | None) -> str:
    """One row; HTML lets the ends of cells and rows be left out, which a page of 10,000 rows can use."""
    entry = row.entry
    tied = f" <i>tied to {text(row.alias_of)}</i>" if row.alias_of else ""
    cells = [f"<td>{text(entry.name)}{tied}", f"<td>{entry.dtype.name}", f"<td>{shape(entry.shape)}"]
    cells.append(f"<td data-v={entry.num_bytes}>{size(entry.num_bytes)}")
    if measured is not None:
        numbers: Sequence[float | None] = (measured.min, measured.max, measured.mean, measured.std)
        cells += [f"<td>{_number(n)}" for n in numbers]
        cells += [f"<td>{measured.nans or ''}", f"<td>{bars(measured.histogram)}"]
    return f"<tr>{''.join(cells)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"

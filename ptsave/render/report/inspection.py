"""Checkpoints as one HTML page: the modules' sizes as a treemap, and a table to search and sort."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ptsave.core.address import Location
from ptsave.core.names import hint_for
from ptsave.errors import UsageError
from ptsave.render.report.html import document, listing, text
from ptsave.render.report.treemap import treemap
from ptsave.render.words import bars, count, shape, size
from ptsave.storage.opening import check_file_destination, write_file
from ptsave.verbs.inspect import Inspection, TensorRow
from ptsave.verbs.stats import TensorStats

MAX_PAGE_BYTES = 2_000_000
"""Cap on the page: rows that would exceed it are counted at its foot."""
_NUMBERS = ("Min", "Max", "Mean", "Std", "NaN")
"""Columns that the script sorts by the numbers that their cells show."""
ROOM_BYTES = 20_000
"""Of that, what the foot, the script and the ends of elements take."""


def check_inspection_report(path: Location) -> None:
    """Refuse a report of another kind or at an impossible place, before the work.

    Raises: UsageError, WriteError.
    """
    if path.suffix.lower() != ".html":
        hint = hint_for(path.suffix.lower(), (".html",), "suffixes")
        raise UsageError(f"inspect writes pages, not {path.suffix!r}", f"--report {path}", hint)
    check_file_destination(path, overwrite=True)


def write_inspections(path: Location, results: Sequence[Inspection]) -> None:
    """Write the page about `results` to `path`, old or new; an older one is replaced.

    Raises: WriteError.
    """
    write_file(path, page(results).encode(), overwrite=True)


def page(results: Sequence[Inspection]) -> str:
    """The page about checkpoints: one is shown, of several each opens at a click."""
    names = ", ".join(str(result.path) for result in results[:3]) + (", …" if len(results) > 3 else "")
    body = [
        '<header><p class="tool">ptsave inspect</p>',
        f"<h1><code>{text(names)}</code></h1>",
        f'<p class="outcome">{text(_sentence(results))}</p></header>',
    ]
    drawings = [treemap(result.tree) for result in results]
    room = MAX_PAGE_BYTES - ROOM_BYTES - sum(len(part.encode()) for part in (*body, *drawings))
    for i, (result, drawing) in enumerate(zip(results, drawings, strict=True)):
        table = [*_table(result, room // (len(results) - i))]
        room -= sum(len(part.encode()) + 1 for part in table)
        if len(results) > 1:
            body += [
                "<details>",
                f"<summary><code>{text(result.path)}</code> {text(_sentence([result]))}</summary>",
            ]
        if drawing:
            body.append(f'<section><h2>Size by module</h2><div class="areas">{drawing}</div></section>')
        body += ['<section class="tensors"><h2>Tensors</h2>', *table, "</section>"]
        body += ["</details>"] if len(results) > 1 else []
    return document(f"{text(names)} – ptsave inspect", body)


def _sentence(results: Sequence[Inspection]) -> str:
    """`pt, 4 tensors, 67 elements, 268 B.`"""
    first = results[0].format if len(results) == 1 else count(len(results), "checkpoint")
    tensors, elements, num_bytes = (
        sum(numbers)
        for numbers in zip(*((r.num_tensors, r.num_elements, r.num_bytes) for r in results), strict=True)
    )
    return f"{first}, {count(tensors, 'tensor')}, {count(elements, 'element')}, {size(num_bytes)}."


def _table(result: Inspection, room_bytes: int) -> Iterator[str]:
    measured = result.stats
    heads = ["Name", "Dtype", "Shape", "Bytes"]
    if measured is not None:
        heads += ["Min", "Max", "Mean", "Std", "NaN", "From min to max"]
    rows = (_row(row, None if measured is None else measured[i]) for i, row in enumerate(result.rows))
    yield from listing(heads, rows, room_bytes, result.num_tensors, _NUMBERS)


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

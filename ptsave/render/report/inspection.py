"""Checkpoints as one HTML page: the modules' sizes as a treemap, and a table to search and sort."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ptsave.core.address import Location
from ptsave.core.names import hint_for
from ptsave.core.parts.modules import TensorRow
from ptsave.errors import UsageError
from ptsave.render.report.html import MAX_PAGE_BYTES, ROOM_BYTES, document, listing, num_bytes, text
from ptsave.render.report.treemap import treemap
from ptsave.render.words import bars, count, shape, size
from ptsave.storage.opening import check_file_destination, write_file
from ptsave.verbs.inspect import Inspection
from ptsave.verbs.stats import TensorStats

MIN_DRAWN_BYTES = 5_000
"""Of a checkpoint's share of the page: with less it is not tried whether the drawing has room."""
_NUMBERS = ("Min", "Max", "Mean", "Std", "NaN")
"""Columns that the script sorts by the numbers that their cells show."""


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
    room = MAX_PAGE_BYTES - ROOM_BYTES - num_bytes(body)
    for i, result in enumerate(results):
        about = [*_about(result, room // (len(results) - i), is_alone=len(results) == 1)]
        room -= num_bytes(about)
        if room < 0:
            body.append(f"<p>Not shown: {count(len(results) - i, 'checkpoint')}.</p>")
            break
        body += about
    return document(f"{text(names)} – ptsave inspect", body)


def _about(result: Inspection, room_bytes: int, *, is_alone: bool) -> Iterator[str]:
    """One checkpoint: the drawing, where there is room for it, and as many rows as there is room for then."""
    ends = ["<details>", f"<summary><code>{text(result.path)}</code> {text(_sentence([result]))}</summary>"]
    drawing = treemap(result.tree) if room_bytes >= MIN_DRAWN_BYTES else ""
    if result.num_bytes and not 0 < len(drawing.encode()) <= room_bytes // 2:
        drawing = "<p>Not drawn: the page has no room for it. A page about this checkpoint alone has.</p>"
    if not is_alone:
        yield from ends
    if drawing:
        drawing = f'<section><h2>Size by module</h2><div class="areas">{drawing}</div></section>'
        yield drawing
    room_bytes -= num_bytes([*ends, drawing])
    yield from ('<section class="tensors"><h2>Tensors</h2>', *_table(result, room_bytes), "</section>")
    if not is_alone:
        yield "</details>"


def _sentence(results: Sequence[Inspection]) -> str:
    """`pt, 4 tensors, 67 elements, 268 B.`"""
    first = results[0].format if len(results) == 1 else count(len(results), "checkpoint")
    tensors, elements, total_bytes = (
        sum(numbers)
        for numbers in zip(*((r.num_tensors, r.num_elements, r.num_bytes) for r in results), strict=True)
    )
    return f"{first}, {count(tensors, 'tensor')}, {count(elements, 'element')}, {size(total_bytes)}."


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

"""The size of each module as an area: a treemap as one SVG without scripts.

Places are percentages of the drawing, so that it fits a phone and a wide screen with text of the same size.
Each area is an inner SVG, which cuts off what of its label does not fit.
Source: Bruls, Huizing and van Wijk, "Squarified Treemaps" (2000).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape as escape_html

from ptsave.core.parts.modules import ModuleNode
from ptsave.render.report.words import clean
from ptsave.render.words import count, size

MAX_AREAS = 150
"""How many modules and tensors are drawn: on a phone, smaller ones could not be told apart."""
NUM_COLOURS = 8
"""The number of colours in `page.css`: each module at the top has one."""
_HEIGHT = 420
_WIDE, _HIGH = 200.0, 100.0
"""The sides of the drawing, as areas are divided: it is twice as wide as high."""


@dataclass(frozen=True)
class Area:
    """A module or a tensor that is drawn as one area."""

    name: str
    num_bytes: int
    num_elements: int
    colour: int


@dataclass(frozen=True)
class Rectangle:
    """Where an area lies; all in percent of the drawing."""

    left: float
    top: float
    width: float
    height: float


def areas(root: ModuleNode) -> list[Area]:
    """The modules and tensors to draw: from the top, the largest is divided until there are MAX_AREAS."""
    inner = list(_inside(root, "", None))
    heap = [(-area.num_bytes, i, area, node) for i, (area, node) in enumerate(inner)]
    heapq.heapify(heap)
    done: list[Area] = []
    number = len(heap)
    while heap and len(heap) + len(done) < MAX_AREAS:
        _, _, area, node = heapq.heappop(heap)
        parts = list(_inside(node, f"{area.name}.", area.colour)) if node is not None else []
        if not parts or len(heap) + len(done) + len(parts) > MAX_AREAS:
            done.append(area)
            continue
        for part, below in parts:
            heapq.heappush(heap, (-part.num_bytes, number, part, below))
            number += 1
    found = [*done, *(area for _, _, area, _ in heap)]
    return sorted((area for area in found if area.num_bytes), key=lambda area: -area.num_bytes)[:MAX_AREAS]


def _inside(node: ModuleNode, front: str, colour: int | None) -> Iterator[tuple[Area, ModuleNode | None]]:
    """What a module holds: its modules, and its own tensors, which have no more inside."""
    number = 0
    for child in node.children.values():
        own = number % NUM_COLOURS if colour is None else colour
        yield Area(f"{front}{child.name}", child.num_bytes, child.num_elements, own), child
        number += 1
    for row in node.rows:
        if row.alias_of is None:
            own = number % NUM_COLOURS if colour is None else colour
            yield Area(row.entry.name, row.entry.num_bytes, row.entry.num_elements, own), None
            number += 1


def boxes(sizes: Sequence[int]) -> list[Rectangle]:
    """Where areas of these sizes lie, the largest first; each takes its share of the drawing.

    Rows are filled along the shorter side that is left, as long as that makes their areas squarer.
    """
    total = sum(sizes)
    scaled = [size * _WIDE * _HIGH / total for size in sizes] if total else []
    found: list[Rectangle] = []
    left, top, width, height = 0.0, 0.0, _WIDE, _HIGH
    start = 0
    while start < len(scaled):
        side = min(width, height)
        end = start + 1
        while end < len(scaled) and _worst(scaled[start : end + 1], side) <= _worst(scaled[start:end], side):
            end += 1
        row = scaled[start:end]
        thickness = sum(row) / side if side > 0 else 0.0
        along = 0.0
        for area in row:
            length = area / thickness if thickness > 0 else 0.0
            if width >= height:
                found.append(Rectangle(left, top + along, thickness, length))
            else:
                found.append(Rectangle(left + along, top, length, thickness))
            along += length
        if width >= height:
            left, width = left + thickness, max(width - thickness, 0.0)
        else:
            top, height = top + thickness, max(height - thickness, 0.0)
        start = end
    x, y = 100 / _WIDE, 100 / _HIGH
    return [Rectangle(box.left * x, box.top * y, box.width * x, box.height * y) for box in found]


def _worst(row: Sequence[float], side: float) -> float:
    """How far the least square of a row is from one."""
    whole = sum(row)
    if not (whole and side):
        return float("inf")
    return max(side**2 * max(row) / whole**2, whole**2 / (side**2 * min(row)))


def treemap(root: ModuleNode) -> str:
    """The drawing; empty where there are no bytes."""
    drawn = areas(root)
    if not drawn:
        return ""
    total = sum(area.num_bytes for area in drawn)
    parts = [
        f'<svg class="treemap" role="img" width="100%" height="{_HEIGHT}" '
        'aria-label="The size of each module; the table below has the same numbers">'
    ]
    for area, box in zip(drawn, boxes([area.num_bytes for area in drawn]), strict=True):
        name = escape_html(clean(area.name)[:200], quote=True)
        share = f"{size(area.num_bytes)}, {100 * area.num_bytes / total:.1f}%"
        label = (
            f'<text x="5" y="16">{name}</text><text class="share" x="5" y="32">{share}</text>'
            if box.width > 4 and box.height > 4
            else ""
        )
        parts.append(
            f'<svg x="{box.left:.3f}%" y="{box.top:.3f}%" '
            f'width="{box.width:.3f}%" height="{box.height:.3f}%">'
            f'<rect class="c{area.colour}" width="100%" height="100%"/>{label}'
            f"<title>{name}: {share}, {count(area.num_elements, 'element')}</title></svg>"
        )
    return "\n".join([*parts, "</svg>"])

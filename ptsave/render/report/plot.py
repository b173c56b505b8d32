"""The difference of each module's output, in call order, as one SVG without scripts.

Across, places are percentages, so that the drawing fits a phone and a wide screen with text of the
same size; down, they are pixels.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from html import escape as escape_html

from ptsave.core.verdict import Departure
from ptsave.render.report.words import clean

MAX_POINTS = 400
"""Cap on the points; more calls than that share them."""
MAX_LABEL_CHARS = 42
"""The characters of a label that fit a phone; a longer name loses its middle."""

_READOUT = 44
"""The height, in pixels, of the two lines at the top that say what is under the pointer."""
_TOP, _BOTTOM = 84, 284
"""Where the axis' highest and lowest decades are drawn."""
_BEYOND, _EQUAL = 62, 312
"""Where what cannot be measured and what is bitwise equal are drawn."""
_HEIGHT = 352
_MARGIN = 56
"""The room left of the axis that `page.css` gives its numbers."""
_MAX_TICKS = 6


@dataclass(frozen=True)
class Axis:
    """The logarithmic axis: whole decades around all values that it can show."""

    low: int
    high: int
    step: int

    def y(self, relative: float) -> float:
        """Where a difference is drawn."""
        if relative == 0:
            return _EQUAL
        if not 0 < relative < math.inf:
            return _BEYOND
        return self.at(math.log10(relative))

    def at(self, exponent: float) -> float:
        """Where 10 to the power of `exponent` is drawn."""
        return _BOTTOM - (_BOTTOM - _TOP) * (exponent - self.low) / (self.high - self.low)

    def ticks(self) -> Iterator[int]:
        """The decades to label."""
        yield from range(self.low, self.high + 1, self.step)


def axis(values: Sequence[float]) -> Axis:
    """The axis for `values`; a decade of its own where there is nothing to measure."""
    exponents = [math.log10(value) for value in values if 0 < value < math.inf]
    low = math.floor(min(exponents, default=-8))
    high = max(math.ceil(max(exponents, default=0)), low + 1)
    step = -(-(high - low) // _MAX_TICKS)
    return Axis(low, low + step * -(-(high - low) // step), step)


def gathered(
    growth: Sequence[Departure], named: Collection[str] = ()
) -> tuple[list[tuple[int, Departure]], int]:
    """The calls to draw with their numbers, and how many calls each stands for.

    Of calls that share a point, the one of a module in `named` stands for all, else the farthest off.
    """
    share = -(-len(growth) // MAX_POINTS) or 1
    numbered = list(enumerate(growth))
    groups = [numbered[i : i + share] for i in range(0, len(numbered), share)]

    def rank(point: tuple[int, Departure]) -> tuple[bool, float]:
        return point[1].module in named, _sortable(point[1].relative)

    return [max(group, key=rank) for group in groups], share


def plot(
    growth: Sequence[Departure],
    named: Collection[str] = (),
    *,
    about: str = "Relative difference by module, in call order",
    unit: str = "call",
) -> str:
    """The drawing; modules in `named` are marked as those where the difference begins.

    `about` says what it shows, `unit` what a point stands for.
    """
    points, _ = gathered(growth, named)
    scale = axis([call.relative for call in growth])
    first = next((i for i, (_, call) in enumerate(points) if call.module in named and call.relative), None)
    parts = [
        f'<svg class="plot" role="img" width="100%" height="{_HEIGHT}" '
        f'aria-label="{about}; the table below has the same numbers">',
        f'<text class="hint" x="-{_MARGIN}" y="15">Point or tap to name a module</text>',
        *_grid(scale, growth, unit),
        _curve(points, scale),
    ]
    if first is not None:
        x = _across(first, len(points))
        parts.append(f'<line class="first" x1="{x:.2f}%" x2="{x:.2f}%" y1="{_READOUT}" y2="{_EQUAL + 8}"/>')
    width = 100 / len(points) if points else 100
    radius = 4 if len(points) <= 60 else 3 if len(points) <= 150 else 2
    for i, (index, call) in enumerate(points):
        x, y = _across(i, len(points)), scale.y(call.relative)
        kind = "first" if i == first else "equal" if call.relative == 0 else "off"
        title, value = label(index, call)
        parts.append(
            f'<g class="point {kind}" tabindex="-1">'
            f'<rect class="hit" x="{x - width / 2:.3f}%" y="{_READOUT}" width="{width:.3f}%" '
            f'height="{_EQUAL + 12 - _READOUT}"/>'
            f'<circle cx="{x:.2f}%" cy="{y:.1f}" r="{radius + 2 if i == first else radius}"/>'
            f'<g class="tip"><text class="name" x="-{_MARGIN}" y="15">{_html(title)}</text>'
            f'<text x="-{_MARGIN}" y="34">{_html(value)}</text></g></g>'
        )
    parts.append("</svg>")
    return "\n".join(parts)


def label(index: int, call: Departure) -> tuple[str, str]:
    """The two lines that name a point: `encoder.layer.3 (call 2)`, `#12 · Linear · 3.1e-06`."""
    repeat = f" (call {call.number + 1})" if call.number else ""
    name = _shortened(clean(call.module), MAX_LABEL_CHARS - len(repeat)) or "the whole model"
    kind = _shortened(clean(call.kind).rpartition(".")[2], 24)
    return f"{name}{repeat}", f"#{index + 1:,} · {kind} · {amount(call.relative)}"


def amount(relative: float) -> str:
    """A relative difference in words or in two digits."""
    if relative == 0:
        return "bitwise equal"
    return f"{relative:.1e}" if 0 < relative < math.inf else "beyond measure"


def _grid(scale: Axis, growth: Sequence[Departure], unit: str) -> Iterator[str]:
    for decade in scale.ticks():
        yield _gridline(scale.at(decade), f"1e{decade}")
    yield _gridline(_EQUAL, "equal")
    if any(not 0 <= call.relative < math.inf for call in growth):
        yield _gridline(_BEYOND, "beyond")
    for number in sorted({0, len(growth) // 2, len(growth) - 1}):
        words = f"{number + 1:,}" if number else f"{unit} 1"
        x = _across(number, len(growth))
        yield f'<text class="tick" x="{x:.2f}%" y="{_HEIGHT - 8}" text-anchor="middle">{words}</text>'


def _gridline(y: float, words: str) -> str:
    return (
        f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="-8" y="{y + 4:.1f}" text-anchor="end">{words}</text>'
    )


def _curve(points: Sequence[tuple[int, Departure]], scale: Axis) -> str:
    """The line through the points: a drawing inside that is stretched across."""
    corners = " ".join(
        f"{_across(i, len(points)):.2f},{scale.y(call.relative):.1f}" for i, (_, call) in enumerate(points)
    )
    return (
        f'<svg viewBox="0 0 100 {_HEIGHT}" width="100%" height="{_HEIGHT}" preserveAspectRatio="none">'
        f'<polyline points="{corners}"/></svg>'
    )


def _across(i: int, count: int) -> float:
    return (i + 0.5) * 100 / count


def _sortable(relative: float) -> float:
    return relative if relative == relative else math.inf


def _shortened(text: str, length: int) -> str:
    """`text` without its middle where it is too long: a module's name matters at both ends."""
    if len(text) <= length:
        return text
    head = max((length - 1) // 3, 1)
    return f"{text[:head]}…{text[-(length - 1 - head) :]}"


def _html(text: str) -> str:
    return escape_html(text, quote=True)

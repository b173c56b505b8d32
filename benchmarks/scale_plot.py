"""The figures of `benchmarks.scale` as one SVG without scripts, light or dark as its reader has it.

Two rows, CPU time and bytes; two columns, against the number of ranks and against the number of tensors. All
axes are logarithmic, so that what grows linearly with the chunks is a line that rises as they do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

Point = dict[str, Any]


@dataclass(frozen=True)
class Series:
    """One line in every panel of a row."""

    label: str
    value: Callable[[Point], float]
    is_ptsave: bool = False


@dataclass(frozen=True)
class Row:
    """Panels that share a unit."""

    title: str
    unit: Callable[[float], str]
    series: Sequence[Series]


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis, from a value at one pixel to a value at another."""

    low: float
    high: float
    begin: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.begin + (self.end - self.begin) * share


def _seconds(value: float) -> str:
    return f"{value:g} s" if value >= 1 else f"{value * 1000:g} ms"


def _bytes(mib: float) -> str:
    return f"{mib / 1000:g} GB" if mib >= 1000 else f"{mib:g} MB"


MB_PER_MIB = 2**20 / 1e6
ROWS = (
    Row(
        "CPU time",
        _seconds,
        (
            Series("torch, rank 0: plan a save", lambda p: _of(p, "torch_save", "gather_s", "plan_s")),
            Series("torch, rank 0: write .metadata", lambda p: _of(p, "torch_save", "finish_s")),
            Series("torch, each rank: read .metadata", lambda p: _of(p, "torch_read", "read_s")),
            Series("ptsave, each rank: read .metadata", lambda p: _of(p, "read", "read_s"), True),
            Series(
                "ptsave, each rank: open the folder, plan a load",
                lambda p: _of(p, "open_and_plan", "open_s", "plan_s"),
                True,
            ),
        ),
    ),
    Row(
        "bytes",
        _bytes,
        (
            Series("torch, rank 0: memory to plan and write", lambda p: _mb(p, "torch_save", "peak_mib")),
            Series(
                "torch, rank 0: plans and answers received",
                lambda p: _mb(p, "torch_save", "gathered_mib", "results_mib"),
            ),
            Series("torch, each rank: memory to read .metadata", lambda p: _mb(p, "torch_read", "peak_mib")),
            Series(".metadata", lambda p: _mb(p, "torch_save", "metadata_mib"), True),
            Series(
                "ptsave, each rank: memory to open the folder",
                lambda p: _mb(p, "open_and_plan", "peak_mib"),
                True,
            ),
        ),
    ),
)
COLUMNS = (("by_ranks", "ranks"), ("by_tensors", "tensors"))

_WIDTH = 880
_LEFT, _PANEL, _BETWEEN = 62, 346, 92
_LEFTS = (_LEFT, _LEFT + _PANEL + _BETWEEN)
_LEGEND, _LINE, _HEIGHT, _BELOW = 30, 20, 230, 66
"""Pixels: of a row's title, a line of its legend, its panels, and what stands under them."""
_STYLE = """
svg { --page: #ffffff; --ink: #1c2128; --soft: #59636e; --line: #d8dee4;
  --a: #3b5bdb; --b: #c2255c; --c: #8a5300; --d: #17693b; --e: #7048a8; }
@media (prefers-color-scheme: dark) {
  svg { --page: #171c23; --ink: #e3e8ee; --soft: #9aa6b2; --line: #2f3742;
    --a: #8ea6ff; --b: #ff8fb1; --c: #e9b44c; --d: #6cc890; --e: #c4a3f5; }
}
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--ink); }
.soft { fill: var(--soft); font-size: 12px; } .head { font-weight: 600; }
.page { fill: var(--page); } .grid { stroke: var(--line); }
polyline { fill: none; stroke-width: 2; } .torch { stroke-dasharray: 5 4; }
"""


def draw(results: dict[str, Any]) -> str:
    """The drawing of what `benchmarks.scale` has written."""
    tops = []
    top = 12
    for row in ROWS:
        tops.append(top)
        top += _LEGEND + _LINE * len(_legend_lines(row)) + _HEIGHT + _BELOW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" role="img" '
        'aria-labelledby="title">',
        '<title id="title">CPU time and bytes of a checkpoint of many ranks, '
        "against the number of ranks and of tensors</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{_WIDTH}" height="{top}" rx="6"/>',
    ]
    for row, at in zip(ROWS, tops, strict=True):
        parts += _row(row, at, results)
    return "\n".join([*parts, "</svg>", ""])


def _row(row: Row, top: int, results: dict[str, Any]) -> Iterator[str]:
    yield f'<text class="head" x="{_LEFT}" y="{top + 16}">{row.title}</text>'
    lines = _legend_lines(row)
    for number, line in enumerate(lines):
        middle = top + _LEGEND + _LINE * number + 8
        for (index, series), begin in zip(line, _LEFTS, strict=False):
            yield _line(index, series, [(begin, middle), (begin + 28, middle)])
            yield f'<text x="{begin + 36}" y="{middle + 4}">{escape(series.label)}</text>'
    points = [point for name, _ in COLUMNS for point in results[name]]
    decades = [math.log10(series.value(point)) for series in row.series for point in points]
    high_at = top + _LEGEND + _LINE * len(lines) + 8
    low, high = math.floor(min(decades)), math.ceil(max(decades))
    y = Scale(10.0**low, 10.0**high, high_at + _HEIGHT, high_at)
    for (name, counted), left in zip(COLUMNS, _LEFTS, strict=True):
        for decade in range(low, high + 1):
            at = y.at(10.0**decade)
            yield f'<line class="grid" x1="{left}" x2="{left + _PANEL}" y1="{at:.1f}" y2="{at:.1f}"/>'
            label = row.unit(10.0**decade)
            yield f'<text class="soft" x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{label}</text>'
        yield from _panel(row, results[name], counted, left, y)


def _panel(row: Row, points: Sequence[Point], counted: str, left: int, y: Scale) -> Iterator[str]:
    counts = [point[counted] for point in points]
    x = Scale(min(counts), max(counts), left, left + _PANEL)
    for count in counts:
        yield (
            f'<text class="soft" x="{x.at(count):.1f}" y="{y.begin + 18}" '
            f'text-anchor="middle">{count:,}</text>'
        )
    fixed = "tensors" if counted == "ranks" else "ranks"
    yield (
        f'<text x="{left + _PANEL / 2}" y="{y.begin + 38}" text-anchor="middle">'
        f"{counted}, with {points[0][fixed]:,} {fixed}</text>"
    )
    for index, series in enumerate(row.series):
        yield _line(index, series, [(x.at(p[counted]), y.at(series.value(p))) for p in points])


def _legend_lines(row: Row) -> list[list[tuple[int, Series]]]:
    """The series of a row, two on each line of its legend."""
    numbered = list(enumerate(row.series))
    return [numbered[i : i + 2] for i in range(0, len(numbered), 2)]


def _line(index: int, series: Series, corners: Sequence[tuple[float, float]]) -> str:
    color = f"var(--{'abcde'[index]})"
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    dots = corners if len(corners) > 2 else ()
    return (
        f'<polyline class="{"ptsave" if series.is_ptsave else "torch"}" points="{path}" stroke="{color}"/>'
        + ("".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in dots))
    )


def _of(point: Point, step: str, *names: str) -> float:
    return float(sum(point[step][name] for name in names))


def _mb(point: Point, step: str, *names: str) -> float:
    return MB_PER_MIB * _of(point, step, *names)

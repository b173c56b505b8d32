"""The figures of `benchmarks.scale` as the table in `docs/scale.md`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_HEAD = (
    "ranks",
    "tensors",
    "chunks",
    "`.metadata`",
    "rank 0 receives",
    "rank 0 plans and writes",
    "its memory",
    "torch reads `.metadata`",
    "ptsave reads it",
    "ptsave opens and plans",
    "memory of that",
)


def table(results: dict[str, Any]) -> str:
    """Of every point, in Markdown."""
    lines = [_HEAD, ["---:"] * len(_HEAD), *map(_cells, _points(results))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _points(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name in ("by_ranks", "large", "by_tensors"):
        yield from results[name]


def _cells(point: dict[str, Any]) -> list[str]:
    torch, opened = point["torch_save"], point["open_and_plan"]
    plan_s = sum(torch[name] for name in ("gather_s", "plan_s", "scatter_s", "finish_s"))
    return [
        f"{point['ranks']:,}",
        f"{point['tensors']:,}",
        f"{point['ranks'] * point['tensors']:,}",
        _mib(torch["metadata_mib"]),
        _mib(torch["gathered_mib"] + torch["results_mib"]),
        _seconds(plan_s),
        _mib(torch["peak_mib"]),
        _seconds(point["torch_read"]["read_s"]),
        _seconds(point["read"]["read_s"]),
        _seconds(opened["open_s"] + opened["plan_s"]),
        _mib(opened["peak_mib"]),
    ]


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _mib(mib: float) -> str:
    return f"{mib:,.0f} MiB" if mib >= 10 else f"{mib:.1f} MiB"

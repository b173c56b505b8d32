"""Rows: `inspect` reads headers, never weights."""

from __future__ import annotations

from pathlib import Path

from benchmarks.files import Files
from benchmarks.measure import Command
from benchmarks.rows import Budget, Row, peak, ptsave, python, wall, wall_ratio

TORCH_LOAD = "import sys, torch; torch.load(sys.argv[1], mmap=True, weights_only=True)"
SAFE_OPEN = """
import sys
from safetensors import safe_open
with safe_open(sys.argv[1], framework="pt") as f:
    for key in f.keys():
        f.get_slice(key).get_shape()
"""


def _inspect(path: Path) -> Command:
    return Command(lambda out: ptsave("inspect", path))


def inspect_1gib(files: Files) -> Row:
    """200 tensors, both formats."""
    pt, safetensors = files.state(files.gib)
    return Row(
        {
            "pt": _inspect(pt),
            "safetensors": _inspect(safetensors),
            "torch": Command(lambda out: python(TORCH_LOAD, pt)),
            "safe_open": Command(lambda out: python(SAFE_OPEN, safetensors)),
        },
        [
            Budget("`inspect` 1 GiB `.pt`", "`torch.load(mmap=True)`", wall_ratio("pt", "torch"), "×", 0.1),
            Budget("`inspect` 1 GiB safetensors", "the same", wall_ratio("safetensors", "torch"), "×", 0.1),
            Budget("`inspect` 1 GiB safetensors", "`safe_open`", wall_ratio("safetensors", "safe_open"), "×"),
            Budget("`inspect` 1 GiB `.pt`, peak", "", peak("pt"), "MiB", 48),
            Budget("`inspect` 1 GiB safetensors, peak", "", peak("safetensors"), "MiB", 48),
            Budget("`torch.load(mmap=True)`, peak", "", peak("torch"), "MiB"),
        ],
    )


def inspect_10x(files: Files) -> Row:
    """Ten times the bytes in as many tensors."""
    sides = {}
    for size, num_bytes in (("small", 4 * files.gib // 10), ("large", 4 * files.gib)):
        pt, safetensors = files.state(num_bytes)
        sides[f"pt-{size}"] = _inspect(pt)
        sides[f"safetensors-{size}"] = _inspect(safetensors)
    return Row(
        sides,
        [
            Budget(
                f"`inspect` 4 GiB {kind}",
                "itself on a tenth of the bytes in as many tensors",
                wall_ratio(f"{kind}-large", f"{kind}-small"),
                "×",
                1.1,
            )
            for kind in ("pt", "safetensors")
        ],
        drop_inputs=True,
    )


def inspect_100k(files: Files) -> Row:
    """100,000 tensors."""
    pt, safetensors = files.many(100_000)
    return Row(
        {
            "pt": _inspect(pt),
            "safetensors": _inspect(safetensors),
            "torch": Command(lambda out: python(TORCH_LOAD, pt)),
            "safe_open": Command(lambda out: python(SAFE_OPEN, safetensors)),
        },
        [
            Budget(
                "`inspect` 100,000 tensors, `.pt`",
                "`torch.load(mmap=True)`",
                wall_ratio("pt", "torch"),
                "×",
                0.5,
            ),
            Budget(
                "`inspect` 100,000 tensors, safetensors",
                "`safe_open`",
                wall_ratio("safetensors", "safe_open"),
                "×",
            ),
            Budget("`inspect` 100,000 tensors, `.pt`, peak", "", peak("pt"), "MiB"),
        ],
    )


def inspect_1tib(files: Files) -> Row:
    """200 shards of sparse files."""
    folder = files.sharded(2**40, 200, sparse=True)
    return Row(
        {"sharded": _inspect(folder)},
        [
            Budget("`inspect` 1 TiB in 200 shards", "", wall("sharded"), "s", 2.0),
            Budget("`inspect` 1 TiB in 200 shards, peak", "", peak("sharded"), "MiB"),
        ],
    )


ROWS = [inspect_1gib, inspect_10x, inspect_100k, inspect_1tib]

"""Rows: `convert` moves bytes, `cp` moves bytes."""

from __future__ import annotations

from pathlib import Path

from benchmarks.files import Files
from benchmarks.measure import Command
from benchmarks.rows import Budget, Row, net_ratio, peak, peak_ratio, peak_spread, ptsave, python, wall_ratio

TO_SAFETENSORS = """
import sys, torch
from safetensors.torch import save_file
save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])
"""
TO_PT = """
import sys, torch
from safetensors.torch import load_file
torch.save(load_file(sys.argv[1]), sys.argv[2])
"""
DCP_TO_SAFETENSORS = """
import sys, torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
dcp_to_torch_save(sys.argv[1], sys.argv[2] + ".pt")
save_file(torch.load(sys.argv[2] + ".pt", weights_only=True), sys.argv[2])
"""
MERGE = """
import sys, pathlib
from safetensors.torch import load_file, save_file
state = {}
for shard in sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors")):
    state |= load_file(shard)
save_file(state, sys.argv[2])
"""
CAST = """
import sys, torch
from safetensors.torch import load_file, save_file
save_file({name: tensor.bfloat16() for name, tensor in load_file(sys.argv[1]).items()}, sys.argv[2])
"""


def _convert(source: Path, *flags: str, suffix: str = ".safetensors") -> Command:
    return Command(lambda out: ptsave("convert", "-q", *flags, source, out / f"b{suffix}"))


def _script(script: str, source: Path, suffix: str = ".safetensors") -> Command:
    return Command(lambda out: python(script, source, out / f"b{suffix}"))


def cp(source: Path) -> Command:
    """`cp` as it is: done while most of the bytes are still in memory only."""
    return Command(lambda out: ["cp", "--reflink=never", str(source), str(out / "b")])


def cp_durable(source: Path) -> Command:
    """`cp`, then fsync of the file and of its folder: what `convert` does before it says done."""
    script = 'cp --reflink=never "$1" "$2/b" && sync "$2/b" "$2"'
    return Command(lambda out: ["sh", "-c", script, "sh", str(source), str(out)])


DURABLE = "`cp` and fsync"
PLAIN = "`cp` alone, which leaves the bytes in memory"


def _direction(files: Files, source: int, script: str, suffix: str, words: str) -> Row:
    tiny, large = files.tiny()[source], files.state(files.gib)[source]

    def against_cp(what: str, side: str, idle: str, limit: float) -> list[Budget]:
        durable = net_ratio(side, idle, "cp-durable", "cp-durable-idle")
        return [
            Budget(f"{what}, start-up subtracted", DURABLE, durable, "×", limit),
            Budget(f"{what}, whole process", DURABLE, wall_ratio(side, "cp-durable"), "×"),
            Budget(f"{what}, start-up subtracted", PLAIN, net_ratio(side, idle, "cp", "cp-idle"), "×"),
            Budget(f"{what}, whole process", PLAIN, wall_ratio(side, "cp"), "×"),
        ]

    return Row(
        {
            "convert": _convert(large, "--no-check", suffix=suffix),
            "checked": _convert(large, suffix=suffix),
            "idle": _convert(tiny, "--no-check", suffix=suffix),
            "checked-idle": _convert(tiny, suffix=suffix),
            "cp": cp(large),
            "cp-idle": cp(tiny),
            "cp-durable": cp_durable(large),
            "cp-durable-idle": cp_durable(tiny),
            "script": _script(script, large, suffix),
        },
        [
            *against_cp(words, "convert", "idle", 1.1),
            *against_cp(f"{words}, read back and compared", "checked", "checked-idle", 1.8),
            Budget(f"{words}, whole process", "torch script", wall_ratio("convert", "script"), "×", 0.25),
            Budget(f"{words}, peak", "torch script", peak_ratio("convert", "script"), "×", 1 / 15),
            Budget(f"{words}, peak", "", peak("convert"), "MiB", 64),
        ],
        touch_bytes=2 * files.gib,
    )


def convert_pt_safetensors(files: Files) -> Row:
    """The commonest direction."""
    return _direction(files, 0, TO_SAFETENSORS, ".safetensors", "`convert` 1 GiB `.pt` → safetensors")


def convert_safetensors_pt(files: Files) -> Row:
    """And back."""
    return _direction(files, 1, TO_PT, ".pt", "`convert` 1 GiB safetensors → `.pt`")


def convert_peak(files: Files) -> Row:
    """Memory does not grow with the file."""
    sizes = {"0.25": files.gib // 4, "1": files.gib, "4": 4 * files.gib}
    sides = {}
    for size, num_bytes in sizes.items():
        pt, safetensors = files.state(num_bytes)
        sides[f"pt-{size}"] = _convert(pt)
        sides[f"safetensors-{size}"] = _convert(safetensors, suffix=".pt")
    pt_sides = [f"pt-{size}" for size in sizes]
    safetensors_sides = [f"safetensors-{size}" for size in sizes]
    return Row(
        sides,
        [
            Budget("`convert` 4 GiB `.pt` → safetensors, peak", "", peak("pt-4"), "MiB", 64),
            Budget("`convert` 4 GiB safetensors → `.pt`, peak", "", peak("safetensors-4"), "MiB", 64),
            Budget(
                "the same at 0.25, 1 and 4 GiB, `.pt` → safetensors, spread of the peaks",
                "",
                peak_spread(*pt_sides),
                "MiB",
                8,
            ),
            Budget(
                "the same at 0.25, 1 and 4 GiB, safetensors → `.pt`, spread of the peaks",
                "",
                peak_spread(*safetensors_sides),
                "MiB",
                8,
            ),
        ],
        touch_bytes=files.gib,
        max_runs=5,
        drop_inputs=True,
    )


def convert_dcp(files: Files) -> Row:
    """A distributed checkpoint into one file."""
    folder = files.dcp(files.gib)
    return Row(
        {
            "convert": _convert(folder),
            "script": _script(DCP_TO_SAFETENSORS, folder),
        },
        [
            Budget(
                "`convert` 1 GiB dcp → safetensors",
                "`dcp_to_torch_save` and `save_file`",
                wall_ratio("convert", "script"),
                "×",
            ),
            Budget("`convert` 1 GiB dcp → safetensors, peak", "", peak("convert"), "MiB", 64),
        ],
        touch_bytes=2 * files.gib,
    )


def convert_sharded(files: Files) -> Row:
    """Shards into one file."""
    folder = files.sharded(files.gib, 8)
    return Row(
        {"convert": _convert(folder), "script": _script(MERGE, folder)},
        [
            Budget(
                "`convert` 1 GiB sharded → safetensors",
                "`load_file` and `save_file`",
                wall_ratio("convert", "script"),
                "×",
            ),
            Budget("`convert` 1 GiB sharded → safetensors, peak", "", peak("convert"), "MiB", 64),
        ],
        touch_bytes=2 * files.gib,
    )


def convert_bfloat16(files: Files) -> Row:
    """A cast on the way."""
    _, safetensors = files.state(files.gib)
    return Row(
        {
            "convert": _convert(safetensors, "--dtype", "bfloat16"),
            "script": _script(CAST, safetensors),
        },
        [
            Budget(
                "`convert --dtype bfloat16` 1 GiB",
                "torch script",
                wall_ratio("convert", "script"),
                "×",
                1.0,
            ),
            Budget("`convert --dtype bfloat16` 1 GiB, peak", "", peak("convert"), "MiB"),
        ],
        touch_bytes=2 * files.gib,
    )


ROWS = [
    convert_pt_safetensors,
    convert_safetensors_pt,
    convert_peak,
    convert_dcp,
    convert_sharded,
    convert_bfloat16,
]

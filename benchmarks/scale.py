"""What a checkpoint of many ranks costs before a byte of a tensor is read or written.

    python -m benchmarks.scale

It measures, and writes scale.json beside this file; scripts/docs.py makes the table in docs/scale.md of it.

Each point is a checkpoint of 1 TiB whose files are sparse. What rank 0 plans and writes is torch's own doing
(`benchmarks.scale_torch`); torch reads it back, and so does ptsave. Each step has a process of its own; times
are of its CPU, memory is what its peak grows by.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.scale_files import Shape, write_files
from ptsave.core.parts.select import select_model
from ptsave.core.values.gather import laid_out
from ptsave.formats import open_checkpoint
from ptsave.formats.dcp.chunks import Box, window
from ptsave.formats.dcp.metadata import parse_metadata

RESULTS = Path(__file__).with_name("scale.json")
LONG_CHUNKS = 2_000
READERS = 192
"""The ranks that the checkpoint is loaded on: another number than it was saved on, so no chunk fits."""
BY_RANKS = [Shape(num_ranks, 100) for num_ranks in (16, 64, 256, 1024, 4096, 10_000)]
BY_TENSORS = [Shape(4, num_tensors) for num_tensors in (100, 1000, 10_000, 100_000)]
LARGE = [Shape(256, 400)]
WIDE = (64, 256, 1024, 4096, 10_000)
Figures = dict[str, float]


def torch_save(folder: Path, shape: Shape) -> Figures:
    """torch, rank 0: plan a save, and write `.metadata`."""
    from benchmarks import scale_torch

    return scale_torch.save(folder, shape)


def torch_read(folder: Path, shape: Shape) -> Figures:
    """torch, each rank: read `.metadata`, and plan a load."""
    from benchmarks import scale_torch

    return scale_torch.read(folder, READERS)


def torch_wide(folder: Path, shape: Shape) -> Figures:
    """torch, rank 0: plan the save of one tensor that is split along its shorter dimension."""
    from benchmarks import scale_torch

    return scale_torch.plan_wide(shape.num_ranks)


def read(folder: Path, shape: Shape) -> Figures:
    """ptsave, each rank: read `.metadata`."""
    begin = time.process_time()
    parse_metadata((folder / ".metadata").read_bytes(), str(folder))
    return {"read_s": round(time.process_time() - begin, 4)}


def open_and_plan(folder: Path, shape: Shape) -> Figures:
    """ptsave, each rank: open the folder, every part's header included, and plan what the rank reads."""
    begin = time.process_time()
    with open_checkpoint(folder) as checkpoint:
        opened = time.process_time()
        num_bytes = 0
        for entry in select_model(checkpoint, None).tensors.values():
            rows = -(-entry.shape[0] // READERS)
            count = max(0, min(rows, entry.shape[0] - rows))
            num_bytes += laid_out(window(entry, Box((rows, 0), (count, entry.shape[1])))).num_bytes
        end = time.process_time()
    return {
        "open_s": round(opened - begin, 4),
        "plan_s": round(end - opened, 4),
        "rank_gib": round(num_bytes / 2**30, 2),
    }


STEPS: dict[str, Callable[[Path, Shape], Figures]] = {
    step.__name__: step for step in (torch_save, torch_read, torch_wide, read, open_and_plan)
}


def measured(step: str, folder: Path, shape: Shape) -> Figures:
    """The least of each figure of one step, run in processes of its own: one where it takes long."""
    times = 1 if shape.num_chunks > LONG_CHUNKS else 3
    runs = [_measured(step, folder, shape) for _ in range(times)]
    return {name: min(run[name] for run in runs) for name in runs[0]}


def _measured(step: str, folder: Path, shape: Shape) -> Figures:
    argv = [sys.executable, "-m", "benchmarks.scale", "--step", step, str(folder)]
    argv += ["--shape", str(shape.num_ranks), str(shape.num_tensors), str(shape.num_bytes)]
    found: Figures = json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout)
    return found


def run_step(step: str, folder: Path, shape: Shape) -> Figures:
    """The figures of one step, run here, with the MiB that this process's peak grows by."""
    if step.startswith("torch"):
        import benchmarks.scale_torch  # noqa: F401  # before the memory is looked at

    gc.collect()
    gc.freeze()  # the collections that a step causes look at its own objects, and not at torch's modules
    before = peak_kib()
    figures = STEPS[step](folder, shape)
    return figures | {"peak_mib": round((peak_kib() - before) / 1024, 1)}


def peak_kib() -> int:
    """Of this process, as Linux tells; what `getrusage` tells counts the process that started it too."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def point(shape: Shape) -> dict[str, object]:
    """All figures of one checkpoint."""
    with tempfile.TemporaryDirectory(prefix="ptsave-scale-") as temp:
        folder = Path(temp)
        found: dict[str, object] = {"ranks": shape.num_ranks, "tensors": shape.num_tensors}
        found["torch_save"] = measured("torch_save", folder, shape)
        write_files(folder, shape)
        for step in ("torch_read", "read", "open_and_plan"):
            found[step] = measured(step, folder, shape)
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("folder", type=Path, nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=int, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(run_step(arguments.step, arguments.folder, Shape(*arguments.shape))))
        return
    results: dict[str, Any] = {"machine": describe(Path(tempfile.gettempdir()))}
    for name, shapes in (("by_ranks", BY_RANKS), ("by_tensors", BY_TENSORS), ("large", LARGE)):
        results[name] = []
        for shape in shapes:
            found = point(shape)
            print(json.dumps(found), flush=True)
            results[name].append(found)
    results["wide"] = [{"ranks": count} | measured("torch_wide", Path(), Shape(count, 1)) for count in WIDE]
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

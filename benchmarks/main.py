"""Run the rows that were asked for and write what came out."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    addresses,
    converting,
    distributed,
    exporting,
    inspecting,
    reflinks,
    saving,
    startup,
    training,
    verifying,
)
from benchmarks.files import Files
from benchmarks.machine import describe
from benchmarks.measure import SideError, SkipError, compare
from benchmarks.report import is_met, merge, number, results
from benchmarks.rows import Row

RESULTS = Path(__file__).with_name("results.json")
ROWS: dict[str, Callable[[Files], Row]] = {
    make.__name__.replace("_", "-"): make
    for module in (
        startup,
        inspecting,
        converting,
        reflinks,
        saving,
        training,
        distributed,
        verifying,
        exporting,
        addresses,
    )
    for make in module.ROWS
}
GIB = 2**30
QUICK_BYTES = 64 * 2**20


def main() -> int:
    """Exit code 1 when a budget is missed or a side fails."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the big files go
    names = [name for name in ROWS if any(name.startswith(only) for only in arguments.only or [""])]
    if not names:
        print(f"error: no row starts so; the rows are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    runs = arguments.runs or (3 if arguments.quick else 7)
    out = arguments.out or (None if arguments.quick else RESULTS)
    fresh: list[dict[str, Any]] = []
    failed = False
    with tempfile.TemporaryDirectory(prefix="ptsave-bench-", dir=arguments.folder) as temp:
        machine = describe(Path(temp))
        files = Files(Path(temp), QUICK_BYTES if arguments.quick else GIB)
        with files.closing:
            for name in names:
                try:
                    found = measure(name, files, runs)
                except SkipError as reason:
                    print(f"{name}: SKIPPED: {reason}", file=sys.stderr)
                    continue
                except (SideError, subprocess.CalledProcessError) as problem:
                    print(f"{name}: FAILED: {problem}", file=sys.stderr)
                    failed = True
                    continue
                for result in found:
                    print(sentence(result), flush=True)
                fresh += found
                if out is not None:
                    text = json.dumps(merge(out, machine, fresh, list(ROWS)), indent=1)
                    out.write_text(text + "\n", encoding="utf-8")
    return int(failed or any(is_met(result) is False for result in fresh))


def measure(name: str, files: Files, runs: int) -> list[dict[str, Any]]:
    """The results of one row.

    Raises: SideError, SkipError, CalledProcessError (making the inputs).
    """
    row = ROWS[name](files)
    os.sync()  # what making the inputs left dirty is written before the clock runs
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=row.scratch or files.folder) as scratch:
        samples = compare(row.sides, min(runs, row.max_runs), row.touch_bytes, Path(scratch))
    if row.drop_inputs:
        files.drop()
    return results(name, row, samples)


def sentence(result: dict[str, Any]) -> str:
    """One result for a person."""
    against = f" against {result['against']}" if result["against"] else ""
    budget = f" (budget {number(result['budget'], result['unit'])})" if result["budget"] is not None else ""
    word = {None: "", True: " ok", False: " MISSED"}[is_met(result)]
    return f"{result['work']}{against}: {number(result['measured'], result['unit'])}{budget}{word}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure ptsave side by side with cp, torch and safetensors, as whole processes.",
    )
    parser.add_argument(
        "--only", action="append", metavar="PREFIX", help=f"rows whose names start so: {', '.join(ROWS)}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="64 MiB in place of 1 GiB, 3 runs; results are not kept"
    )
    parser.add_argument("--runs", type=int, help="runs a side (7)")
    parser.add_argument("--folder", type=Path, help="where the big files go for a while (20 GiB)")
    parser.add_argument("--out", type=Path, help=f"results file ({RESULTS.name} beside the code)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

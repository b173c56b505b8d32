"""Fuzz the readers for a given time, and say what was found; `scripts/fuzz` runs it.

Exit code 0 when there is no finding, 1 when there is one.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fuzz import costs
from fuzz.targets import MAIN, TARGETS
from tests.attacks.strategies import STRATEGIES

ENGINES = ("atheris", "hypothesis")
DONE = re.compile(
    r"#(\d+)\s+(?:DONE|pulse|NEW|REDUCE|INITED).*?cov: (\d+) ft: (\d+) corp: (\d+)/\S+.*?exec/s: (\d+)"
)


def main() -> int:
    """Run each engine on each target for its share of the time; returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for all targets together (default: 60)")
    parser.add_argument(
        "--target", action="append", choices=list(TARGETS), help="repeatable; default: the main ones"
    )
    parser.add_argument("--engine", action="append", choices=ENGINES, help="repeatable; default: both")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="folder to keep them in")
    parser.add_argument("--costs", action="store_true", help="instead, measure what small files cost")
    parser.add_argument("--kind", action="append", metavar="GLOB", help="of --costs: the files; repeatable")
    parser.add_argument("--command", action="append", metavar="GLOB", help="of --costs: the commands")
    asked = parser.parse_args()
    if asked.costs:
        return costs.main(asked)
    asked.findings.mkdir(parents=True, exist_ok=True)
    jobs = [
        (engine, target)
        for engine in asked.engine or ENGINES
        for target in asked.target or MAIN
        if engine == "atheris" or target in STRATEGIES
    ]
    if not jobs:
        parser.error("this engine has no such target")
    share = max(1, asked.seconds // len(jobs))
    found = 0
    for engine, target in jobs:
        figures = run(engine, target, share, asked.findings)
        found += len(figures["findings"])
        print(line(engine, target, figures), flush=True)
    if found:
        print(f"{found} kinds of findings are in {asked.findings}/; run one again with", flush=True)
        print("    python -m fuzz.worker replay TARGET FILE", flush=True)
    return 1 if found else 0


def run(engine: str, target: str, seconds: int, folder: Path) -> dict[str, Any]:
    """One engine on one target; started again when an input ends the process before its time."""
    end = time.monotonic() + seconds
    total: dict[str, Any] = {
        "executions": 0,
        "accepted": 0,
        "slowest_seconds": 0.0,
        "findings": {},
        "cov": "",
    }
    while (left := round(end - time.monotonic())) > 0:
        command = [sys.executable, "-m", "fuzz.worker", engine, target, str(left), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        figures = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
        total["executions"] += figures.get("executions", 0)
        total["accepted"] += figures.get("accepted", 0)
        total["slowest_seconds"] = max(total["slowest_seconds"], figures.get("slowest_seconds", 0))
        total["findings"] |= figures.get("findings", {})
        if progress := DONE.findall(done.stderr):
            total["cov"] = f"coverage {progress[-1][1]} edges, corpus {progress[-1][3]}"
        if done.returncode:
            kind = f"died-{done.returncode}"
            total["findings"][kind] = total["findings"].get(kind, 0) + 1
            (folder / f"{target}-{kind}.txt").write_text(done.stderr[-20_000:])
            if not figures:
                break
    return total


def line(engine: str, target: str, figures: dict[str, Any]) -> str:
    """One job's figures for a person."""
    words = [
        f"{engine:<10} {target:<11} {figures['executions']:>9,} executions",
        f"{figures['accepted']:,} accepted",
        f"slowest {figures['slowest_seconds']:.2f} s",
        *([figures["cov"]] if figures["cov"] else []),
        f"{len(figures['findings'])} kinds of findings",
    ]
    return ", ".join(words) + "".join(f"\n    {kind} × {n}" for kind, n in figures["findings"].items())


if __name__ == "__main__":
    sys.exit(main())

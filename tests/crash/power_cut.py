"""The plug pulled for real: a file system is shut down under a writer, mounted again, and read.

    python -m tests.crash.power_cut benchmarks/power_cut.json

`torch.save` and `safetensors.torch.save_file` go through the same as ptsave's writers. The journal is lost or
kept as of the cut, and so is what had not been written back; a disk that lies about flushes is not imitated.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.machine import describe
from tests.crash import mounts, tracing
from tests.crash.contents import ABSENT, by_others, by_ptsave, of_state
from tests.crash.tracing import stopped_at, traced
from tests.crash.trials import Trial, Trials, ptsave_command

SHUTDOWN = 0x8004587D
"""Source: linux/fs/ext4/ext4.h (EXT4_IOC_SHUTDOWN), linux/fs/xfs/xfs_fs.h (XFS_IOC_GOINGDOWN)."""
LOSES_LOG = {"log flushed": 1, "log lost": 2}
"""Source: the same, EXT4_GOING_FLAGS_LOGFLUSH and _NOLOGFLUSH, as in XFS."""
DELAYS_SECONDS = (0, 0, 0.01, 0.1, 0.5, 1, 2, 4, 6, 8)
"""How long after the return the power fails; ext4 commits its journal every 5 seconds."""
RETURNED = "after it returned"
DURING = "during the write"


def torch_save(new: str, destination: str) -> None:
    torch.save(torch.load(new, weights_only=True), destination)


def safetensors_save(new: str, destination: str) -> None:
    save_file(torch.load(new, weights_only=True), destination)


@dataclass(frozen=True)
class Tool:
    """A writer under test."""

    name: str
    format: str
    prepare: Callable[[Trials, Path, Path], Trial]
    """A process that will write the weights of a file to a destination."""

    @property
    def file_name(self) -> str:
        return "model" + {"pt": ".pt", "safetensors": ".safetensors"}.get(self.format, "")

    def seen(self, path: Path) -> str:
        """What readers find; HALF unless all of them agree."""
        seen = by_others(path, self.format)
        return seen if self.name != "ptsave" or seen == by_ptsave(path) else "half"


def _ptsave(format_name: str) -> Tool:
    def prepare(trials: Trials, new: Path, destination: Path) -> Trial:
        words = ["convert", str(new), str(destination), "--format", format_name, "--overwrite"]
        return trials.prepare(ptsave_command, *words, cwd=Path("/"))

    return Tool("ptsave", format_name, prepare)


def _other(name: str, format_name: str, target: Callable[[str, str], None]) -> Tool:
    def prepare(trials: Trials, new: Path, destination: Path) -> Trial:
        return trials.prepare(target, str(new), str(destination), cwd=Path("/"))

    return Tool(name, format_name, prepare)


TOOLS = (
    _ptsave("pt"),
    _ptsave("safetensors"),
    _ptsave("safetensors-sharded"),
    _ptsave("dcp"),
    _other("torch.save", "pt", torch_save),
    _other("safetensors.torch.save_file", "safetensors", safetensors_save),
)


@dataclass
class Stage:
    """A file system in an image, mounted and unmounted for each trial."""

    image: Path
    folder: Path
    log: Path
    trials: Trials
    new: Path
    old: Path
    seen_new: str
    seen_old: str

    def begin(self, tool: Tool, *, with_old: bool) -> Path:
        """Mount it, with nothing on it but the old file, durable."""
        mounts.mount(self.image, self.folder)
        mounts.system("sh", "-c", 'rm -rf "$1"/model*', "sh", self.folder)
        destination = self.folder / tool.file_name
        if with_old:
            trial = tool.prepare(self.trials, self.old, destination)
            trial.go()
            assert trial.wait().code == 0
        mounts.system("sync", "--file-system", self.folder)
        return destination

    def cut(self, how: str) -> None:
        """Pull the plug."""
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("=I", LOSES_LOG[how]))
        finally:
            os.close(fd)

    def end(self, tool: Tool, destination: Path, *, with_old: bool) -> str:
        """Mount it again: `old`, `new` or `half`."""
        mounts.system("umount", self.folder)
        mounts.mount(self.image, self.folder)
        seen = tool.seen(destination)
        mounts.system("umount", self.folder)
        if seen == self.seen_new:
            return "new"
        return "old" if seen == (self.seen_old if with_old else ABSENT) else "half"

    def after_return(self, tool: Tool, how: str, delay_seconds: float, *, with_old: bool) -> str:
        """Cut when the writer has returned."""
        destination = self.begin(tool, with_old=with_old)
        trial = tool.prepare(self.trials, self.new, destination)
        trial.go()
        ended = trial.wait()
        assert ended.code == 0, ended
        time.sleep(delay_seconds)
        self.cut(how)
        return self.end(tool, destination, with_old=with_old)

    def points(self, tool: Tool, *, with_old: bool) -> list[tuple[str, int]]:
        """The calls of the writer that change files."""
        destination = self.begin(tool, with_old=with_old)
        _, calls = traced(tool.prepare(self.trials, self.new, destination), self.log)
        mounts.system("umount", self.folder)
        return [(call.name, call.number) for call in calls if call.changes_files]

    def during(self, tool: Tool, how: str, point: tuple[str, int], *, with_old: bool) -> str | None:
        """Cut right after a call; None when the writer ended before."""
        destination = self.begin(tool, with_old=with_old)
        trial = tool.prepare(self.trials, self.new, destination)
        with stopped_at(trial, self.log, *point) as is_stopped:
            self.cut(how)
            trial.kill()
        state = self.end(tool, destination, with_old=with_old)
        return state if is_stopped else None


@contextmanager
def prepared(folder: Path, kind: str, trials: Trials, num_elements: int) -> Iterator[Stage]:
    """An image of a file system, and two models of about 4 · `num_elements` bytes."""
    seen = []
    for seed, name in enumerate(("new.pt", "old.pt")):
        generator = torch.Generator().manual_seed(seed)
        state = {f"layer{i}": torch.randn(num_elements // 4, generator=generator) for i in range(4)}
        torch.save(state, folder / name)
        seen.append(of_state(state))
    image = mounts.make_image(folder / f"{kind}.img", kind)
    mounted = folder / kind
    mounted.mkdir()
    log = folder / "strace.log"
    try:
        yield Stage(image, mounted, log, trials, folder / "new.pt", folder / "old.pt", *seen)
    finally:
        if os.path.ismount(mounted):  # a trial was cut short
            mounts.system("umount", "--lazy", mounted)


def run(
    stage: Stage,
    tool: Tool,
    num_points: int,
    delays_seconds: Sequence[float] = (0,),
    *,
    with_old: bool = True,
) -> Iterator[tuple[str, str, str]]:
    """(phase, where, state) of every trial: after the return, and at points spread over the write."""
    for how in LOSES_LOG:
        for delay in delays_seconds:
            yield RETURNED, f"{how}, {delay} s", stage.after_return(tool, how, delay, with_old=with_old)
    if tracing.why_not():
        return
    points = stage.points(tool, with_old=with_old)
    for i, (name, n) in enumerate(points[:: max(1, len(points) // num_points)]):
        how = list(LOSES_LOG)[i % len(LOSES_LOG)]
        state = stage.during(tool, how, (name, n), with_old=with_old)
        if state is not None:
            yield DURING, f"{how}, {name} {n}", state


def main() -> None:
    """Count for every tool and file system, and write the counts down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--points", type=int, default=40)
    chosen = parser.parse_args()
    counts: Counter[tuple[str, str, str, str, str]] = Counter()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        trials = Trials(folder)
        for kind in mounts.MAKERS:
            if reason := mounts.why_no_image(kind):
                sys.exit(f"error: {reason}")
            place = folder / f"on-{kind}"
            place.mkdir()
            with prepared(place, kind, trials, num_elements=2**20) as stage:
                for tool in TOOLS:
                    for phase, _, state in run(stage, tool, chosen.points, DELAYS_SECONDS):
                        counts[kind, tool.name, tool.format, phase, state] += 1
        machine = describe(folder)
    rows = [
        {"file_system": kind, "tool": name, "format": form, "cut": phase}
        | {state: counts[kind, name, form, phase, state] for state in ("old", "new", "half")}
        for kind, name, form, phase in dict.fromkeys(key[:4] for key in counts)
    ]
    chosen.results.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

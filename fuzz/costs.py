"""What small files cost: every kind of them through every command, held to the bounds.

`scripts/fuzz --costs` runs it, for some hours; `--kind` and `--command` select a part. A file or folder below
16 MiB takes at most MAX_SECONDS of processor time and MAX_BYTES of memory, whatever is in it and whatever is
asked: where it would take more, a cap is named.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.measure import LAUNCH
from ptsave.errors import PtsaveError, RefusedError
from ptsave.formats import open_checkpoint
from ptsave.verbs.inspect import inspect
from tests.attacks.cost_files import FIXED, KINDS, Builder, Made

SMALL_BYTES = 16 * 1024**2 - 1
MAX_SECONDS = 6.0
"""Of processor time, on an idle machine: where others run, the same work takes up to twice as much."""
MAX_BYTES = 400 * 10**6
"""Of resident memory."""
KILLED_SECONDS = 60
ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "simple_net.toml"

COMMANDS = {
    "inspect": "inspect P",
    "inspect -v": "inspect P -v",
    "inspect --json": "inspect P --json",
    "inspect --stats": "inspect P --stats",
    "inspect --tree": "inspect P --tree",
    "inspect --diff": "inspect P --diff Q",
    "verify": "verify P",
    "verify --json": "verify P --json --strict",
    "verify --against": "verify P --against Q",
    "verify --close": "verify P --against Q --close",
    "verify -c": "verify P -c C",
    "verify --report .xml": "verify P --report O.xml",
    "verify --report .json": "verify P --report O.json",
    "verify --report .html": "verify P --report O.html",
    "inspect --report": "inspect P --stats --report O.html",
    "convert .pt": "convert P O.pt --extras drop",
    "convert .safetensors": "convert P O.safetensors --extras keep",
    "convert .npz": "convert P O.npz --extras drop",
    "convert sharded": "convert P O --format safetensors-sharded --extras drop",
    "convert dcp": "convert P O --format dcp --extras drop",
    "load": "load P -c C --allow-missing * --allow-unexpected * --min-coverage 0",
}
"""What is run: P the file, Q a copy of it, C a config, O a destination."""


@dataclass(frozen=True)
class Cost:
    """What one command on one file took."""

    kind: str
    command: str
    code: int
    seconds: float
    num_bytes: int
    says: str
    """The first line of what it says on stderr."""

    @property
    def is_within(self) -> bool:
        return self.seconds <= MAX_SECONDS and self.num_bytes <= MAX_BYTES and self.code in range(5)


def main(asked: Namespace) -> int:
    """Measure what `asked` selects; returns 1 where anything is out of bounds, else 0."""
    kinds = [name for name in KINDS if any(fnmatch(name, glob) for glob in asked.kind or ["*"])]
    commands = [name for name in COMMANDS if any(fnmatch(name, glob) for glob in asked.command or ["*"])]
    out_of_bounds = 0
    with tempfile.TemporaryDirectory(prefix="costs-") as made:
        for number, name in enumerate(kinds, 1):
            for path in files(name, Path(made)):
                costs = [measure(path, command) for command in commands]
                worst = max(costs, key=lambda cost: cost.seconds)
                most = max(costs, key=lambda cost: cost.num_bytes)
                codes = "".join(str(cost.code) if 0 <= cost.code < 10 else "!" for cost in costs)
                print(
                    f"{number}/{len(kinds)} {path.name:<32} {codes} {worst.seconds:5.1f} s ({worst.command})"
                    f" {most.num_bytes / 1e6:4.0f} MB ({most.command})",
                    flush=True,
                )
                for cost in costs:
                    if not cost.is_within:
                        out_of_bounds += 1
                        print(
                            f"    OUT OF BOUNDS {cost.command}: exit {cost.code}, {cost.seconds:.1f} s,"
                            f" {cost.num_bytes / 1e6:.0f} MB: {cost.says[:150]}",
                            flush=True,
                        )
                remove(path)
    print(f"{out_of_bounds} out of bounds")
    return 1 if out_of_bounds else 0


def files(name: str, folder: Path) -> Iterator[Path]:
    """The files of one kind: as large as a small one can be, the largest that is read, those of FIXED."""
    build = KINDS[name]
    most = int(apart(lambda: how_many(build)))

    def made(count: int, path: Path) -> Path:
        remove(path)
        apart(lambda: write(build(count), path))
        return path

    yield made(most, folder / name)
    accepted = most
    if not is_read(folder / name):
        low, high = 0, most
        while high - low > max(high // 5, 1):
            middle = (low + high) // 2
            low, high = (middle, high) if is_read(made(middle, folder / "tried")) else (low, middle)
        remove(folder / "tried")
        accepted = low
        if low:
            yield made(low, folder / f"{name}×{low}")
    for count in FIXED.get(name, ()):
        if count < most and abs(count - accepted) > count // 10:
            yield made(count, folder / f"{name}×{count}")


def apart(work: Callable[[], object]) -> str:
    """What `work` gives, as text, in a process of its own, which gives its memory back.

    A process that is started from a large one counts the large one's memory as its own.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.write(writing, str(work()).encode())
            code = 0
        except PtsaveError:
            code = 3
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as answer:
        text = answer.read().decode()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 3:
        raise RefusedError("the file was refused", "", "")
    if code:
        raise RuntimeError(f"exit {code}")
    return text


def how_many(build: Builder) -> int:
    """How many things a file of SMALL_BYTES has at most, or nearly."""
    few, many = size(build(500)), size(build(1000))
    if many == few:
        return 1000  # the builder has a limit of its own
    count = 500 + (SMALL_BYTES - few) * 500 // (many - few)
    while (made := size(build(count))) > SMALL_BYTES:  # names get longer with their number
        count = count * SMALL_BYTES // made - 1
    return count


def size(made: Made) -> int:
    """How many bytes a file or a folder has."""
    return len(made) if isinstance(made, bytes) else sum(map(len, made.values()))


def write(made: Made, path: Path) -> Path:
    """Write a file, or a folder's files."""
    if isinstance(made, bytes):
        path.write_bytes(made)
        return path
    path.mkdir()
    for name, data in made.items():
        inside = path / name.replace("../", "")
        inside.parent.mkdir(exist_ok=True)
        if isinstance(data, bytes):
            inside.write_bytes(data)
        else:
            inside.symlink_to(data.replace("../", ""))
    return path


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_read(path: Path) -> bool:
    """Whether `inspect` reads it."""

    def read() -> None:
        with open_checkpoint(path) as checkpoint:
            inspect(checkpoint)

    try:
        apart(read)
    except PtsaveError:
        return False
    return True


def measure(path: Path, command: str) -> Cost:
    """Run one command on one file in a process of its own."""
    copy, out = path.parent / "copy", path.parent / "out"
    if " Q" in COMMANDS[command]:
        shutil.copytree(path, copy, symlinks=True) if path.is_dir() else shutil.copy(path, copy)
    places = {"P": str(path), "Q": str(copy), "C": str(CONFIG)}
    words = [
        places.get(word, word.replace("O", str(out), 1) if word.startswith("O") else word)
        for word in COMMANDS[command].split()
    ]
    printed, said, took = (path.parent / name for name in ("stdout", "stderr", "took"))
    with open(printed, "wb") as stdout, open(said, "wb") as stderr:
        subprocess.run(
            [sys.executable, "-S", "-E", LAUNCH, took, sys.executable, "-m", "ptsave", *words],
            stdout=stdout,
            stderr=stderr,
            cwd=ROOT,
            preexec_fn=limit,
            check=True,
        )
    code, _, peak_bytes, cpu_seconds = took.read_text(encoding="ascii").split()
    lines = said.read_text(errors="replace").splitlines() or [""]
    for left in (copy, out, *path.parent.glob("out.*"), printed, said, took):
        remove(left)
    return Cost(
        path.name,
        command,
        int(code),
        float(cpu_seconds),
        int(peak_bytes),
        lines[0],
    )


def limit() -> None:
    """Kill the process when it takes far more than it may."""
    resource.setrlimit(resource.RLIMIT_CPU, (KILLED_SECONDS, KILLED_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

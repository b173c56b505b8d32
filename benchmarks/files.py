"""The inputs: made once, in processes of their own, whose memory is gone when the measuring begins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from zlib import crc32

from benchmarks.measure import environment

PTSAVE = (sys.executable, "-m", "ptsave")

MOUNTS = "mounts"
"""The folder under which file systems are mounted."""

STATE = """
import sys, torch
from safetensors.torch import save_file
pt, st, num_bytes, num_tensors = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.manual_seed(0)
rows = max(1, num_bytes // num_tensors // 4096)
state = {f"layers.{i // 4}.{'abcd'[i % 4]}.weight": torch.rand(rows, 1024) for i in range(num_tensors)}
torch.save(state, pt)
save_file(state, st)
"""

MANY = """
import sys, torch
from safetensors.torch import save_file
pt, st, num_tensors = sys.argv[1], sys.argv[2], int(sys.argv[3])
data = torch.rand(num_tensors, 16)
state = {f"layers.{i}.weight": data[i].clone() for i in range(num_tensors)}
torch.save(state, pt)
save_file(state, st)
"""

DCP = """
import sys, torch, warnings
import torch.distributed.checkpoint as dcp
warnings.simplefilter("ignore")  # of saving from a single process
dcp.save(torch.load(sys.argv[1], mmap=True), checkpoint_id=sys.argv[2], no_dist=True)
"""

TAR = """
import sys, tarfile
with tarfile.open(sys.argv[1], "w") as tar:
    tar.add(sys.argv[2], sys.argv[3])
"""


class Files:
    """Input files in one folder, by what they are."""

    def __init__(self, folder: Path, gib_bytes: int) -> None:
        self.folder = folder
        self.gib = gib_bytes
        """What stands for 1 GiB: less with `--quick`."""
        self.closing = ExitStack()
        """What has to be undone at the end: mounts."""

    def state(self, num_bytes: int, num_tensors: int = 200) -> tuple[Path, Path]:
        """A float32 state dict as a torch zip and as safetensors: (`.pt`, `.safetensors`)."""
        stem = self.folder / f"state-{num_bytes}-{num_tensors}"
        paths = stem.with_suffix(".pt"), stem.with_suffix(".safetensors")
        if not paths[1].exists():
            _python(STATE, *paths, num_bytes, num_tensors)
        return paths

    def archive(self, path: Path, member: str) -> Path:
        """The tar archive `archive.tar` with one member."""
        made = self.folder / "archive.tar"
        _python(TAR, made, path, member)
        return made

    def tiny(self) -> tuple[Path, Path]:
        """A few kilobytes, for start-up."""
        return self.state(4096, 1)

    def many(self, num_tensors: int) -> tuple[Path, Path]:
        """Tensors of 16 elements each."""
        stem = self.folder / f"many-{num_tensors}"
        paths = stem.with_suffix(".pt"), stem.with_suffix(".safetensors")
        if not paths[1].exists():
            _python(MANY, *paths, num_tensors)
        return paths

    def dcp(self, num_bytes: int) -> Path:
        """A folder of torch.distributed.checkpoint with the tensors of `state(num_bytes)`."""
        folder = self.folder / f"dcp-{num_bytes}"
        if not folder.exists():
            _python(DCP, self.state(num_bytes)[0], folder)
        return folder

    def sharded(self, num_bytes: int, num_shards: int, *, sparse: bool = False) -> Path:
        """A sharded safetensors folder of float32 tensors, four a shard.

        With `sparse`, the files are as long as they claim and hold no blocks: nothing but headers is read.
        """
        folder = self.folder / f"sharded-{num_bytes}-{num_shards}"
        if folder.exists():
            return folder
        folder.mkdir()
        weight_map = {}
        rows = num_bytes // num_shards // 4 // 4096
        size = rows * 4096
        for shard in range(num_shards):
            name = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
            header = {}
            for i in range(4):
                tensor = f"layers.{shard}.{'abcd'[i]}.weight"
                weight_map[tensor] = name
                span = [i * size, (i + 1) * size]
                header[tensor] = {"dtype": "F32", "shape": [rows, 1024], "data_offsets": span}
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            with open(folder / name, "wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                if sparse:
                    file.truncate(8 + len(text) + 4 * size)
                else:
                    for _ in range(4 * rows):
                        file.write(b"\x00\x00\x80\x3f" * 1024)
        index = {"metadata": {"total_size": 4 * size * num_shards}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder

    def model(self, config: Path, flags: Sequence[str]) -> Path:
        """A `.pt` that `ptsave save` wrote of a config; `flags` override some of it."""
        path = self.folder / f"{config.stem}-{crc32(' '.join(flags).encode()):08x}.pt"
        if not path.exists():
            self.run("save", "-q", config, path, *flags)
        return path

    def run(self, *arguments: object) -> None:
        """One command of ptsave's that makes an input."""
        subprocess.run([*PTSAVE, *map(str, arguments)], check=True, env=environment())

    def drop(self) -> None:
        """Remove everything that was made, less what is mounted."""
        for entry in os.scandir(self.folder):
            if entry.name == MOUNTS:
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                os.unlink(entry)


def _python(script: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-c", script, *map(str, arguments)], check=True, env=environment())

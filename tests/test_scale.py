"""A checkpoint of 1 TiB and 256 ranks, made of sparse files: what it takes to look at it.

Nothing here depends on a duration: what grows is counted in reads and in memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks import scale_torch
from benchmarks.measure import Command, run
from benchmarks.scale import RESULTS
from benchmarks.scale_files import COLUMNS, Shape, file_name, write_files
from benchmarks.scale_report import table
from ptsave.formats import open_checkpoint
from tests.support import Command as Ptsave

DOCS = Path(__file__).parents[1] / "docs"
MIB = 2**20
SHAPE = Shape(num_ranks=256, num_tensors=16)
HALF = Shape(num_ranks=256, num_tensors=8)
INSPECT_MIB = 80
"""What `inspect` of SHAPE may take; Python with ptsave itself is 30 to 40 of them."""
BYTES_A_CHUNK = 4096
"""What a further chunk may take."""
READS_A_CHUNK = 2
"""Where a part begins, and where it ends."""
READS_BESIDE = 600
"""A few for `.metadata`, and whatever Python reads of modules."""


def folder_of(shape: Shape, folder: Path) -> Path:
    folder.mkdir()
    scale_torch.save(folder, shape)
    write_files(folder, shape)
    return folder


@pytest.fixture(scope="module")
def terabyte(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(SHAPE, tmp_path_factory.mktemp("scale") / "ckpt")


@pytest.mark.slow
def test_the_files_hold_a_terabyte_and_take_no_room(terabyte: Path) -> None:
    stats = [path.stat() for path in terabyte.glob("*.distcp")]
    assert len(stats) == 256
    assert sum(stat.st_size for stat in stats) > 0.99 * 2**40
    if sys.platform == "linux":
        assert sum(stat.st_blocks * 512 for stat in stats) < 256 * MIB


@pytest.mark.slow
def test_inspect_lists_it(terabyte: Path, ptsave: Ptsave) -> None:
    found = json.loads(ptsave("inspect", "--json", terabyte).stdout)
    assert found["format"] == "dcp"
    assert found["num_tensors"] == SHAPE.num_tensors
    assert 0.99 * 2**40 < found["num_bytes"] <= 2**40


@pytest.mark.slow
def test_inspect_takes_little_memory(terabyte: Path, tmp_path: Path) -> None:
    def peak(folder: Path) -> int:
        argv = [sys.executable, "-m", "ptsave", "inspect", "--json", str(folder)]
        return run(Command(lambda out: argv), tmp_path)[1]

    once = peak(terabyte)
    assert once < INSPECT_MIB * MIB
    more = SHAPE.num_chunks - HALF.num_chunks
    assert once - peak(folder_of(HALF, tmp_path / "half")) < more * BYTES_A_CHUNK


PLAN = """
import json, sys
from pathlib import Path
from benchmarks.scale import open_and_plan, peak_kib
from benchmarks.scale_files import Shape

def reads():
    return int(next(line for line in open("/proc/self/io") if line.startswith("syscr")).split()[1])

before = reads(), peak_kib()
found = open_and_plan(Path(sys.argv[1]), Shape(256, 16))
after = reads(), peak_kib()
print(json.dumps({"reads": after[0] - before[0], "grown_kib": after[1] - before[1], **found}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts a process's reads")
def test_a_rank_s_plan_takes_few_reads_and_little_memory(terabyte: Path, root: Path) -> None:
    argv = [sys.executable, "-c", PLAN, str(terabyte)]
    found = json.loads(subprocess.run(argv, cwd=root, check=True, stdout=subprocess.PIPE).stdout)
    assert found["rank_gib"] == pytest.approx(1024 / 192, rel=0.02)
    assert found["reads"] <= READS_A_CHUNK * SHAPE.num_chunks + READS_BESIDE
    assert found["grown_kib"] * 1024 < SHAPE.num_chunks * BYTES_A_CHUNK


def test_linked_files_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(4, 3, 2**20)
    apart = folder_of(shape, tmp_path / "apart")
    monkeypatch.setattr("benchmarks.scale_files.MAX_SEPARATE_CHUNKS", 1)
    linked = folder_of(shape, tmp_path / "linked")
    assert (linked / file_name(3)).stat().st_nlink == 4
    for rank in range(4):
        assert (apart / file_name(rank)).read_bytes() == (linked / file_name(rank)).read_bytes()
    with open_checkpoint(linked) as checkpoint:
        assert [entry.shape for entry in checkpoint.tensors.values()] == [(4 * shape.rows, COLUMNS)] * 3


def test_the_simulated_plan_is_what_torch_plans_for_a_rank() -> None:
    shape = Shape(4, 3, 2**20)
    dist.init_process_group("fake", rank=2, world_size=4, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (4,))
        state = {
            name: DTensor.from_local(torch.empty(shape.rows, COLUMNS), mesh, [Shard(0)], run_check=False)
            for name in shape.names
        }
        real = create_default_local_save_plan(state, is_coordinator=False)
    finally:
        dist.destroy_process_group()
    assert real.items == scale_torch.local_plan(shape, 2).items


@pytest.mark.slow
def test_torch_reads_what_the_simulation_wrote(terabyte: Path) -> None:
    figures = scale_torch.read(terabyte, 192)
    assert set(figures) == {"read_s", "plan_s"}


def test_the_table_is_that_of_the_figures() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = (DOCS / "scale.md").read_text(encoding="utf-8")
    assert f"<!-- begin: figures -->\n{table(results)}<!-- end -->" in page

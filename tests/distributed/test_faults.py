"""Ranks that die, hang, cannot write or do not agree: one message, nobody waits, the old folder stays."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.launch import digests, environment, errors, torchrun

pytestmark = pytest.mark.slow

PROMPT_SECONDS = 100
"""Far more than leaving takes on a loaded machine, and far less than a collective's own timeout."""


def sabotaged(
    studio: Path, what: str, when: str, rank: int, *arguments: str, ranks: int = 2, **environment: str
) -> subprocess.CompletedProcess[str]:
    began = time.monotonic()
    done = torchrun(
        ranks,
        *(what, when, rank),
        *arguments,
        cwd=studio,
        module="tests.distributed.saboteur",
        **environment,
    )
    assert done.returncode == 1
    assert time.monotonic() - began < PROMPT_SECONDS
    assert len(errors(done.stderr)) == 1, done.stderr
    return done


SAVE = ("save", "dp.toml", "ckpt", "--weights", "m.safetensors", "--overwrite")


@pytest.mark.parametrize(
    ("when", "rank"),
    [("before", 0), ("before", 1), ("during", 0), ("during", 1), ("written", 1), ("commit", 0)],
)
def test_a_killed_rank_leaves_the_old_folder(studio: Path, when: str, rank: int) -> None:
    """And the next save goes over what it left."""
    done = sabotaged(studio, "kill", when, rank, *SAVE)
    assert f"rank {rank} died, or hangs" in done.stderr
    assert digests(studio / "ckpt") == digests(studio / "old.safetensors")
    if rank == 0:
        done = torchrun(2, *SAVE, cwd=studio)
        assert done.returncode == 0, done.stderr
        assert digests(studio / "ckpt") == digests(studio / "m.safetensors")
        assert len(list((studio / "ckpt").iterdir())) == 4


def test_a_killed_rank_leaves_no_half_of_a_new_folder(studio: Path) -> None:
    sabotaged(studio, "kill", "during", 1, "save", "dp.toml", "new", "--weights", "m.safetensors")
    assert not (studio / "new").exists()


def test_a_rank_killed_after_the_commit_leaves_the_new_folder(studio: Path) -> None:
    sabotaged(studio, "kill", "after", 0, *SAVE)
    assert digests(studio / "ckpt") == digests(studio / "m.safetensors")


def test_a_rank_that_hangs_is_not_waited_for(studio: Path) -> None:
    done = sabotaged(studio, "stop", "before", 1, *SAVE, PTSAVE_TIMEOUT="15")
    assert "rank 1 died, or hangs" in done.stderr
    assert "PTSAVE_TIMEOUT" in done.stderr
    assert digests(studio / "ckpt") == digests(studio / "old.safetensors")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_cannot_write_says_so(studio: Path, rank: int) -> None:
    done = sabotaged(studio, "full", "before", rank, *SAVE)
    (line,) = errors(done.stderr)
    assert "File too large" in line
    assert re.findall(r"rank \d", line) == [f"rank {rank}"]
    assert digests(studio / "ckpt") == digests(studio / "old.safetensors")
    assert sorted(path.name for path in (studio / "ckpt").iterdir()) == [
        ".metadata",
        "__0_0.distcp",
        "ptsave.json",
    ]


def test_a_bit_that_the_disk_turns_is_seen_before_the_old_folder_goes(studio: Path) -> None:
    done = sabotaged(studio, "flip", "written", 1, *SAVE)
    (line,) = errors(done.stderr)
    assert "is damaged: its bytes do not match their CRC-32" in line
    assert digests(studio / "ckpt") == digests(studio / "old.safetensors")


def test_three_ranks_lose_one_while_they_load(studio: Path) -> None:
    done = sabotaged(studio, "kill", "reading", 2, "load", "m.safetensors", "-c", "dp.toml", ranks=3)
    assert "rank 2 died, or hangs" in done.stderr


def test_torchrun_is_killed_before_the_ranks_have_met(studio: Path) -> None:
    """They outlive it, and find nobody at the place that it named."""
    lost = {
        "TORCHELASTIC_RUN_ID": "none",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
        "PTSAVE_TIMEOUT": "1",
    }
    for rank in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-m", "ptsave", *SAVE],
            cwd=studio,
            env=environment(RANK=rank, **lost),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 5
        said = ["error: torchrun's own process cannot be reached (localhost:1)"] if rank == "0" else []
        assert errors(done.stderr) == said


def test_ranks_that_do_not_agree(studio: Path) -> None:
    """Each rank reads its own file of that name, as on machines whose folders were not copied alike."""
    (studio / "differ.py").write_text(
        "import os, sys\nsys.argv[1:] = [a.replace('RANK', os.environ['RANK']) for a in sys.argv[1:]]\n"
        "from ptsave.cli.main import main\nmain()\n"
    )
    for rank in range(2):
        text = (studio / "dp.toml").read_text()
        (studio / f"{rank}.toml").write_text(text.replace("high = 13", f"high = {12 + rank}"))
    done = torchrun(2, "load", "m.safetensors", "-c", "RANK.toml", cwd=studio, module="differ")
    (line,) = errors(done.stderr)
    assert "ranks 0 and 1 have different configs" in line
    (studio / "m1.safetensors").write_bytes((studio / "m.safetensors").read_bytes())
    (studio / "m0.safetensors").write_bytes((studio / "old.safetensors").read_bytes())
    done = torchrun(2, "load", "mRANK.safetensors", "-c", "dp.toml", cwd=studio, module="differ")
    (line,) = errors(done.stderr)
    assert "ranks 0 and 1 have different checkpoints" in line


def test_a_missing_file_of_a_folder(studio: Path) -> None:
    (studio / "ckpt" / "__0_0.distcp").unlink()
    done = torchrun(2, "load", "ckpt", "-c", "dp.toml", cwd=studio)
    assert done.returncode == 1
    (line,) = errors(done.stderr)
    assert "though the metadata places" in line


def test_a_device_that_ranks_cannot_share(studio: Path) -> None:
    for device in ("cuda:0", "meta", "nonsense"):
        lines = errors(torchrun(2, "load", "m.safetensors", "--device", device, cwd=studio).stderr)
        assert lines == [
            f"error: ranks work on cpu, or on cuda, each on a GPU of its own (--device {device})"
        ]

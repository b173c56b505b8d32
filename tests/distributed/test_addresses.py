"""save, load and verify under torchrun, of folders in object stores: as on a disk."""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path

import pytest

from tests.distributed.launch import digests, errors, launched, ptsave, torchrun
from tests.servers.faults import lost_answer, s3_error
from tests.servers.serving import Answer, Handler, Request
from tests.servers.stores import S3, Store

pytestmark = pytest.mark.slow

OF_TWO_RANKS = [r"\.metadata", r"__0_\d+_0\.distcp", r"__1_\d+_0\.distcp", r"ptsave\.json"]


def names(store: Store) -> list[str]:
    """Of the objects in the folder."""
    return [name.removeprefix("ckpt/") for name in store.names()]


def assert_holds(store: Store, studio: Path, file: str) -> None:
    """The folder, read as a copy on a disk, has the tensors of `file`."""
    copy = studio / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in names(store):
        (copy / name).write_bytes(store.get(f"ckpt/{name}"))
    assert digests(copy) == digests(studio / file)


def assert_of_two_ranks(store: Store) -> None:
    """The folder has what two ranks write, and nothing else."""
    found = names(store)
    assert len(found) == len(OF_TWO_RANKS), found
    assert all(map(re.fullmatch, OF_TWO_RANKS, found)), found


def put_old(store: Store, studio: Path) -> list[str]:
    """Put another checkpoint into the folder; returns its names."""
    for path in (studio / "ckpt").iterdir():
        store.put(f"ckpt/{path.name}", path.read_bytes())
    return names(store)


def save(store: Store, *more: str) -> tuple[str, ...]:
    return ("save", "dp.toml", f"{store.address}/ckpt", "--weights", "m.safetensors", *more)


def test_what_two_ranks_save_four_load_and_verify(each: Store, studio: Path) -> None:
    done = torchrun(2, *save(each), cwd=studio, **each.env)
    assert done.returncode == 0, done.stderr
    assert_of_two_ranks(each)
    assert each.leftovers() == []
    assert_holds(each, studio, "m.safetensors")
    where = f"{each.address}/ckpt"
    done = torchrun(4, "load", where, "-c", "hybrid.toml", cwd=studio, **each.env)
    assert done.returncode == 0, done.stderr
    done = torchrun(2, "verify", where, "-c", "tp2.toml", cwd=studio, **each.env)
    assert done.returncode == 0, done.stderr
    ptsave(studio, "verify", where, "--against", "m.safetensors", **each.env)


def test_four_ranks_save_over_an_older_folder(one_s3: S3, studio: Path) -> None:
    old = put_old(one_s3, studio)
    done = torchrun(4, *save(one_s3), cwd=studio, **one_s3.env)
    (line,) = errors(done.stderr)
    assert "the destination exists" in line
    assert names(one_s3) == old
    done = torchrun(4, *save(one_s3, "--overwrite"), cwd=studio, **one_s3.env)
    assert done.returncode == 0, done.stderr
    assert_holds(one_s3, studio, "m.safetensors")
    assert len(names(one_s3)) == 6
    puts = [one.target for one in one_s3.server.log if one.method == "PUT" and one.status == 200]
    assert re.search(r"\.metadata$", puts[-2])
    assert re.search(r"ptsave\.json$", puts[-1])


def test_a_lost_answer_is_no_other_rank(one_s3: S3, studio: Path) -> None:
    with one_s3.server.faulty(lost_answer(), on=r"PUT .*(__1_\d+_0\.distcp|metadata)$", times=2):
        done = torchrun(2, *save(one_s3), cwd=studio, **one_s3.env)
    assert done.returncode == 0, done.stderr
    assert_holds(one_s3, studio, "m.safetensors")


@pytest.mark.parametrize("which", [r"__0_\d+_0\.distcp", r"__1_\d+_0\.distcp", r"\.metadata"])
def test_what_the_store_refuses_of_one_rank_leaves_the_old_folder(
    one_s3: S3, studio: Path, which: str
) -> None:
    old = put_old(one_s3, studio)
    with one_s3.server.faulty(s3_error(403, "AccessDenied"), on=f"PUT .*{which}$"):
        done = torchrun(2, *save(one_s3, "--overwrite"), cwd=studio, **one_s3.env)
    assert done.returncode == 1
    (line,) = errors(done.stderr)
    assert "no permission to write" in line
    if "distcp" in which:
        assert f"rank {which[2]}, s3://" in line
    assert names(one_s3) == old


@pytest.mark.parametrize(("when", "rank"), [("sending", 0), ("sending", 1), ("sent", 1), ("commit", 0)])
def test_what_a_killed_rank_leaves_is_removed_by_the_next_save(
    one_s3: S3, studio: Path, when: str, rank: int
) -> None:
    old = put_old(one_s3, studio)
    saboteur = "tests.distributed.saboteur"
    arguments = ("kill", when, rank, *save(one_s3, "--overwrite"))
    done = torchrun(2, *arguments, cwd=studio, module=saboteur, **one_s3.env)
    assert done.returncode == 1
    (line,) = errors(done.stderr)
    assert f"rank {rank} died, or hangs" in line
    left = names(one_s3)
    assert set(old) <= set(left)
    assert one_s3.get("ckpt/.metadata") == (studio / "ckpt" / ".metadata").read_bytes()
    if rank == 1:
        assert left == old
    done = torchrun(2, *save(one_s3, "--overwrite"), cwd=studio, **one_s3.env)
    assert done.returncode == 0, done.stderr
    assert_holds(one_s3, studio, "m.safetensors")
    assert_of_two_ranks(one_s3)
    assert one_s3.leftovers() == []


def test_what_a_killed_rank_leaves_of_a_new_folder_is_no_content(one_s3: S3, studio: Path) -> None:
    arguments = ("kill", "commit", 0, *save(one_s3))
    done = torchrun(2, *arguments, cwd=studio, module="tests.distributed.saboteur", **one_s3.env)
    assert done.returncode == 1
    assert ".metadata" not in names(one_s3)
    done = torchrun(2, *save(one_s3), cwd=studio, **one_s3.env)
    assert done.returncode == 0, done.stderr
    assert_of_two_ranks(one_s3)


def test_of_two_jobs_one_wins(one_s3: S3, studio: Path) -> None:
    """Both have sent all their data when the first of them asks for the folder's name."""
    both = threading.Barrier(2)

    def meet(request: Request, handler: Handler) -> Answer:
        both.wait(120)
        return handler(request)

    with one_s3.server.faulty(meet, on=r"PUT .*\.metadata$", times=2):
        jobs = [launched(2, *save(one_s3), cwd=studio, **one_s3.env) for _ in range(2)]
        done = sorted((job.wait() for job in jobs), key=lambda one: one.returncode)
    assert [one.returncode for one in done] == [0, 1], done
    (line,) = errors(done[1].stderr)
    assert "the destination exists" in line
    assert_holds(one_s3, studio, "m.safetensors")
    assert_of_two_ranks(one_s3)


def test_the_hub_is_refused_before_anything_is_built(studio: Path) -> None:
    done = torchrun(2, "save", "dp.toml", "hf://me/model/ckpt", cwd=studio)
    (line,) = errors(done.stderr)
    assert "a folder on the Hub is written by one process" in line

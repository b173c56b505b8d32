"""A training sharded over ranks, kept in a bucket by all of them."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launch import launched, ptsave, torchrun
from tests.servers.faults import s3_error
from tests.servers.serving import Answer, Handler, Request
from tests.servers.stores import S3
from tests.training.runs.test_sharded import children

pytestmark = pytest.mark.slow

MODULE = "tests.distributed.trainer"
DP2, DP4 = {"dp": 2}, {"dp": 4}


def run(store: S3, num_ranks: int, folder: Path, **case: Any) -> list[dict[str, Any]]:
    """What each rank says of a training that is kept in the bucket."""
    (folder / "cases.json").write_text(json.dumps([{"folder": f"{store.address}/run", **case}]))
    done = torchrun(num_ranks, "cases.json", cwd=folder, module=MODULE, **store.env)
    assert done.returncode == 0, done.stderr
    return [results[0] for results in json.loads((folder / "results.json").read_text())]


def steps(store: S3, num_ranks: int) -> list[int]:
    """Of the checkpoints in the bucket, each of which is whole and alone there."""
    found: dict[int, list[str]] = {}
    for name in store.names():
        parts = re.fullmatch(r"run/step-(\d+)\.dcp/(.*)", name)
        assert parts is not None, name
        found.setdefault(int(parts[1]), []).append(parts[2])
    wanted = [r"\.metadata", *[rf"__{rank}_\d+_0\.distcp" for rank in range(num_ranks)], r"ptsave\.json"]
    for names in found.values():
        assert len(names) == len(wanted), names
        assert all(map(re.fullmatch, wanted, names)), names
    return sorted(found)


def test_any_number_of_ranks_goes_on(one_s3: S3, tmp_path: Path) -> None:
    ranks = run(one_s3, 2, tmp_path, mesh=DP2, total=5, keep=2)
    assert [one["errors"] for one in ranks] == [[], []]
    assert steps(one_s3, 2) == [3, 4]
    assert one_s3.leftovers() == []
    more = run(one_s3, 4, tmp_path, mesh=DP4, total=7, keep=2)
    assert [one["from"] for one in more] == [5] * 4
    assert more[0]["first"] == ranks[0]["last"]
    assert not any("passed over" in warning for one in more for warning in one["warnings"])
    assert steps(one_s3, 4) == [5, 6]
    ptsave(tmp_path, "verify", f"{one_s3.address}/run", **one_s3.env)


def test_what_the_store_refuses_of_one_rank_costs_one_checkpoint(one_s3: S3, tmp_path: Path) -> None:
    on = r"PUT .*step-000000002.dcp/__1_\d+_0\.distcp$"
    with one_s3.server.faulty(s3_error(403, "AccessDenied"), on=on):
        ranks = run(one_s3, 2, tmp_path, mesh=DP2, total=5, keep=9)
    for one in ranks:  # what a save has failed with is told by the next one
        ((step, kind, what),) = one["errors"]
        assert (step, kind) == (3, "NotAllowedError")
        assert "no permission to write" in what
    assert steps(one_s3, 2) == [0, 1, 4]


def test_a_killed_rank_leaves_the_checkpoints_before(one_s3: S3, tmp_path: Path) -> None:
    """The next training goes on from the last of them, and removes what is left of the one that was begun."""
    case = {"folder": f"{one_s3.address}/run", "mesh": DP2, "total": 6, "keep": 9}
    (tmp_path / "cases.json").write_text(json.dumps([case]))
    launch = launched(2, "cases.json", cwd=tmp_path, module=MODULE, **one_s3.env)

    def kill(request: Request, handler: Handler) -> Answer:
        answer = handler(request)
        for child in children(launch.pid):
            os.kill(child, signal.SIGKILL)
        return answer

    with one_s3.server.faulty(kill, on=r"PUT .*step-000000003.dcp/__1_\d+_0\.distcp$", times=1):
        assert launch.wait().returncode == 1
    left = [name for name in one_s3.names() if "step-000000003" in name]
    assert left
    assert not any(name.endswith(".metadata") for name in left)
    ranks = run(one_s3, 2, tmp_path, mesh=DP2, total=6, keep=9)
    assert [one["from"] for one in ranks] == [3, 3]
    assert steps(one_s3, 2) == [0, 1, 2, 3, 4, 5]

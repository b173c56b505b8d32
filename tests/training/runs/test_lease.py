"""One training a bucket's folder: by the store's conditions, whatever clocks say, and whatever dies."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import ptsave
from ptsave.errors import PtsaveError, RefusedError
from ptsave.storage.system import processes
from ptsave.storage.upload.store import upload_store
from ptsave.training.runs import lease
from ptsave.training.runs.lease import StoreLease
from ptsave.training.runs.lock import NAME
from tests.servers.faults import lost_answer, replaced
from tests.servers.stores import S3, Store
from tests.storage.upload.objects import PUT, address, scheme
from tests.training.runs.test_stores import Weights, names, run_of

KEY = f"runs/exp1/{NAME}"
OTHER = {"host": "elsewhere", "pid": 1, "since": "then", "token": "x", "lease_seconds": 0.5}
SAYS_OTHER = "process 1 on elsewhere, since then"


@pytest.fixture(autouse=True)
def _environment(found_by_ptsave: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(lease, "FRESH_SECONDS", 0.0)
    lease._watched.clear()


def take(store: Store) -> StoreLease:
    """The lease of the run, whoever has it in this process."""
    where = address(run_of(store))
    return StoreLease(where, upload_store(where))


def put_other(store: Store, **changed: object) -> None:
    """Another training's lease, which nobody renews."""
    store.put(KEY, json.dumps(OTHER | changed).encode())


@pytest.mark.slow
def test_of_eight_creators_one_has_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As eight machines see it: what is renewed is alive, and nothing else is known."""
    monkeypatch.setattr(processes, "machine", lambda: "")
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.3)
    gate = threading.Barrier(8)

    def create(_: int) -> StoreLease | PtsaveError:
        gate.wait()
        try:
            return take(store)
        except RefusedError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(create, range(8)))
    winners = [one for one in results if isinstance(one, StoreLease)]
    assert len(winners) == 1
    winners[0].check()
    assert json.loads(store.get(KEY))["token"] == winners[0]._holder.token
    assert all("another training" in str(one) for one in results if one not in winners)
    winners[0].release()
    assert names(store) == []


def test_what_is_not_renewed_is_taken_over_after_its_time(each: Store) -> None:
    put_other(each)
    begin = time.monotonic()
    with ptsave.Checkpoints(run_of(each)) as keeper:
        keeper.save(Weights(), step=0)
        assert 0.5 < time.monotonic() - begin < 30
        keeper.wait()
        assert json.loads(each.get(KEY))["pid"] != 1
    assert names(each) == ["step-000000000.pt"]


def test_the_time_begins_when_a_training_that_resumes_has_seen_it(one_s3: S3) -> None:
    put_other(one_s3, lease_seconds=1.0)
    keeper = ptsave.Checkpoints(run_of(one_s3))
    with pytest.warns(UserWarning, match=SAYS_OTHER):
        keeper.resume(Weights())
    time.sleep(1.0)
    one_s3.server.reset()
    with keeper:
        begin = time.monotonic()
        keeper.save(Weights(), step=0)
        assert time.monotonic() - begin < 0.9


def test_what_is_renewed_while_we_wait_is_alive(each: Store) -> None:
    put_other(each, lease_seconds=30)
    renewed = replaced(lambda: put_other(each, lease_seconds=30, renewals=1), 2)
    with (
        each.server.faulty(renewed, on=f"GET .*{NAME}"),
        pytest.raises(RefusedError, match=SAYS_OTHER),
    ):
        ptsave.Checkpoints(run_of(each)).save(Weights(), step=0)
    assert names(each) == [NAME]


def test_a_holder_renews_so_that_nobody_takes_over(each: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    held = take(each)
    first = each.get(KEY)
    time.sleep(0.8)
    assert each.get(KEY) != first
    held.release()
    assert names(each) == []


def test_a_holder_that_lost_it_does_not_write_over_the_others_run(each: Store) -> None:
    with ptsave.Checkpoints(run_of(each)) as keeper:
        keeper.save(Weights(), step=0)
        keeper.wait()
        put_other(each)
        keeper.save(Weights(), step=1)
        with pytest.raises(RefusedError, match=SAYS_OTHER):
            keeper.wait()
        assert names(each) == [NAME, "step-000000000.pt"]
    assert json.loads(each.get(KEY))["host"] == "elsewhere"  # it is not ours to remove


def test_a_holder_that_loses_it_while_it_writes_gives_its_checkpoint_up(each: Store) -> None:
    """The last question before the object takes its name is whose the folder is."""
    with ptsave.Checkpoints(run_of(each)) as keeper:
        keeper.save(Weights(), step=0)
        keeper.wait()
        before = len(names(each))
        each.server.reset()
        # at the second renewal of the save: the first one begins it
        put = PUT[scheme(each)].replace("&name=m$", f".*{NAME}.*").replace("/[^?]*$", f"/.*{NAME}")
        with each.server.faulty(replaced(lambda: put_other(each), 1), on=put):
            keeper.save(Weights(), step=1)
            with pytest.raises(RefusedError, match=SAYS_OTHER):
                keeper.wait()
    assert before == len(names(each)) == 2


def test_a_lost_answer_is_no_conflict_with_oneself(each: Store) -> None:
    put = PUT[scheme(each)].replace("&name=m$", f".*{NAME}.*").replace("/[^?]*$", f"/.*{NAME}")
    with each.server.faulty(lost_answer(), on=put, times=1):
        held = take(each)
    with each.server.faulty(lost_answer(), on=put, times=1):
        held.check()
    held.check()
    held.release()
    assert names(each) == []


def test_one_that_was_removed_in_its_time_is_put_back(one_s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    held = take(one_s3)
    one_s3.client.delete_object(Bucket=one_s3.bucket, Key=KEY)
    held.check()
    assert names(one_s3) == [NAME]
    one_s3.client.delete_object(Bucket=one_s3.bucket, Key=KEY)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.0)  # as if it had slept: another may have come and gone
    with pytest.raises(RefusedError):
        held.check()
    assert names(one_s3) == []


@pytest.mark.parametrize("text", ["", "[]", '{"host": 1}', "{" * 3000, '{"lease_seconds": "NaN"}'])
def test_an_object_that_says_nothing_of_its_holder_ends_as_well(
    one_s3: S3, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.3)
    one_s3.put(KEY, text.encode())
    with ptsave.Checkpoints(run_of(one_s3)) as keeper:
        keeper.save(Weights(), step=1)
    assert names(one_s3) == ["step-000000001.pt"]


def test_keepers_of_one_process_share_it(one_s3: S3) -> None:
    with ptsave.Checkpoints(run_of(one_s3)) as one:
        one.save(Weights(), step=1)
        one.wait()
        with ptsave.Checkpoints(f"{run_of(one_s3)}/") as two:
            two.save(Weights(), step=2)
        assert NAME in names(one_s3)
        one.save(Weights(), step=3)
    assert NAME not in names(one_s3)
    keeper = ptsave.Checkpoints(run_of(one_s3))
    keeper.save(Weights(), step=4)
    keeper.wait()
    del keeper
    assert NAME not in names(one_s3)

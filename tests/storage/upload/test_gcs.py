"""What is Google's own in writing to its store."""

from __future__ import annotations

import json
import random
import threading

import google_crc32c
import pytest

from ptsave.errors import ExistsError, WriteError
from ptsave.storage.opening import check_file_destination, replacing_file, replacing_folder, write_file
from ptsave.storage.remote import gcs as of_gcs
from ptsave.storage.upload import gcs as module
from ptsave.storage.upload.gcs import combined
from ptsave.storage.upload.store import UploadStore
from tests.servers.faults import status
from tests.servers.serving import Answer, Handler, Request
from tests.servers.stores import Gcs
from tests.storage.upload.objects import COMPLETE, KIB, LARGE, PART, PART_BYTES, address, content, fill


@pytest.fixture
def bucket(gcs: Gcs, monkeypatch: pytest.MonkeyPatch) -> Gcs:
    for name, text in gcs.env.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(UploadStore, "min_part_bytes", PART_BYTES)
    monkeypatch.setattr(UploadStore, "part_unit_bytes", KIB)
    return gcs


def write(bucket: Gcs, data: bytes, *, overwrite: bool = False) -> str:
    with replacing_file(address(f"{bucket.address}/run/m"), len(data), overwrite=overwrite) as output:
        fill(output, data)
    return output.checked


def test_the_sum_of_two_is_that_of_both_together() -> None:
    numbers = random.Random(0)
    for num_bytes in (0, 1, 7, 1000, 70_000):
        a, b = numbers.randbytes(numbers.randrange(1000)), numbers.randbytes(num_bytes)
        assert combined(google_crc32c.value(a), google_crc32c.value(b), len(b)) == google_crc32c.value(a + b)


def test_more_parts_than_one_request_joins(bucket: Gcs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SOURCES", 3)
    data = content(10 * PART_BYTES + 5)
    assert write(bucket, data) == "the store's CRC-32C"
    assert bucket.get("run/m") == data
    assert bucket.names() == ["run/m"]
    assert bucket.server.count("/compose") == 4 + 2 + 1 + 1


def test_what_a_killed_writer_left_is_in_no_list_and_is_removed(bucket: Gcs) -> None:
    killed = replacing_file(address(f"{bucket.address}/run/m"), LARGE)
    killed.__enter__().write_at(0, content(2 * PART_BYTES))
    neighbour = replacing_file(address(f"{bucket.address}/run/m2"), LARGE)
    neighbour.__enter__().write_at(0, content(2 * PART_BYTES))
    bucket.put("run/.ptsave-parts/m/notes.txt", b"")
    while len(bucket.leftovers()) < 5:
        threading.Event().wait(0.01)
    run = address(f"{bucket.address}/run")
    assert [*of_gcs.GcsStore(run).list(run, 10)] == []
    write(bucket, b"new")
    assert [name.split("/")[2] for name in bucket.leftovers()] == ["m", "m2", "m2"]
    assert neighbour.__exit__(ValueError, ValueError(), None) is False
    assert bucket.names() == ["run/.ptsave-parts/m/notes.txt", "run/m"]
    with pytest.raises(ExistsError):
        killed.__exit__(None, None, None)


def test_parts_of_data_in_a_folder_go_with_the_next_commit(bucket: Gcs) -> None:
    killed = replacing_folder(address(f"{bucket.address}/run"), LARGE)
    data = killed.__enter__().data_file("data-1", LARGE)
    data.__enter__().write_at(0, content(2 * PART_BYTES))
    while len(bucket.leftovers()) < 2:
        threading.Event().wait(0.01)
    with replacing_folder(address(f"{bucket.address}/run"), 1) as folder:
        folder.small_file("data-2", b"2")
        folder.commit(("index", b"data-2"))
    assert bucket.names() == ["run/data-2", "run/index"]
    with pytest.raises(WriteError, match="removed"):
        data.__exit__(None, None, None)


def test_another_sum_of_the_whole_leaves_the_old(bucket: Gcs) -> None:
    bucket.put("run/m", b"old")

    def wrong(request: Request, handler: Handler) -> Answer:
        given = handler(request)
        about = json.loads(b"".join(given.body)) | {"crc32c": "AAAAAA=="}
        return Answer.of(200, json.dumps(about).encode(), "application/json")

    with bucket.server.faulty(wrong, on="/compose"), pytest.raises(WriteError, match="checksum"):
        write(bucket, content(LARGE), overwrite=True)
    assert bucket.get("run/m") == b"old"
    assert bucket.names() == ["run/m"]


def test_damage_on_the_way_is_sent_again(bucket: Gcs) -> None:
    def damaged(request: Request, handler: Handler) -> Answer:
        message = {"error": {"code": 400, "message": "Provided CRC32C does not match"}}
        return Answer.of(400, json.dumps(message).encode(), "application/json")

    with bucket.server.faulty(damaged, on=PART["gs"], times=2):
        write(bucket, content(LARGE))
    assert bucket.get("run/m") == content(LARGE)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"7", b'{"size": "x", "generation": "1"}'])
def test_a_wrong_answer_is_no_success(bucket: Gcs, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    monkeypatch.setenv("PTSAVE_TIMEOUT", "1")

    def wrong(request: Request, handler: Handler) -> Answer:
        return Answer.of(200, body, "application/json")

    with bucket.server.faulty(wrong, on="POST /upload"), pytest.raises(WriteError):
        write_file(address(f"{bucket.address}/run/m"), b"new")


def test_more_is_asked_for_than_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    import google.auth

    asked: list[object] = []
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(of_gcs, "_surroundings", lambda: (("for", "this test"),))
    monkeypatch.setattr(google.auth, "default", lambda scopes, request: (asked.extend(scopes), None))
    module.GcsUploads(address("gs://b/m"))
    of_gcs.GcsStore(address("gs://b/m"))
    assert [str(scope).rpartition(".")[2] for scope in asked] == ["read_write", "read_only"]


@pytest.mark.parametrize(("code", "message"), [(403, "may not write"), (401, "credentials do not work")])
@pytest.mark.parametrize("on", [PART, COMPLETE])
def test_credentials_that_are_refused_half_way_are_told_and_not_shown(
    bucket: Gcs, monkeypatch: pytest.MonkeyPatch, code: int, message: str, on: dict[str, str]
) -> None:
    import google.auth
    from google.oauth2.credentials import Credentials

    found = Credentials(token="the-secret"), None
    monkeypatch.setattr(google.auth, "default", lambda **_: found)
    monkeypatch.setattr(of_gcs, "_surroundings", lambda: (("for", str(id(found))),))
    monkeypatch.setattr(of_gcs, "ENDPOINT", bucket.server.url)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    bucket.put("run/m", b"old")
    with (
        bucket.server.faulty(status(code), on=on["gs"].replace("/o/m/", "/o/run%2Fm/"), times=1),
        pytest.raises(WriteError, match=message) as caught,
    ):
        write(bucket, content(LARGE), overwrite=True)
    assert "the-secret" not in f"{caught.value} {caught.value.hint}"
    assert {one.headers["authorization"] for one in bucket.server.log} == {"Bearer the-secret"}
    assert (bucket.get("run/m"), bucket.names()) == (b"old", ["run/m"])


def test_a_bucket_that_is_not_there_is_told(bucket: Gcs) -> None:
    with pytest.raises(WriteError, match="no such bucket") as caught:
        check_file_destination(address("gs://no-such-bucket/m"))
    assert "bucket" in caught.value.hint

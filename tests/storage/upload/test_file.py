"""Objects in the making: complete, conditional, checked, and gone without a trace where they fail."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest

from ptsave.errors import ExistsError, PtsaveError, RefusedError, WriteError
from ptsave.storage.opening import check_file_destination, data_stream, replacing_file, write_file
from ptsave.storage.reads import noted
from ptsave.storage.upload import file as upload_file
from ptsave.storage.upload.s3 import S3Uploads
from ptsave.storage.upload.store import UploadStore, upload_store
from tests.servers.faults import header, lost_answer, no_answer, replaced, s3_error, status
from tests.servers.serving import Fault
from tests.servers.stores import S3, Store
from tests.storage.upload.objects import (
    COMPLETE,
    KIB,
    LARGE,
    PART,
    PART_BYTES,
    PUT,
    address,
    content,
    fill,
    left,
    refusal,
    scheme,
)

BEGIN = r"POST .*\?uploads"
NOTHING_THERE = pytest.param(False, marks=pytest.mark.slow)
"""Of whether an object is there already: the fast tests see what becomes of it."""


@pytest.fixture(autouse=True)
def _environment(found_by_ptsave: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UploadStore, "min_part_bytes", PART_BYTES)
    monkeypatch.setattr(UploadStore, "part_unit_bytes", KIB)


def write(
    store: Store, data: bytes, *, overwrite: bool = False, meanwhile: Callable[[], object] = lambda: None
) -> str:
    """Write `data`, and call `meanwhile` before it has its name; returns by what it was checked."""
    with replacing_file(address(f"{store.address}/m"), len(data), overwrite=overwrite) as output:
        fill(output, data)
        meanwhile()
    return output.checked


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("num_bytes", [0, 1, PART_BYTES, PART_BYTES + 1, LARGE])
def test_an_object_arrives_whole_and_checked_by_the_store(store: Store, num_bytes: int) -> None:
    data = content(num_bytes)
    assert write(store, data).startswith("the store's ")
    assert store.get("m") == data
    assert left(store) == []


def test_a_small_object_is_one_put(each: Store) -> None:
    write(each, content(KIB))
    assert each.server.count("^(PUT|POST)") == each.server.count(PUT[scheme(each)]) == 1


def test_what_was_not_written_is_zeros(s3: S3) -> None:
    data = bytearray(LARGE)
    with replacing_file(address(f"{s3.address}/m"), LARGE) as output:
        for begin, end in (
            (LARGE - 99, LARGE - 5),
            (3, 9),
            (70 * KIB, 90 * KIB),
            (LARGE - 120, LARGE - 110),
        ):
            data[begin:end] = content(end - begin)
            output.write_at(begin, data[begin:end])
    assert s3.get("m") == data


def test_a_part_buffer_is_used_again_without_its_old_bytes(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_file, "HELD_BYTES", 3 * PART_BYTES)
    data = bytearray(content(6 * PART_BYTES))
    hole = 5 * PART_BYTES + KIB
    data[hole : hole + KIB] = bytes(KIB)
    with replacing_file(address(f"{s3.address}/m"), len(data)) as output:
        for begin in range(0, len(data), KIB):
            if begin != hole:
                output.write_at(begin, data[begin : begin + KIB])
    assert s3.get("m") == data


def test_an_object_that_is_there_is_not_replaced(store: Store) -> None:
    store.put("m", b"old")
    with pytest.raises(ExistsError), replacing_file(address(f"{store.address}/m"), 3):
        pass
    assert store.server.count("^(PUT|POST)") == 0
    write(store, b"new", overwrite=True)
    assert store.get("m") == b"new"


@pytest.mark.parametrize("num_bytes", [10, LARGE])
@pytest.mark.parametrize("was_there", [False, True])
def test_what_another_writes_meanwhile_stands(store: Store, num_bytes: int, was_there: bool) -> None:
    if was_there:
        store.put("m", b"old")
    with pytest.raises(WriteError if was_there else ExistsError):
        write(store, content(num_bytes), overwrite=True, meanwhile=lambda: store.put("m", b"another's"))
    assert store.get("m") == b"another's"
    assert left(store) == []


@pytest.mark.parametrize("num_bytes", [10, LARGE])
@pytest.mark.parametrize("was_there", [False, True])
def test_the_store_itself_is_asked_whether_another_has_written(
    each: Store, num_bytes: int, was_there: bool
) -> None:
    """Another comes after the last look, right before the request that gives the name."""
    if was_there:
        each.put("m", b"old")
    fault = replaced(lambda: each.put("m", b"another's"), 0)
    with (
        each.server.faulty(fault, on=PUT[scheme(each)] if num_bytes == 10 else COMPLETE[scheme(each)]),
        pytest.raises(WriteError if was_there else ExistsError),
    ):
        write(each, content(num_bytes), overwrite=True)
    assert each.get("m") == b"another's"
    assert left(each) == []


@pytest.mark.parametrize("num_bytes", [10, LARGE])
def test_a_lost_answer_is_no_conflict_with_oneself(store: Store, num_bytes: int) -> None:
    data = content(num_bytes)
    for overwrite in (False, True):
        store.server.reset()
        on = PUT[scheme(store)] if num_bytes == 10 else COMPLETE[scheme(store)]
        with store.server.faulty(lost_answer(), on=on, times=1):
            write(store, data, overwrite=overwrite)
        assert store.server.count(on) == 2
        assert store.get("m") == data
        assert left(store) == []


@pytest.mark.slow
@pytest.mark.parametrize("was_there", [False, True])
def test_a_store_that_refuses_a_condition_that_holds_is_told_from_a_change(
    was_there: bool, one_s3: S3
) -> None:
    if was_there:
        one_s3.put("m", b"old")
    with (
        one_s3.server.faulty(s3_error(412, "PreconditionFailed"), on=PUT["s3"]),
        pytest.raises(WriteError, match="refuses the condition of the write, which holds"),
    ):
        write(one_s3, content(KIB), overwrite=was_there)


def test_a_lost_answer_to_each_request_is_no_matter(store: Store) -> None:
    data = content(LARGE)
    for on in (PART[scheme(store)], BEGIN, "HEAD", "GET", "POST .*compose", "DELETE"):
        with store.server.faulty(lost_answer(), on=on, times=2):
            write(store, data, overwrite=True)
        assert store.get("m") == data
        assert left(store) == [], on


@pytest.mark.slow
@pytest.mark.parametrize("code", [500, 503, 429])
def test_what_passes_is_tried_again(each: Store, code: int) -> None:
    data = content(LARGE)
    with (
        each.server.faulty(status(code), on="", times=4),
        each.server.faulty(no_answer(), on=PART[scheme(each)], times=1),
    ):
        write(each, data)
    assert each.get("m") == data


@pytest.mark.parametrize("on", ["HEAD", "GET", "PUT", "POST"])
@pytest.mark.parametrize(
    "fault",
    [
        status(103),
        status(200),
        status(200, b"<html><body>who are you?</body></html>", "text/html"),
        header("Last-Modified", "yesterday"),
    ],
)
@pytest.mark.parametrize("num_bytes", [1, LARGE])
def test_what_is_no_answer_of_the_store_is_no_success(
    num_bytes: int, fault: Fault, on: str, one_s3: S3
) -> None:
    """Such as a page of a proxy's own, which nothing has come through."""
    one_s3.put("m", b"old")
    data = content(num_bytes)
    with one_s3.server.faulty(fault, on=f"^{on}", times=1):
        write(one_s3, data, overwrite=True)
    assert one_s3.get("m") == data
    assert one_s3.leftovers() == []


@pytest.mark.parametrize("num_bytes", [1, LARGE])
def test_an_answer_that_does_not_name_the_new_version_was_lost(num_bytes: int, one_s3: S3) -> None:
    one_s3.put("m", b"old")
    with one_s3.server.faulty(header("ETag", None), on="^(PUT|POST)", times=1):
        write(one_s3, content(num_bytes), overwrite=True)
    assert one_s3.get("m") == content(num_bytes)
    assert one_s3.leftovers() == []


@pytest.mark.parametrize("on", ["HEAD", BEGIN, PART["s3"]])
def test_a_store_that_never_answers_as_one_leaves_the_old_and_no_parts(
    on: str, one_s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTSAVE_TIMEOUT", "2")
    one_s3.put("m", b"old")
    faults = [status(200)] if on == BEGIN else [header("ETag", None), header("Last-Modified", None)]
    with one_s3.server.faulty(*faults, on=on), pytest.raises(WriteError):
        write(one_s3, content(LARGE), overwrite=True)
    assert one_s3.get("m") == b"old"
    assert one_s3.leftovers() == []


@pytest.mark.slow
def test_retry_after_is_obeyed_and_the_deadline_holds(each: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTSAVE_TIMEOUT", "2")
    monkeypatch.setattr(upload_file, "BRIEFLY_S", 0.5)
    with (
        each.server.faulty(status(503, Retry_After="60"), on=PART[scheme(each)]),
        pytest.raises(WriteError, match="not written within 2 seconds"),
    ):
        write(each, content(LARGE))
    assert each.names() == left(each) == []


@pytest.mark.parametrize("was_there", [NOTHING_THERE, True])
@pytest.mark.parametrize(
    "error", [(403, "AccessDenied"), (400, "ExpiredToken"), (400, "InvalidArgument"), (501, "NotImplemented")]
)
@pytest.mark.parametrize("on", [PART["s3"], COMPLETE["s3"], BEGIN])
def test_a_refusal_leaves_the_old_and_no_parts(
    one_s3: S3, was_there: bool, error: tuple[int, str], on: str
) -> None:
    if was_there:
        one_s3.put("m", b"old")
    with one_s3.server.faulty(s3_error(*error), on=on, times=1), pytest.raises(WriteError) as caught:
        write(one_s3, content(LARGE), overwrite=True)
    assert "the-secret" not in f"{caught.value} {caught.value.hint}"
    assert one_s3.names() == (["m"] if was_there else [])
    assert one_s3.leftovers() == []


@pytest.mark.parametrize("was_there", [NOTHING_THERE, True])
@pytest.mark.parametrize("code", [400, 403, 404])
@pytest.mark.parametrize("on", [PART, COMPLETE])
def test_a_refusal_of_any_kind_of_store_leaves_the_old_and_no_parts(
    each: Store, was_there: bool, code: int, on: dict[str, str]
) -> None:
    if was_there:
        each.put("m", b"old")
    fault = refusal(each, code, "AccessDenied")
    with each.server.faulty(fault, on=on[scheme(each)], times=1), pytest.raises(WriteError) as caught:
        write(each, content(LARGE), overwrite=True)
    assert "the-secret" not in f"{caught.value} {caught.value.hint}"
    assert each.names() == (["m"] if was_there else [])
    assert left(each) == []
    if was_there:
        assert each.get("m") == b"old"


def test_an_error_and_an_interrupt_in_the_block_leave_nothing(store: Store) -> None:
    for error in (ValueError(), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write(store, content(LARGE), meanwhile=partial(_raise, error))
        assert store.names() == left(store) == []


def test_bytes_that_change_in_memory_are_not_named(store: Store) -> None:
    where = address(f"{store.address}/m")
    output = upload_file.UploadFile(upload_store(where), where, 3, None)
    fill(output, b"abc")
    output.must_have(0)
    with pytest.raises(WriteError, match="memory"):
        output.finish()
    assert store.names() == []


def test_a_store_without_checksums_is_read_back(one_s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptsave.storage.upload.s3.S3Uploads._checked", lambda *_: "")
    data = content(LARGE)
    with one_s3.server.faulty(_without_checksums, on=""):
        assert write(one_s3, data) == "reading it back by ranges"
    assert one_s3.get("m") == data
    with (
        one_s3.server.faulty(_without_checksums, on=""),
        one_s3.server.faulty(_flipped, on=r"GET /[^?]*$"),
        pytest.raises(WriteError, match="reads back differently"),
    ):
        write(one_s3, data, overwrite=True)
    assert one_s3.get("m") == data
    with (
        one_s3.server.faulty(_without_checksums, on=""),
        one_s3.server.faulty(header("Content-Range", "bytes 5-9/10"), on=r"GET /[^?]*$"),
        pytest.raises(
            WriteError, match=r"in place and was not checked: .* not read back \(the server answers"
        ),
    ):
        write(one_s3, data, overwrite=True)
    with one_s3.server.faulty(_without_checksums, header("ETag", None), on="PUT"):
        assert write(one_s3, data[:PART_BYTES], overwrite=True) == "reading it back by ranges"


def test_an_etag_is_no_longer_compared_with_the_md5_once_it_was_none() -> None:
    """Summing that up takes longer than sending."""
    store = S3Uploads(address("s3://bucket/m"))
    md5 = {"ETag": f'"{hashlib.md5(b"a").hexdigest()}"'}
    assert store._checked(md5, 0, b"a") == "MD5"
    assert store._checked({"ETag": '"1"'}, 0, b"a") == ""
    assert store._checked(md5, 0, b"a") == ""


def _without_checksums(request, handler):  # type: ignore[no-untyped-def]
    answer = handler(request)
    headers = {k: v for k, v in answer.headers.items() if "checksum" not in k.lower()}
    body = re.sub(rb"<Checksum\w+>[^<]*</Checksum\w+>", b"", b"".join(answer.body))
    if request.method != "HEAD":
        headers = {k: v for k, v in headers.items() if k.lower() != "content-length"}
        headers["Content-Length"] = str(len(body))
    return type(answer)(answer.status, headers, [body])


def _flipped(request, handler):  # type: ignore[no-untyped-def]
    answer = _without_checksums(request, handler)
    body = bytearray(b"".join(answer.body))
    body[len(body) // 2] ^= 1
    return type(answer)(answer.status, answer.headers, [bytes(body)])


@pytest.mark.slow
@pytest.mark.parametrize("num_bytes", [1000, LARGE])
def test_sixteen_creators_one_wins(store: Store, num_bytes: int, request: pytest.FixtureRequest) -> None:
    outcomes: list[object] = [None] * 16
    start = threading.Barrier(16)
    turn = threading.Lock()

    def one_at_a_time(request, handler):  # type: ignore[no-untyped-def]
        """moto looks and puts in two steps, between which another may come."""
        with turn:
            return handler(request)

    def create(number: int) -> None:
        start.wait()
        try:
            write(store, content(num_bytes, number))
            outcomes[number] = "won"
        except PtsaveError as error:
            outcomes[number] = error

    is_moto = request.node.callspec.id.startswith("moto")
    with store.server.faulty(one_at_a_time, on="P(OS|U)T ") if is_moto else nullcontext():
        _on_threads(create, 16)
    winners = [number for number, outcome in enumerate(outcomes) if outcome == "won"]
    assert len(winners) == 1, outcomes
    assert all(isinstance(outcome, ExistsError) for outcome in outcomes if outcome != "won"), outcomes
    assert store.get("m") == content(num_bytes, winners[0])
    assert left(store) == []


def _on_threads(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_what_a_killed_writer_left_is_removed_and_what_others_send_is_not(s3: S3) -> None:
    killed = replacing_file(address(f"{s3.address}/m"), LARGE)
    killed.__enter__().write_at(0, content(2 * PART_BYTES))
    neighbour = replacing_file(address(f"{s3.address}/m2"), LARGE)
    neighbour.__enter__().write_at(0, content(2 * PART_BYTES))
    foreign = s3.client.create_multipart_upload(Bucket=s3.bucket, Key="m")["UploadId"]
    s3.client.upload_part(Bucket=s3.bucket, Key="m", UploadId=foreign, PartNumber=1, Body=b"theirs")
    while s3.server.count(PART["s3"]) < 4:
        threading.Event().wait(0.01)
    assert s3.leftovers() == ["m", "m", "m2"]
    write(s3, b"new")
    assert s3.leftovers() == ["m", "m2"]
    uploads = s3.client.list_multipart_uploads(Bucket=s3.bucket)["Uploads"]
    assert foreign in [upload["UploadId"] for upload in uploads]
    assert neighbour.__exit__(None, None, None) is False
    assert s3.get("m") == b"new"


def test_a_writer_whose_parts_were_removed_says_who_came_first(each: Store) -> None:
    late = replacing_file(address(f"{each.address}/m"), LARGE)
    late.__enter__().write_at(0, content(2 * PART_BYTES))
    while each.server.count(PART[scheme(each)]) < 2:
        threading.Event().wait(0.01)
    write(each, b"new")
    with pytest.raises(ExistsError):
        late.__exit__(None, None, None)
    assert each.get("m") == b"new"
    assert left(each) == []


def test_more_parts_are_never_held_than_fit(one_s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_file, "HELD_BYTES", 4 * PART_BYTES)
    data, most = content(20 * PART_BYTES - KIB), 0  # the last one is shorter
    with replacing_file(address(f"{one_s3.address}/m"), len(data)) as output:
        assert isinstance(output, upload_file.UploadFile)
        for begin in range(KIB, len(data), KIB):
            output.write_at(begin, data[begin : begin + KIB])
            most = max(most, output._num_held + len(output._free))
        output.write_at(0, data[:KIB])
    assert most <= 4
    assert one_s3.get("m") == data


def test_a_hole_in_every_part_blocks_nobody(one_s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_file, "HELD_BYTES", 3 * PART_BYTES)
    data = content(8 * PART_BYTES)
    with replacing_file(address(f"{one_s3.address}/m"), len(data)) as output:
        for begin in range(0, len(data), PART_BYTES):
            output.write_at(begin + KIB, data[begin + KIB : begin + PART_BYTES])
        for begin in range(0, len(data), PART_BYTES):
            output.write_at(begin, data[begin : begin + KIB])
    assert one_s3.get("m") == data


def test_parts_are_large_enough_for_any_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for num_bytes in (1, 100 * 1000**3, 5 * 1024**4, 50 * 1000**4):
        output = upload_file.UploadFile(S3Uploads(address("s3://b/m")), address("s3://b/m"), num_bytes, None)
        assert output.num_parts <= 9_999
        assert output._part_bytes >= 8 * KIB**2
        assert num_bytes > 80 * 1000**3 or output._part_bytes == 8 * KIB**2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://host/m.pt", "can only be read"),
        ("s3://b/m.pt?versionId=1", "can only be read"),
        ("s3://b", "names no object"),
        ("s3://b/run/", "names no object"),
        ("ftp://b/m.pt", "ftp:// can only be read"),
    ],
)
def test_what_cannot_be_written_to_is_refused_at_once(text: str, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        check_file_destination(address(text))


def test_a_bucket_that_is_not_there_and_a_folder_are_refused(s3: S3) -> None:
    s3.put("run/a", b"")
    with pytest.raises(WriteError, match="folder"):
        check_file_destination(address(f"{s3.address}/run"))
    with pytest.raises(WriteError) as caught:
        check_file_destination(address("s3://no-such-bucket-here/m"))
    assert "bucket" in caught.value.hint


def test_an_input_is_not_written_over(store: Store) -> None:
    from ptsave.storage.opening import open_file

    store.put("m", b"old")
    with noted(), open_file(address(f"{store.address}/m")), pytest.raises(RefusedError, match="is an input"):
        write_file(address(f"{store.address}/m"), b"new", overwrite=True)


@pytest.mark.parametrize("num_bytes", [0, 10, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, LARGE])
def test_a_stream_becomes_an_object_of_as_many_bytes_as_came(store: Store, num_bytes: int) -> None:
    folder, data = address(f"{store.address}/run"), content(num_bytes)
    with data_stream(folder, "data", 0) as stream:
        for begin in range(0, num_bytes, 10_000):
            stream.write(data[begin : begin + 10_000])
            assert stream.tell() == min(begin + 10_000, num_bytes)
        assert store.names() == [] or scheme(store) == "gs"
    assert store.get("run/data") == data
    found = upload_store(folder).look(folder / "data")
    assert found is not None
    assert found.label is not None
    assert found.label.is_data
    assert left(store) == []


def test_a_stream_that_fails_leaves_nothing(each: Store) -> None:
    folder = address(f"{each.address}/run")
    with pytest.raises(ValueError, match="on purpose"), data_stream(folder, "data", 0) as stream:
        _raise(ValueError(f"on purpose, after {stream.write(content(LARGE))} bytes"))
    with (
        each.server.faulty(refusal(each, 403, "AccessDenied"), on=PART[scheme(each)]),
        pytest.raises(WriteError),
        data_stream(folder, "data", 0) as stream,
    ):
        stream.write(content(LARGE))
    assert each.names() == []
    assert left(each) == []


def test_a_stream_to_a_name_that_is_taken_is_refused(each: Store) -> None:
    each.put("run/data", b"another's")
    with (
        pytest.raises(WriteError, match="another process"),
        data_stream(address(f"{each.address}/run"), "data", 0) as stream,
    ):
        stream.write(content(LARGE))
    assert each.get("run/data") == b"another's"
    assert each.names() == ["run/data"]


def test_a_stream_that_grows_beyond_what_was_said(one_s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts are large enough for twice of it at least."""
    monkeypatch.setattr(S3Uploads, "max_parts", 4)
    data = content(2 * 5 * PART_BYTES)
    with data_stream(address(f"{one_s3.address}/run"), "data", 5 * PART_BYTES) as stream:
        stream.write(data)
    assert one_s3.get("run/data") == data


@pytest.mark.parametrize("num_bytes", [1000, LARGE])
def test_who_may_put_and_not_read_creates_and_replaces_nothing(num_bytes: int, s3: S3) -> None:
    """S3 answers 403 for what is not there, too, where the bucket may not be listed."""
    data = content(num_bytes)
    with s3.server.faulty(s3_error(403, "AccessDenied"), on="^(HEAD|GET) "):
        assert write(s3, data) in ("the store's CRC-32", "the store's MD5")
        for overwrite in (False, True):
            with pytest.raises(ExistsError, match="may not read what it is"):
                write(s3, content(num_bytes, seed=1), overwrite=overwrite)
    assert s3.get("m") == data


def test_credentials_that_are_wrong_are_found_before_anything_is_sent(one_s3: S3) -> None:
    with (
        one_s3.server.faulty(s3_error(403, "InvalidAccessKeyId")),
        pytest.raises(WriteError, match="InvalidAccessKeyId"),
    ):
        check_file_destination(address(f"{one_s3.address}/m"))

"""Objects on two S3 servers, which must agree."""

from __future__ import annotations

import gzip
import os
import re

import pytest

from ptsave.core.address import Address, located
from ptsave.errors import MissingFileError, PtsaveError, UnreadableError
from ptsave.storage.files import InputFolder
from ptsave.storage.opening import open_file, open_folder, open_input
from tests.servers import faults
from tests.servers.stores import S3

DATA = bytes(range(256)) * 1024


@pytest.fixture
def bucket(s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, text in s3.env.items():
        monkeypatch.setenv(name, text)
    s3.put("run/a.bin", DATA)
    s3.put("run/b c+d%20.bin", b"abc")
    s3.put("run/deep/e.bin", b"e")
    s3.put("empty.bin", b"")
    return s3


def address_of(bucket: S3, key: str) -> Address:
    found = located(f"{bucket.address}/{key}")
    assert isinstance(found, Address)
    return found


def test_an_object_is_read_by_ranges(bucket: S3) -> None:
    with open_file(address_of(bucket, "run/a.bin")) as file:
        assert file.size_bytes == len(DATA)
        assert file.read_at(100_000, 50_000) == DATA[100_000:150_000]
    first, second = bucket.server.log
    assert "if-match" not in first.headers
    assert second.headers["range"] == "bytes=100000-149999"
    assert second.headers["if-match"].startswith('"')


def test_an_object_of_no_bytes(bucket: S3) -> None:
    with open_file(address_of(bucket, "empty.bin")) as file:
        assert (file.size_bytes, file.read_at(0, 0)) == (0, b"")


def test_a_range_that_ends_past_the_object_may_be_refused(bucket: S3) -> None:
    bucket.put("short.bin", b"abc")
    fault = bucket.server.faulty(faults.s3_error(416, "InvalidRange"), on="GET", times=1)
    with fault, open_file(address_of(bucket, "short.bin")) as file:
        assert file.read_at(0, file.size_bytes) == b"abc"


def test_a_prefix_is_a_folder(bucket: S3) -> None:
    for key in ("run", "run/"):
        with open_folder(address_of(bucket, key)) as folder:
            assert list(folder.names) == ["a.bin", "b c+d%20.bin", "deep"]
            with folder.open("b c+d%20.bin") as file:
                assert file.read_at(0, 3) == b"abc"
            for name in ("deep", "nothing"):
                with pytest.raises(MissingFileError):
                    folder.open(name)
        assert isinstance(open_input(address_of(bucket, key)), InputFolder)
    with open_folder(address_of(bucket, "")) as folder:
        assert list(folder.names) == ["empty.bin", "run"]


@pytest.mark.parametrize("key", ["nothing.bin", "ru", "run/a.bin/b", "nothing/"])
def test_what_is_not_there(key: str, bucket: S3) -> None:
    with pytest.raises(MissingFileError, match="no such object"):
        open_input(address_of(bucket, key))


def test_a_bucket_that_is_not_there(bucket: S3) -> None:
    with pytest.raises(MissingFileError, match="no such bucket") as caught:
        open_input(Address("s3", "no-such-bucket-anywhere", "a.bin"))
    assert "bucket" in caught.value.hint


def test_an_object_that_is_replaced_meanwhile_is_refused(bucket: S3) -> None:
    with open_file(address_of(bucket, "run/a.bin")) as file:
        bucket.put("run/a.bin", DATA[::-1])
        with pytest.raises(UnreadableError, match="was changed while it was read"):
            file.read_at(100_000, 100)


@pytest.mark.parametrize(
    "fault",
    [
        faults.s3_error(503, "SlowDown"),
        faults.s3_error(500, "InternalError"),
        faults.s3_error(429, "TooManyRequests", Retry_After="0"),
        faults.s3_error(400, "RequestTimeout"),
        faults.no_answer(),
        faults.cut(5000),
    ],
)
def test_what_passes_is_tried_again(fault: faults.Fault, bucket: S3) -> None:
    with bucket.server.faulty(fault, times=2), open_file(address_of(bucket, "run/a.bin")) as file:
        assert file.read_at(0, len(DATA)) == DATA


@pytest.mark.parametrize(
    "fault",
    [
        faults.status(103, Link="</a>; rel=preload"),
        faults.status(200, b"<html><body>who are you?</body></html>", "text/html"),
        faults.status(200),
        faults.header("Last-Modified", "yesterday"),
    ],
)
def test_what_is_no_answer_of_the_store_is_asked_for_again_and_never_believed(
    fault: faults.Fault, bucket: S3
) -> None:
    where = address_of(bucket, "run/a.bin")
    with bucket.server.faulty(fault, times=2), open_file(where) as file:
        assert file.read_at(0, len(DATA)) == DATA
    with bucket.server.faulty(fault), pytest.raises(UnreadableError):
        open_file(where)


@pytest.mark.parametrize(
    "fault",
    [
        faults.status(103),
        faults.status(200, b"<html><body>who are you?</body></html>", "text/html"),
        faults.status(200),
        faults.body(lambda text: text.replace(b"<IsTruncated>false", b"<IsTruncated>true")),
        faults.body(
            lambda text: text.replace(
                b"<IsTruncated>false</IsTruncated>",
                b"<IsTruncated>true</IsTruncated><NextContinuationToken>a</NextContinuationToken>",
            )
        ),
        faults.body(lambda text: re.sub(rb"<Key>[^<]*</Key>", b"", text)),
    ],
)
def test_a_list_that_is_none_or_does_not_end_is_not_an_empty_folder(fault: faults.Fault, bucket: S3) -> None:
    with bucket.server.faulty(fault, times=1), open_folder(address_of(bucket, "run")) as folder:
        assert [*folder.names] == ["a.bin", "b c+d%20.bin", "deep"]
    with bucket.server.faulty(fault), pytest.raises(UnreadableError) as caught:
        open_folder(address_of(bucket, "run"))
    assert not isinstance(caught.value, MissingFileError)


def test_an_encoding_that_an_object_has_is_part_of_it(bucket: S3) -> None:
    """Ranges are of the bytes that were put; what a proxy compresses on the way has another length."""
    where = address_of(bucket, "run/a.bin")
    with bucket.server.faulty(faults.header("Content-Encoding", "gzip")), open_file(where) as file:
        assert file.read_at(100_000, 1000) == DATA[100_000:101_000]
    squeezed = [faults.body(gzip.compress), faults.header("Content-Encoding", "gzip")]
    with bucket.server.faulty(*squeezed), pytest.raises(UnreadableError, match="the server"):
        open_file(where)


def test_a_redirect_is_not_followed(bucket: S3) -> None:
    """botocore asks where the bucket is, and that is redirected as well."""
    elsewhere = faults.redirect("http://127.0.0.1:1/elsewhere")
    with bucket.server.faulty(elsewhere), pytest.raises(UnreadableError, match="the store answers 307"):
        open_file(address_of(bucket, "run/a.bin"))
    assert bucket.server.count() == 1


@pytest.mark.parametrize(
    ("code", "name"), [(403, "AccessDenied"), (403, "SignatureDoesNotMatch"), (400, "ExpiredToken")]
)
def test_lost_credentials_say_what_to_check(code: int, name: str, bucket: S3) -> None:
    with bucket.server.faulty(faults.s3_error(code, name)), pytest.raises(PtsaveError, match=name) as caught:
        open_file(address_of(bucket, "run/a.bin"))
    assert "credentials" in caught.value.hint
    assert bucket.server.count("GET") == 1


def test_no_error_has_a_secret(bucket: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTSAVE_TIMEOUT", "1")
    secrets = (bucket.env["AWS_SECRET_ACCESS_KEY"], bucket.env["AWS_ACCESS_KEY_ID"], "Signature=")
    for fault in (
        faults.status(403),
        faults.status(503),
        faults.no_answer(),
        faults.s3_error(400, "IllegalLocationConstraintException"),
        faults.header("Content-Range", None),
    ):
        with bucket.server.faulty(fault), pytest.raises(PtsaveError) as caught:
            open_file(address_of(bucket, "run/a.bin"))
        error = caught.value
        shown = f"{error} {error.hint} {error.__dict__} {error.__cause__!r}"
        assert not any(secret in shown for secret in secrets)

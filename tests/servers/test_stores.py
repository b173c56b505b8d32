"""The stores of the tests keep what their users build on: real clients, conditional writes, races."""

from __future__ import annotations

import io
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import botocore.exceptions
import pytest
from azure.core import MatchConditions
from azure.core.exceptions import ResourceExistsError, ResourceModifiedError
from azure.storage.blob import BlobBlock, BlobServiceClient
from google.api_core.exceptions import NotFound, PreconditionFailed
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client

from tests.servers import faults
from tests.servers.stores import S3, Azure, Gcs, Store, azure_connection, s3_client

MIB = 1 << 20
OTHER = '"00000000000000000000000000000000"'


def s3_status(action: Callable[[], Any]) -> int | str:
    """The status that an S3 server answers, and "ok" for success."""
    try:
        action()
    except botocore.exceptions.ClientError as error:
        return int(error.response["ResponseMetadata"]["HTTPStatusCode"])
    return "ok"


def upload(client: Any, bucket: str, key: str, *parts: bytes, **conditions: str) -> str:
    """Upload `parts` and complete them under `conditions`; gives the ETag."""
    begun = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    uploaded = [
        {
            "PartNumber": number,
            "ETag": client.upload_part(Bucket=bucket, Key=key, UploadId=begun, PartNumber=number, Body=part)[
                "ETag"
            ],
        }
        for number, part in enumerate(parts, 1)
    ]
    done = client.complete_multipart_upload(
        Bucket=bucket, Key=key, UploadId=begun, MultipartUpload={"Parts": uploaded}, **conditions
    )
    return str(done["ETag"])


def test_every_store_keeps_bytes(store: Store) -> None:
    store.put("runs/a.bin", b"abc")
    store.put("b.bin", bytes(MIB))
    assert store.get("runs/a.bin") == b"abc"
    assert store.names() == ["b.bin", "runs/a.bin"]
    assert store.leftovers() == []
    assert store.server.count() == 0  # these go around the counting server


def test_s3_ranges_are_counted(s3: S3) -> None:
    s3.put("a.bin", bytes(range(200)))
    client = s3_client(s3.server.url)
    got = client.get_object(Bucket=s3.bucket, Key="a.bin", Range="bytes=-5")
    assert got["Body"].read() == bytes(range(195, 200))
    assert got["ContentRange"] == "bytes 195-199/200"
    assert s3_status(lambda: client.get_object(Bucket=s3.bucket, Key="a.bin", Range="bytes=200-")) == 416
    assert s3_status(lambda: client.get_object(Bucket=s3.bucket, Key="a.bin", IfMatch=OTHER)) == 412
    assert s3.server.count(rf"GET /{s3.bucket}/a.bin") == 3
    with s3.server.faulty(faults.s3_error(503, "SlowDown"), times=2):
        assert client.get_object(Bucket=s3.bucket, Key="a.bin")["Body"].read() == bytes(range(200))
    assert [exchange.status for exchange in s3.server.log[3:]] == [503, 503, 200]


def test_s3_conditional_puts(s3: S3) -> None:
    def put(**conditions: str) -> int | str:
        return s3_status(lambda: s3.client.put_object(Bucket=s3.bucket, Key="a", Body=b"b", **conditions))

    assert put(IfMatch=OTHER) == 404
    assert put(IfNoneMatch="*") == "ok"
    assert put(IfNoneMatch="*") == 412
    assert put(IfMatch=OTHER) == 412
    assert put(IfMatch=s3.client.head_object(Bucket=s3.bucket, Key="a")["ETag"]) == "ok"


def test_s3_conditional_completion(s3: S3) -> None:
    def complete(**conditions: str) -> int | str:
        return s3_status(lambda: upload(s3.client, s3.bucket, "a", bytes(5 * MIB), b"end", **conditions))

    assert complete(IfNoneMatch="*") == "ok"
    assert complete(IfNoneMatch="*") == 412
    assert s3.leftovers() == ["a"]
    (begun,) = s3.client.list_multipart_uploads(Bucket=s3.bucket)["Uploads"]
    s3.client.abort_multipart_upload(Bucket=s3.bucket, Key="a", UploadId=begun["UploadId"])
    assert s3.leftovers() == []
    assert complete(IfMatch=s3.client.head_object(Bucket=s3.bucket, Key="a")["ETag"]) == "ok"


def test_s3_completion_that_replaces(one_s3: S3) -> None:
    """moto 5.2 completes whatever If-Match says: only MiniStack is asked."""
    client, bucket = one_s3.client, one_s3.bucket
    assert s3_status(lambda: upload(client, bucket, "a", b"a", IfMatch=OTHER)) == 404
    one_s3.put("a", b"a")
    assert s3_status(lambda: upload(client, bucket, "a", b"b", IfMatch=OTHER)) == 412
    assert one_s3.get("a") == b"a"


@pytest.mark.slow
def test_s3_race(s3: S3) -> None:
    client = s3_client(s3.server.url)
    told: list[int | str] = []

    def create(number: int) -> None:
        told.append(s3_status(lambda: upload(client, s3.bucket, "a", bytes([number]), IfNoneMatch="*")))

    in_threads(create, 16)
    assert Counter(told) == {"ok": 1, 412: 15}


def test_s3_lost_answer(one_s3: S3) -> None:
    """The put is done, the client asks again and meets itself: what a writer has to tell from a conflict."""
    client = s3_client(one_s3.server.url)
    with one_s3.server.faulty(faults.lost_answer(), on="^PUT", times=1):
        put = s3_status(lambda: client.put_object(Bucket=one_s3.bucket, Key="a", Body=b"a", IfNoneMatch="*"))
    assert put == 412
    assert one_s3.get("a") == b"a"


def test_azure_conditional_blocks(azure: Azure) -> None:
    service = BlobServiceClient.from_connection_string(azure_connection(azure.server.url))
    blob = service.get_blob_client(azure.container, "a")
    blob.stage_block("MQ==", b"a" * MIB)
    blob.stage_block("Mg==", b"b")
    assert azure.leftovers() == ["a"]
    blocks = [BlobBlock("MQ=="), BlobBlock("Mg==")]
    etag = blob.commit_block_list(blocks, match_condition=MatchConditions.IfMissing)["etag"]
    assert azure.leftovers() == []
    assert azure.get("a") == b"a" * MIB + b"b"
    blob.stage_block("Mw==", b"c")
    with pytest.raises(ResourceExistsError):
        blob.commit_block_list([BlobBlock("Mw==")], match_condition=MatchConditions.IfMissing)
    azure.put("a", b"other")
    with pytest.raises(ResourceModifiedError):
        blob.upload_blob(b"mine", overwrite=True, etag=etag, match_condition=MatchConditions.IfNotModified)
    assert blob.download_blob(offset=1, length=3).readall() == b"the"
    assert azure.server.count("comp=block&") == 3


@pytest.mark.parametrize("num_bytes", [10, 9 * MIB], ids=["one request", "resumable"])
def test_gcs_generations(gcs: Gcs, num_bytes: int) -> None:
    blob = gcs_client(gcs).bucket(gcs.bucket).blob("a")

    def put(generation: int) -> None:
        file = io.BytesIO(bytes(num_bytes))
        blob.upload_from_file(file, size=num_bytes, if_generation_match=generation)

    put(0)
    first = blob.generation
    with pytest.raises(PreconditionFailed):
        put(0)
    put(first)
    with pytest.raises(PreconditionFailed):
        put(first)
    with pytest.raises(PreconditionFailed):
        blob.delete(if_generation_match=first)
    with pytest.raises(NotFound):
        gcs_client(gcs).bucket(gcs.bucket).blob("a", generation=first).download_as_bytes()
    assert len(gcs.get("a")) == num_bytes


def test_gcs_compose(gcs: Gcs) -> None:
    gcs.put("1", b"a")
    gcs.put("2", b"b")
    bucket = gcs_client(gcs).bucket(gcs.bucket)
    sources = [bucket.blob("1"), bucket.blob("2")]
    bucket.blob("a").compose(sources, if_generation_match=0)
    with pytest.raises(PreconditionFailed):
        bucket.blob("a").compose(sources, if_generation_match=0)
    assert gcs.get("a") == b"ab"


def test_gcs_race(gcs: Gcs) -> None:
    bucket = gcs_client(gcs).bucket(gcs.bucket)
    told: list[str] = []

    def create(number: int) -> None:
        file = io.BytesIO(bytes([number]) * MIB)
        try:
            bucket.blob("a", chunk_size=MIB // 4).upload_from_file(file, if_generation_match=0)
            told.append("ok")
        except PreconditionFailed:
            told.append("refused")

    in_threads(create, 16)
    assert Counter(told) == {"ok": 1, "refused": 15}
    assert gcs.server.count("upload_id=") > 4


def gcs_client(gcs: Gcs) -> Client:
    return Client(
        project="tests", credentials=AnonymousCredentials(), client_options={"api_endpoint": gcs.server.url}
    )


def in_threads(action: Callable[[int], None], num_threads: int) -> None:
    threads = [threading.Thread(target=action, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

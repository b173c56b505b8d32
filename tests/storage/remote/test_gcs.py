"""What is Google's own in reading from its store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from safetensors.numpy import save

from ptsave.errors import MissingFileError, UnreadableError
from ptsave.formats import open_checkpoint
from ptsave.storage.remote import gcs as of_gcs
from tests.servers import faults
from tests.servers.serving import Answer, Handler, Request, Server
from tests.servers.stores import Gcs

ONE = {"a": np.full(100_000, 1, np.float32)}
TWO = {"b": np.full(100_000, 2, np.float32)}


@pytest.fixture
def bucket(gcs: Gcs, monkeypatch: pytest.MonkeyPatch) -> Gcs:
    for name, text in gcs.env.items():
        monkeypatch.setenv(name, text)
    return gcs


def test_the_generation_is_pinned(bucket: Gcs) -> None:
    bucket.put("a.safetensors", save(ONE))
    blob = bucket.client.bucket(bucket.bucket).get_blob("a.safetensors")
    with open_checkpoint(f"{bucket.address}/a.safetensors") as checkpoint:
        entry = checkpoint.tensors["a"]
        entry.storage.read_into(0, memoryview(bytearray(8)))
        entry.storage.read_into(200_000, memoryview(bytearray(8)))
    first, *others = [parse_qs(urlsplit(one.target).query) for one in bucket.server.log]
    assert "ifGenerationMatch" not in first
    assert others
    assert all(query["ifGenerationMatch"] == [str(blob.generation)] for query in others)


def test_a_generation_can_be_named(bucket: Gcs) -> None:
    bucket.put("a.safetensors", save(ONE))
    generation = bucket.client.bucket(bucket.bucket).get_blob("a.safetensors").generation
    with open_checkpoint(f"{bucket.address}/a.safetensors#{generation}") as checkpoint:
        assert list(checkpoint.tensors) == ["a"]
    assert all(f"generation={generation}" in one.target for one in bucket.server.log)


def test_a_list_of_many_pages(bucket: Gcs) -> None:
    bucket.put("run/model.safetensors", save(ONE))
    pages = [
        {"items": [{"name": "run/", "size": "0"}], "nextPageToken": "a/b&c"},
        {"prefixes": ["run/sub/"], "nextPageToken": "2"},
        {"items": [{"name": "run/model.safetensors", "size": "9"}]},
    ]
    tokens = []

    def paged(request: Request, handler: Handler) -> Answer:
        tokens.append(request.query.get("pageToken"))
        return Answer.of(200, json.dumps(pages[len(tokens) - 1]).encode(), "application/json")

    with (
        bucket.server.faulty(paged, on=r"/o\?"),
        open_checkpoint(f"{bucket.address}/run/") as checkpoint,
    ):
        assert list(checkpoint.tensors) == ["a"]
    assert tokens == [None, "a/b&c", "2"]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"items": 3}', b'{"items": [{"name": "run/x"}]}', b'{"items": [4]}']
)
def test_a_wrong_list_is_an_error(bucket: Gcs, body: bytes) -> None:
    def wrong(request: Request, handler: Handler) -> Answer:
        return Answer.of(200, body, "application/json")

    with bucket.server.faulty(wrong), pytest.raises(UnreadableError, match=r"list of objects|no JSON"):
        open_checkpoint(f"{bucket.address}/run/")


class TestCredentials:
    """A service account's key, and the server where its tokens come from."""

    @pytest.fixture
    def tokens(self) -> Iterator[Server]:
        numbers = iter(range(1, 100))

        def answer(request: Request) -> Answer:
            token = {"access_token": f"token-{next(numbers)}", "expires_in": 3600, "token_type": "Bearer"}
            return Answer.of(200, json.dumps(token).encode(), "application/json")

        with Server(answer) as server:
            yield server

    @pytest.fixture
    def logged_in(self, gcs: Gcs, tokens: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gcs:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        account = {
            "type": "service_account",
            "client_email": "tests@tests.iam.gserviceaccount.com",
            "private_key": key.decode(),
            "token_uri": f"{tokens.url}/token",
        }
        path = tmp_path / "key.json"
        path.write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
        monkeypatch.setattr(of_gcs, "ENDPOINT", gcs.server.url)
        return gcs

    def test_a_token_is_got_once_and_sent(self, logged_in: Gcs, tokens: Server) -> None:
        logged_in.put("a.safetensors", save(ONE))
        for _ in range(2):
            open_checkpoint(f"{logged_in.address}/a.safetensors").close()
        assert {one.headers["authorization"] for one in logged_in.server.log} == {"Bearer token-1"}

    def test_a_token_that_is_refused_is_got_anew(self, logged_in: Gcs, tokens: Server) -> None:
        logged_in.put("a.safetensors", save(ONE))
        with logged_in.server.faulty(faults.status(401), times=1):
            open_checkpoint(f"{logged_in.address}/a.safetensors").close()
        assert [one.headers["authorization"] for one in logged_in.server.log] == [
            "Bearer token-1",
            "Bearer token-2",
        ]

    def test_an_account_without_rights_is_told(self, logged_in: Gcs, tokens: Server) -> None:
        with logged_in.server.faulty(faults.status(403)), pytest.raises(MissingFileError) as caught:
            open_checkpoint(f"{logged_in.address}/a.safetensors")
        assert "you may not read it (403)" in caught.value.what

    def test_a_key_that_is_refused_is_an_error(self, logged_in: Gcs, tokens: Server) -> None:
        refused = faults.status(400)
        with tokens.faulty(refused), pytest.raises(MissingFileError) as caught:
            open_checkpoint(f"{logged_in.address}/a.safetensors")
        assert caught.value.what == "no permission to read: the credentials do not work (RefreshError)"

    def test_a_broken_key_is_an_error(self, logged_in: Gcs, tmp_path: Path) -> None:
        (tmp_path / "key.json").write_text('{"type": "service_account", "private_key": "s3cr3t"}')
        with pytest.raises(MissingFileError) as caught:
            open_checkpoint(f"{logged_in.address}/a.safetensors")
        assert "s3cr3t" not in f"{caught.value} {caught.value.hint}"

"""What is Azure's own in reading from its store."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from azure.storage.blob import ContainerSasPermissions, generate_container_sas
from safetensors.numpy import save

from ptsave.errors import MissingFileError, PtsaveError, UsageError
from ptsave.formats import open_checkpoint
from tests.servers.stores import _AZURE_ACCOUNT, _AZURE_KEY, Azure

ONE = {"a": np.full(100_000, 1, np.float32)}


@pytest.fixture
def container(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> Azure:
    """A container with one object; the environment says where the account is, not who asks."""
    azure.put("a.safetensors", save(ONE))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", _AZURE_ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_SERVICE_ENDPOINT", f"{azure.server.url}/{_AZURE_ACCOUNT}")
    return azure


def test_an_account_and_its_key(container: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_KEY", _AZURE_KEY)
    open_checkpoint(f"{container.address}/a.safetensors").close()
    assert "sharedkey" in container.server.log[0].headers["authorization"].lower()


def test_a_signature_in_place_of_a_key(container: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    signature = generate_container_sas(
        _AZURE_ACCOUNT,
        container.container,
        account_key=_AZURE_KEY,
        permission=ContainerSasPermissions(read=True, list=True),
        expiry=datetime.now(timezone.utc) + timedelta(hours=1),
    )
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", signature)
    for where in ("/a.safetensors", "/"):
        if where == "/":
            container.put("model.safetensors", save(ONE))
        with open_checkpoint(f"{container.address}{where}") as checkpoint:
            assert list(checkpoint.tensors) == ["a"]
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", re.sub("sig=[^&]*", "sig=AAAA", signature))
    with pytest.raises(MissingFileError) as caught:
        open_checkpoint(f"{container.address}/a.safetensors")
    assert caught.value.what.startswith("no permission to read")
    assert "sig" not in f"{caught.value} {caught.value.hint}".replace("signature", "")


def test_a_public_container_needs_nobody(container: Azure) -> None:
    with pytest.raises(MissingFileError):
        open_checkpoint(f"{container.address}/a.safetensors")
    container.client.get_container_client(container.container).set_container_access_policy(
        signed_identifiers={}, public_access="container"
    )
    open_checkpoint(f"{container.address}/a.safetensors").close()


def test_without_an_account_there_is_an_error_of_usage(
    container: Azure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT")
    with pytest.raises(UsageError, match="which storage account"):
        open_checkpoint(f"{container.address}/a.safetensors")


@pytest.mark.parametrize(
    "text", ["x", "AccountKey=s3cr3t", "AccountName=a;AccountKey=s3cr3t;BlobEndpoint=///"]
)
def test_wrong_settings_are_an_error_that_does_not_show_them(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    monkeypatch.setenv("PTSAVE_TIMEOUT", "2")
    with pytest.raises(PtsaveError) as caught:
        open_checkpoint("az://container/a.safetensors")
    assert caught.value.exit_code in (2, 3)
    assert "s3cr3t" not in f"{caught.value} {caught.value.hint}"


def test_the_etag_is_insisted_on(container: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_KEY", _AZURE_KEY)
    with open_checkpoint(f"{container.address}/a.safetensors") as checkpoint:
        checkpoint.tensors["a"].storage.read_into(200_000, memoryview(bytearray(8)))
    etag = container.client.get_blob_client(container.container, "a.safetensors").get_blob_properties().etag
    first, *others = container.server.log
    assert "if-match" not in first.headers
    assert others
    assert {one.headers["if-match"] for one in others} == {etag}

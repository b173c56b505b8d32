"""What is Azure's own in writing to its store."""

from __future__ import annotations

import pytest

from ptsave.errors import WriteError
from ptsave.storage.opening import replacing_file, write_file
from ptsave.storage.upload.store import UploadStore
from tests.servers.faults import status
from tests.servers.stores import _AZURE_KEY, Azure
from tests.storage.upload.objects import COMPLETE, KIB, LARGE, PART, PART_BYTES, address, content, fill


@pytest.fixture
def container(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> Azure:
    for name, text in azure.env.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(UploadStore, "min_part_bytes", PART_BYTES)
    monkeypatch.setattr(UploadStore, "part_unit_bytes", KIB)
    return azure


def write(container: Azure, data: bytes) -> str:
    with replacing_file(address(f"{container.address}/m"), len(data), overwrite=True) as output:
        fill(output, data)
    return output.checked


def test_every_block_goes_with_its_md5(container: Azure) -> None:
    write(container, content(LARGE))
    sent = [one for one in container.server.log if "comp=block&" in one.target]
    assert len(sent) == 3
    assert all("content-md5" in one.headers for one in sent)


@pytest.mark.parametrize("num_bytes", [0, 10, LARGE])
def test_blocks_of_a_killed_writer_are_unseen_and_go_with_the_next_object(
    container: Azure, num_bytes: int
) -> None:
    container.client.get_blob_client(container.container, "m").stage_block("0" * 38, b"half")
    assert (container.names(), container.leftovers()) == ([], ["m"])
    assert write(container, content(num_bytes)) == "the store's MD5"
    assert container.get("m") == content(num_bytes)
    blocks = container.client.get_blob_client(container.container, "m").get_block_list("all")
    assert blocks[1] == []


def test_blocks_of_another_tool_are_told(container: Azure) -> None:
    container.client.get_blob_client(container.container, "m").stage_block("theirs", b"half")
    with pytest.raises(WriteError, match="another tool has begun") as caught:
        write(container, content(LARGE))
    assert "a week" in caught.value.hint


def test_a_lease_is_no_conflict(container: Azure) -> None:
    container.put("m", b"old")
    container.client.get_blob_client(container.container, "m").acquire_lease(15)
    for num_bytes in (10, LARGE):
        with pytest.raises(WriteError, match="412 LeaseIdMissing"):
            write(container, content(num_bytes))
    assert container.get("m") == b"old"


def test_damage_on_the_way_is_sent_again(container: Azure) -> None:
    fault = status(400, x_ms_error_code="Md5Mismatch")
    with container.server.faulty(fault, on=PART["az"], times=2):
        write(container, content(LARGE))
    assert container.get("m") == content(LARGE)


@pytest.mark.parametrize("code", [400, 401, 403])
@pytest.mark.parametrize("on", [PART, COMPLETE])
def test_credentials_that_are_refused_half_way_are_told_and_not_shown(
    container: Azure, code: int, on: dict[str, str]
) -> None:
    container.put("m", b"old")
    fault = status(code, _AZURE_KEY.encode(), x_ms_error_code="AuthenticationFailed")
    with container.server.faulty(fault, on=on["az"]), pytest.raises(WriteError) as caught:
        write(container, content(LARGE))
    assert "AuthenticationFailed" in caught.value.what
    assert _AZURE_KEY not in f"{caught.value} {caught.value.hint}"
    assert container.get("m") == b"old"


def test_a_container_that_is_not_there_is_told(container: Azure) -> None:
    with pytest.raises(WriteError, match="no such container") as caught:
        write_file(address("az://no-such-container/m"), b"new")
    assert "ContainerNotFound" in caught.value.hint

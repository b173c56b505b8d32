"""One range of one object: how often, and for how long, it is asked for."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator

import pytest
from huggingface_hub import constants

from ptsave.core.address import Address, Location, located
from ptsave.errors import OutOfReachError, PtsaveError, WriteError
from ptsave.formats import open_checkpoint
from ptsave.storage.opening import check_file_destination, check_folder_destination
from ptsave.storage.remote.request import MAX_UNREACHABLE, Deadline
from ptsave.storage.remote.store import Unreachable

ADDRESSES = {
    "http": "http://{}/model.pt",
    "s3": "s3://bucket/model.pt",
    "gcs": "gs://bucket/model.pt",
    "azure": "az://container/model.pt",
    "hub": "hf://me/model/model.pt",
}


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A host and port that nobody listens on, to which the environment of every store leads."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        account = f"AccountName=a;AccountKey=a2V5;BlobEndpoint=http://{where}/a;"
        for name, text in {
            "AWS_ENDPOINT_URL": f"http://{where}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "STORAGE_EMULATOR_HOST": f"http://{where}",
            "AZURE_STORAGE_CONNECTION_STRING": account,
        }.items():
            monkeypatch.setenv(name, text)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", f"http://{where}")
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"http://{where}{template}")
        yield where


@pytest.mark.parametrize("kind", ADDRESSES)
def test_an_address_where_nobody_listens_is_tried_for_seconds(kind: str, nobody: str) -> None:
    with pytest.raises(OutOfReachError) as caught:
        open_checkpoint(ADDRESSES[kind].format(nobody))
    assert re.fullmatch("cannot read: no connection to the (server|store)", caught.value.what)
    assert "check the address" in str(caught.value.hint)


@pytest.mark.parametrize("endpoint", ["http://[::1", "what?"])
@pytest.mark.parametrize("kind", ["s3", "hub"])
def test_an_endpoint_that_is_no_address(
    kind: str, endpoint: str, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(PtsaveError, match="is not a web address") as caught:
        open_checkpoint(ADDRESSES[kind])
    assert "ENDPOINT" in f"{caught.value.where}{caught.value.hint}"


@pytest.mark.parametrize("check", [check_file_destination, check_folder_destination])
@pytest.mark.parametrize("kind", [kind for kind in ADDRESSES if kind != "http"])
def test_nothing_is_written_where_nobody_listens(
    kind: str, check: Callable[[Location], None], nobody: str
) -> None:
    with pytest.raises(WriteError) as caught:
        check(located(ADDRESSES[kind]))
    assert re.fullmatch("cannot write: no connection to the (server|store)", caught.value.what)


def test_a_host_that_has_no_address_is_tried_for_seconds() -> None:
    with pytest.raises(OutOfReachError, match=r"^cannot read: the host's name is not known "):
        open_checkpoint("http://no-such-host.invalid/model.pt")


def test_a_server_that_has_answered_before_may_be_down_for_longer() -> None:
    address = located("http://host/model.pt")
    assert isinstance(address, Address)
    down = Unreachable("no connection to the server", after_s=0.0)
    Deadline.begin(address).pause(down, MAX_UNREACHABLE)
    with pytest.raises(OutOfReachError):
        Deadline.begin(address, is_first=True).pause(down, MAX_UNREACHABLE)

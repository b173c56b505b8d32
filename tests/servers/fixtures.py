"""Fixtures of object stores: a server runs once for all tests of a worker; each test has its own bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.servers.hub import Hub, hub_server
from tests.servers.stores import (
    S3,
    Azure,
    Gcs,
    Store,
    azure_store,
    azurite,
    fake_gcs,
    gcs_store,
    ministack,
    moto,
    s3_store,
)

SERVERS: dict[str, Callable[[Path], AbstractContextManager[str]]] = {
    "moto": moto,
    "ministack": ministack,
    "azurite": azurite,
    "fake-gcs-server": fake_gcs,
}
BUCKETS: dict[str, Callable[[str], AbstractContextManager[Any]]] = {
    "moto": s3_store,
    "ministack": s3_store,
    "azurite": azure_store,
    "fake-gcs-server": gcs_store,
}

SECOND_S3 = pytest.param("moto", marks=pytest.mark.slow)
"""The fast tests ask one S3 server alone."""
ONE_SERVER = {"one_s3": "ministack", "azure": "azurite", "gcs": "fake-gcs-server"}
"""Fixtures below that are always on the same server."""
Start = Callable[[str], str]


def server_of(item: pytest.Function) -> str:
    """The name of the server that a test runs on; empty where it uses none."""
    for fixture in item.fixturenames:
        if fixture in ONE_SERVER:
            return ONE_SERVER[fixture]
        if fixture in ("store", "each", "s3"):
            return str(item.callspec.params[fixture])
    return ""


@pytest.fixture(scope="session", autouse=True)
def short_pauses() -> Iterator[None]:
    """Wait a twentieth as long before a request is repeated: these servers are well again at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ptsave.storage.remote.request._FIRST_DELAY_S", 0.005)
        yield


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """The URL of the server of a name, which is started when it is first asked for."""
    urls: dict[str, str] = {}
    with ExitStack() as stack:

        def url_of(name: str) -> str:
            if name not in urls:
                urls[name] = stack.enter_context(SERVERS[name](tmp_path_factory.mktemp(name)))
            return urls[name]

        yield url_of


@pytest.fixture(params=[SECOND_S3, "ministack", "azurite", "fake-gcs-server"])
def store(request: pytest.FixtureRequest, start: Start) -> Iterator[Store]:
    """A fresh bucket on every server in turn."""
    with BUCKETS[request.param](start(request.param)) as bucket:
        yield bucket


@pytest.fixture(params=["ministack", "azurite", "fake-gcs-server"])
def each(request: pytest.FixtureRequest, start: Start) -> Iterator[Store]:
    """A fresh bucket on one server of each kind in turn."""
    with BUCKETS[request.param](start(request.param)) as bucket:
        yield bucket


@pytest.fixture(params=[SECOND_S3, "ministack"])
def s3(request: pytest.FixtureRequest, start: Start) -> Iterator[S3]:
    """A fresh bucket on each S3 server in turn: they must agree."""
    with s3_store(start(request.param)) as bucket:
        yield bucket


@pytest.fixture
def one_s3(start: Start) -> Iterator[S3]:
    """A fresh bucket on one S3 server, for what need not be asked twice."""
    with s3_store(start("ministack")) as bucket:
        yield bucket


@pytest.fixture
def azure(start: Start) -> Iterator[Azure]:
    """A fresh container on Azurite."""
    with azure_store(start("azurite")) as container:
        yield container


@pytest.fixture
def gcs(start: Start) -> Iterator[Gcs]:
    """A fresh bucket on fake-gcs-server."""
    with gcs_store(start("fake-gcs-server")) as bucket:
        yield bucket


@pytest.fixture
def found_by_ptsave(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process find the server of the bucket that the test has."""
    for name in ("store", "each", "s3", "one_s3", "azure", "gcs"):
        if name in request.fixturenames:
            for key, value in request.getfixturevalue(name).env.items():
                monkeypatch.setenv(key, value)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub without repositories."""
    with hub_server() as server:
        yield server

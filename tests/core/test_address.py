"""Addresses: what a user writes becomes one, and what gives access is never shown."""

from __future__ import annotations

import os
from pathlib import Path, PureWindowsPath

import pytest

from ptsave.core.address import _COLLAPSED, Address, _path_in_url, beside, located
from ptsave.errors import UsageError


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/runs/a//b.pt",
        "s3://bucket/a.pt?versionId=3HL4kqtJ",
        "s3://bucket/what?.pt",
        "gs://bucket/a b.pt#1234",
        "gs://bucket/a#b.pt",
        "az://container/a.pt",
        "hf://owner/repo",
        "hf://owner/repo@refs/pr/3/model.safetensors",
        "hf://owner/repo@feature%2Fx/model.safetensors",
        "hf://datasets/owner/repo@main/a/b.pt",
        "https://host:8443/a%20b/c.pt",
        "memory://folder/a.pt",
    ],
)
def test_an_address_prints_as_it_was_written(text: str) -> None:
    address = located(text)
    assert isinstance(address, Address)
    assert str(address) == text


def test_what_gives_access_is_not_shown() -> None:
    address = located("https://me:hunter2@host/a.pt?sig=s3cr3t#part")
    assert isinstance(address, Address)
    assert (address.user, address.query) == ("me:hunter2", "sig=s3cr3t")
    for text in (str(address), repr(address), f"{address}", repr([address])):
        assert "hunter2" not in text
        assert "s3cr3t" not in text


def test_names_and_neighbours() -> None:
    address = located("s3://bucket/run/model.safetensors.index.json")
    assert isinstance(address, Address)
    assert (address.name, address.suffix) == ("model.safetensors.index.json", ".json")
    assert str(address.parent / "model-1.safetensors") == "s3://bucket/run/model-1.safetensors"
    web = located("https://host/a%20b/c.pt?token=1")
    assert isinstance(web, Address)
    assert (web.name, str(web.parent / "d e.pt")) == ("c.pt", "https://host/a%20b/d%20e.pt?…")
    hub = located("hf://owner/repo@main")
    assert isinstance(hub, Address)
    assert (hub.name, hub.host, hub.revision) == ("repo", "owner/repo", "main")
    assert str(hub.at("abc") / "a.pt") == "hf://owner/repo@abc/a.pt"


@pytest.mark.parametrize("text", ["a.pt", "C:\\models\\a.pt", "s3:a", "./s3://a", "", "a://"[:2]])
def test_what_is_no_address_is_a_path(text: str) -> None:
    assert located(text) == Path(text)


def test_a_file_address_is_a_path() -> None:
    assert located("file:///tmp/a%20b.pt") == Path("/tmp/a b.pt")


@pytest.mark.parametrize("text", ["s3://", "gs:///key", "https:///a.pt", "hf://owner", "hf://"])
def test_what_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        located(text)


@pytest.mark.skipif(os.sep != "/", reason="a Path keeps other slashes there")
def test_an_address_that_went_through_a_path_is_told() -> None:
    with pytest.raises(UsageError, match="became a path"):
        located(Path("s3://bucket/a.pt"))


@pytest.mark.parametrize(
    ("folder", "name", "found"),
    [
        ("configs", "x.npz", "configs/x.npz"),
        ("configs", "../x.npz", "configs/../x.npz"),
        ("configs", "/data/x.npz", "/data/x.npz"),
        ("configs", "s3://b/x.npz", "s3://b/x.npz"),
        ("s3://b/configs", "x.npz", "s3://b/configs/x.npz"),
        ("s3://b/configs", "../data/x.npz", "s3://b/data/x.npz"),
        ("s3://b/configs", "/data/x.npz", "/data/x.npz"),
        ("https://host/c", "a b.npz", "https://host/c/a%20b.npz"),
        ("hf://me/model@v1", "x.npz", "hf://me/model@v1/x.npz"),
    ],
)
def test_a_file_that_a_config_names_lies_beside_it(folder: str, name: str, found: str) -> None:
    assert str(beside(located(folder), name)) == found


@pytest.mark.parametrize(
    ("url", "linux", "windows"),
    [
        ("/tmp/a.pt", "/tmp/a.pt", "/tmp/a.pt"),
        ("localhost/tmp/a.pt", "/tmp/a.pt", "/tmp/a.pt"),
        ("/C:/runs/a.pt", "/C:/runs/a.pt", "C:/runs/a.pt"),
        ("C:/runs/a.pt", "C:/runs/a.pt", "C:/runs/a.pt"),
        ("server/share/a.pt", "server/share/a.pt", "//server/share/a.pt"),
    ],
)
def test_the_path_of_a_file_url(url: str, linux: str, windows: str) -> None:
    assert _path_in_url(url, is_windows=False) == linux
    assert _path_in_url(url, is_windows=True) == windows


@pytest.mark.parametrize(
    "text", ["C:\\runs\\a.pt", "C:/runs/a.pt", "C:a.pt", "\\\\server\\share\\a.pt", "C://a.pt"]
)
def test_a_path_of_windows_is_no_address(text: str) -> None:
    assert located(text) == Path(text)
    assert not _COLLAPSED.match(str(PureWindowsPath(text)))


def test_an_address_that_went_through_a_path_of_windows() -> None:
    assert _COLLAPSED.match(str(PureWindowsPath("s3://bucket/a.pt")))

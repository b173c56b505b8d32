"""Archives on other machines: members are named and found as on a disk, and read by their ranges."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ptsave
from ptsave.core.address import Address, located
from ptsave.errors import AmbiguousError, CorruptError, MissingFileError, RefusedError
from ptsave.formats import open_checkpoint
from tests.attacks.samples import contents
from tests.formats.wrapping import BOTH, NAME, WRAPPERS, tarred, zipped
from tests.servers.folders import folder
from tests.servers.serving import Server
from tests.servers.stores import S3


def torch_file(folder: Path, *shape: int) -> bytes:
    torch.save({"w": torch.zeros(shape), "b": torch.ones(3)}, folder / "bare.pt")
    return (folder / "bare.pt").read_bytes()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(folder(tmp_path)) as running:
        yield running


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_wrapper(wrapper: str, server: Server, tmp_path: Path) -> None:
    (tmp_path / "wrapped").write_bytes(WRAPPERS[wrapper](torch_file(tmp_path, 100)))
    with open_checkpoint(tmp_path / "bare.pt") as bare, open_checkpoint(f"{server.url}/wrapped") as far:
        assert contents(far) == contents(bare)
        assert far.wrappings
    assert ptsave.verify(f"{server.url}/wrapped", against=tmp_path / "bare.pt").is_yes


@pytest.mark.parametrize("pack", [tarred, zipped])
def test_only_what_is_needed_is_read(pack: object, server: Server, tmp_path: Path) -> None:
    """Of three members of 4 MB each, one is opened: beginnings, ends, the headers of all, and no tensor."""
    data = torch_file(tmp_path, 1_000_000)
    members = {"a.pt": data, "notes.txt": bytes(data), "b.pt": data, "c.pt": data}
    (tmp_path / "all").write_bytes(pack(members))  # type: ignore[operator]
    with open_checkpoint(f"{server.url}/all::b.pt") as checkpoint:
        assert len(checkpoint.tensors) == 2
        assert server.num_bytes_out < 600_000
        assert len(server.log) < 30
        for entry in checkpoint.tensors.values():
            buffer = bytearray(entry.num_bytes)
            entry.storage.read_into(0, memoryview(buffer))
    assert server.num_bytes_out < 600_000 + 1.1 * len(data)


def test_a_member_of_a_signed_address(server: Server, tmp_path: Path) -> None:
    data = torch_file(tmp_path, 10)
    (tmp_path / "all.zip").write_bytes(zipped({"a.pt": data, "b.pt": data}))
    with pytest.raises(AmbiguousError) as error:
        open_checkpoint(f"{server.url}/all.zip?SECRET=1")
    assert f"{server.url}/all.zip?…::a.pt" in error.value.hint
    with open_checkpoint(f"{server.url}/all.zip?SECRET=1::b.pt") as checkpoint:
        assert str(checkpoint.path) == f"{server.url}/all.zip?…::b.pt"


def test_two_colons_in_a_name(server: Server, tmp_path: Path) -> None:
    """Where there is no archive of the name before them, they are a part of the file's."""
    (tmp_path / "odd::name.pt").write_bytes(torch_file(tmp_path, 10))
    with open_checkpoint(f"{server.url}/odd::name.pt") as checkpoint:
        assert checkpoint.wrappings == ()
    with pytest.raises(MissingFileError) as error:
        open_checkpoint(f"{server.url}/nothing.zip::a.pt")
    assert error.value.where == f"{server.url}/nothing.zip"


def test_a_zip_at_the_end_of_a_tar(server: Server, tmp_path: Path) -> None:
    """In a member of text: zip readers take the whole for it."""
    data = torch_file(tmp_path, 10)
    (tmp_path / "a.tar").write_bytes(tarred({"a.pt": data, "notes.txt": b"x" + zipped({"b.pt": data})}))
    with pytest.raises(CorruptError, match="also ends as a zip archive"):
        ptsave.verify(f"{server.url}/a.tar")


def test_a_store(one_s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, text in one_s3.env.items():
        monkeypatch.setenv(name, text)
    data = torch_file(tmp_path, 100)
    one_s3.put("agents/policy.zip", zipped({"policy.pth": data, "policy.optimizer.pth": data}))
    one_s3.put("agents/model.tar.gz", BOTH["tar.gz"](data))
    one_s3.put("agents/odd::name.pt", data)
    home = f"{one_s3.address}/agents"
    with pytest.raises(AmbiguousError) as error:
        open_checkpoint(f"{home}/policy.zip")
    assert (
        error.value.hint
        == f"name one: {home}/policy.zip::policy.pth, {home}/policy.zip::policy.optimizer.pth"
    )
    for name in ("policy.zip::policy.pth", "model.tar.gz", f"model.tar.gz::{NAME}", "odd::name.pt"):
        assert ptsave.verify(f"{home}/{name}", against=tmp_path / "bare.pt").is_yes
        ptsave.convert(f"{home}/{name}", tmp_path / "out.safetensors", overwrite=True)
    with pytest.raises(RefusedError, match="nothing is written into an archive"):
        ptsave.convert(tmp_path / "bare.pt", f"{home}/policy.zip::new.pt")
    ptsave.convert(tmp_path / "bare.pt", f"{home}/other::name.pt")
    assert "agents/other::name.pt" in one_s3.names()


@pytest.mark.parametrize(
    ("text", "member", "shown"),
    [
        ("s3://b/p.zip::a/b.pth", "a/b.pth", "s3://b/p.zip::a/b.pth"),
        ("s3://b/p.zip?versionId=7::a.pth", "a.pth", "s3://b/p.zip?versionId=7::a.pth"),
        ("gs://b/p.zip#12::a.pth", "a.pth", "gs://b/p.zip#12::a.pth"),
        ("hf://o/r@v1/p.zip::a.pth", "a.pth", "hf://o/r@v1/p.zip::a.pth"),
        ("https://u:p@h/p.zip?sig=1::a.pth", "a.pth", "https://h/p.zip?…::a.pth"),
        ("http://[::1]:80/p.zip::a.pth", "a.pth", "http://[::1]:80/p.zip::a.pth"),
        ("http://[::1]:80/p.zip", "", "http://[::1]:80/p.zip"),
        ("memory://p.zip::a.pth", "a.pth", "memory://p.zip::a.pth"),
        ("s3://b/p.zip::", "", "s3://b/p.zip::"),
    ],
)
def test_how_an_address_is_written(text: str, member: str, shown: str) -> None:
    address = located(text)
    assert isinstance(address, Address)
    assert (address.member, str(address)) == (member, shown)
    assert address.name == (member.rpartition("/")[2] or address.name)
    assert located(text) == address
    assert "::" not in str(address.parent).replace("[::1]", "")

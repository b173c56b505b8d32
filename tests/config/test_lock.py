"""`ptsave.lock`: what is written comes back, what was edited is refused, and whose pin a checkpoint's is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ptsave
from ptsave.config.lock import LockFile, Pin, lock_bytes, read_lock
from ptsave.core.address import located
from ptsave.errors import MissingFileError, PtsaveError, UsageError
from ptsave.formats import open_checkpoint
from ptsave.sign.statement import SignedContent, statement_of

PIN = Pin(statement_of(SignedContent({"w": "0" * 64}, {"w": ("float32", (2,))}), "sha256"), ("ab" * 32,))


@pytest.fixture
def lock(tmp_path: Path) -> LockFile:
    names = (
        "net.pt",
        "a 'b' \"c\"/ünï.pt",
        "/data/x.pt",
        "s3://bucket/key.pt?versionId=3",
        "version",
        "pins",
    )
    return LockFile(tmp_path / "ptsave.lock", dict.fromkeys(names, PIN))


def test_it_comes_back_as_it_was(lock: LockFile) -> None:
    assert isinstance(lock.path, Path)
    lock.path.write_bytes(lock_bytes(lock))
    read = read_lock(lock.path)
    assert {name: pin.digest for name, pin in read.pins.items()} == dict.fromkeys(lock.pins, PIN.digest)
    assert all(pin.signed_by == PIN.signed_by for pin in read.pins.values())
    assert lock_bytes(read) == lock_bytes(lock)
    assert lock_bytes(replace(lock, pins=dict(reversed(lock.pins.items())))) == lock_bytes(lock)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("version = 1", "version = 2", "is of version 2"),
        ("version = 1", "", "is of version None"),
        ("version = 1", "version = 1\nversion = 1", "not valid TOML"),
        ("[pins.", "[pin.", "unknown key 'pin'"),
        ("digest = ", "digests = ", "unknown key 'digests'"),
        ("sha256:", "sha256:0", "the pin was edited"),
        ("sha256:", "xxh3:", "the pin was edited"),
        ('\\"count\\":1', '\\"count\\":2', "the pin was edited"),
        ('\\"count\\":1', '\\"count\\": 1', "not in canonical form"),
        ('\\"algorithm\\":\\"sha256\\"', '\\"algorithm\\":\\"xxh3_128\\"', "not one that verify --pin makes"),
        ("{\\", "[\\", "the signed statement"),
        ('signed_by = ["', 'signed_by = [1, "', "signed_by.0"),
        ("statement = ", "statement = 3 # ", "the value must be a string"),
        ('."net.pt"]', '."s3://"]', "names no bucket"),
    ],
)
def test_what_was_edited_is_refused(old: str, new: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "ptsave.lock"
    text = lock_bytes(LockFile(path, {"net.pt": PIN})).decode()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(PtsaveError, match=says):
        read_lock(path)


def test_a_pin_of_a_part_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ptsave.lock"
    for part in ({"only": ["w"]}, {"expires": "2999-01-01"}):
        path.write_bytes(lock_bytes(LockFile(path, {"net.pt": Pin(replace(PIN.statement, **part))})))
        with pytest.raises(UsageError, match="not one that verify --pin makes"):
            read_lock(path)
    with pytest.raises(MissingFileError):
        read_lock(tmp_path / "absent.lock")


def test_names_are_relative_to_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = LockFile(tmp_path / "ptsave.lock")
    monkeypatch.chdir(tmp_path)
    assert lock.name_of(Path("models/net.pt")) == "models/net.pt"
    assert lock.name_of(Path("models/../net.pt")) == "net.pt"
    assert lock.name_of(tmp_path / "net.pt") == "net.pt"
    assert lock.name_of(tmp_path.parent / "net.pt") == (tmp_path.parent / "net.pt").as_posix()
    assert lock.name_of(located("https://h/net.pt?token=secret")) == "https://h/net.pt?…"


def test_a_checkpoint_has_its_pin_under_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link, a hard link, the folder or its index: what is read is what was pinned, or there is a no."""
    monkeypatch.chdir(tmp_path)
    state = {"a": torch.ones(100), "b": torch.zeros(100)}
    ptsave.save("net.pt", state)
    ptsave.save("other.pt", state)
    ptsave.convert("net.pt", "shards", format="safetensors-sharded", shard_size=500)
    Path("hub").mkdir()
    ptsave.convert("net.pt", "hub/model.safetensors")
    os.symlink("net.pt", "latest.pt")
    os.link("net.pt", "hard.pt")
    os.symlink("shards", "linked")

    def pins(path: str, *names: str) -> int:
        with open_checkpoint(path) as checkpoint:
            return len(LockFile(Path("ptsave.lock"), dict.fromkeys(names, PIN)).pins_of(checkpoint))

    for path in ("net.pt", "./net.pt", "hub/../net.pt", "latest.pt", "hard.pt", str(tmp_path / "net.pt")):
        assert pins(path, "net.pt") == 1, path
        assert pins(path, str(tmp_path / "net.pt"), "other.pt", "absent.pt", "s3://b/net.pt") == 1, path
    assert pins("net.pt", "latest.pt", "net.pt") == 2
    for path in ("shards", "linked", "shards/model.safetensors.index.json"):
        assert pins(path, "shards") == 1, path
        assert pins(path, "shards/model.safetensors.index.json") == 1, path
    assert pins("hub", "hub/model.safetensors") == pins("hub", "hub") == 1
    os.symlink("hub/model.safetensors", "hub.safetensors")
    for path in ("hub/model.safetensors", "hub.safetensors", "shards/model-00001-of-00002.safetensors"):
        assert pins(path, "shards", "hub") == 1, path
        assert pins(path, "shards", "hub", path) == 1, path
    assert pins("other.pt", "net.pt", "shards", "hub") == 0
    os.remove("latest.pt")
    os.symlink("other.pt", "latest.pt")
    assert pins("latest.pt", "latest.pt") == pins("latest.pt", "other.pt") == 1

"""Every platform difference: the fallback is forced, and what is read and written stays the same."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest
import torch

import ptsave
from ptsave.cli.main import run
from ptsave.storage import system
from ptsave.storage.system import disk, naming
from tests.support import some

FLAGS = sorted(name for name in vars(system) if name.startswith("HAS_"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "model.pt"
    torch.save({"weight": torch.arange(300_000.0).view(300, 1000), "bias": torch.ones(7)}, path)
    return path


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def work(source: Path, folder: Path) -> dict[str, str]:
    """Read and write files and folders in every way that asks the system for something."""
    folder.mkdir()
    one, shards, dcp = (str(folder / name) for name in ("m.safetensors", "shards", "dcp"))
    for command in (
        ["convert", str(source), one],
        ["convert", one, shards, "--format", "safetensors-sharded", "--shard-size", "600KB"],
        ["convert", shards, dcp, "--format", "dcp"],
        ["convert", dcp, one, "--overwrite"],
        ["verify", one],
    ):
        assert run([*command, "--quiet"]) == 0
    return contents(folder)


@pytest.mark.parametrize("flag", some(FLAGS))
def test_each_fallback_reads_and_writes_the_same(
    flag: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = work(source, tmp_path / "with")
    monkeypatch.setattr(system, flag, False)
    assert work(source, tmp_path / "without") == expected


def test_all_fallbacks_together(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = work(source, tmp_path / "with")
    for flag in FLAGS:
        monkeypatch.setattr(system, flag, False)
    assert work(source, tmp_path / "without") == expected


def test_owners_are_left_alone_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"")
    old.chmod(0o640)
    new.write_bytes(b"")
    new.chmod(0o600)
    with open(new, "rb") as file:
        monkeypatch.setattr(system, "HAS_OWNERS", False)
        disk.keep_owner_and_mode(old, os.stat(old), file.fileno())
        assert new.stat().st_mode & 0o777 == 0o600
        monkeypatch.setattr(system, "HAS_OWNERS", True)
        disk.keep_owner_and_mode(old, os.stat(old), file.fileno())
        assert new.stat().st_mode & 0o777 == 0o640


def test_a_platform_is_asked_about_in_one_folder_alone() -> None:
    """Elsewhere a flag of `system` is read, which a test can force.

    Only `errors`, below all else, has a flag of its own: its hints are for the shell at hand.
    """
    asks = re.compile(r"sys\.platform|os\.name\b|hasattr\((os|fcntl|mmap|signal),")
    root = Path(ptsave.__file__).parent
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if path.parent.name != "system" and asks.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"errors.py"}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("model.pt", ""),
        ("CONSOLE.pt", ""),
        (".metadata", ""),
        ("com0.pt", ""),
        ("con", "keeps the name 'con' for a device"),
        ("NUL .tar.gz", "for a device"),
        ("LPT9.pt", "keeps the name 'LPT9' for a device"),
        ("COM².pt", "for a device"),
        ("a.pt.", "drops a dot or a space at the end"),
        ("a.pt ", "drops a dot or a space at the end"),
        ("a:b.pt", "allows no ':'"),
        ("a\\b.pt", r"allows no '\\'"),
        ("a\x01.pt", r"allows no '\x01'"),
        ("wh?t*.pt", "allows no '?'"),
    ],
)
def test_names_that_windows_refuses(name: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = naming.refused_by_windows(name)
    assert why in found
    assert bool(why) == bool(found)
    assert naming.why_not_a_name(name) == ""
    monkeypatch.setattr(system, "IS_WINDOWS", True)
    assert naming.why_not_a_name(name) == found

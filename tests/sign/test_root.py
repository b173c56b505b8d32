"""One hash of all tensors: what `inspect` says of it, and `verify` once the digests were checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ptsave
from ptsave.cli import main


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    ptsave.save("a.safetensors", {"w": torch.arange(6.0), "b": torch.ones(2)})
    return "a.safetensors"


def test_every_format_has_the_same_root(file: str, capfd: pytest.CaptureFixture[str]) -> None:
    root = ptsave.inspect(file).root
    assert len(root) == 64
    assert ptsave.verify(file).root == root
    ptsave.convert(file, "b.pt")
    ptsave.convert(file, "shards", shard_size=24)
    ptsave.convert(file, "folder", format="dcp")
    for copy in ("b.pt", "shards", "folder"):
        assert ptsave.verify(copy).root == root
    assert main.run(["verify", "b.pt", "-v"]) == 0
    assert f"root       {root}" in capfd.readouterr().out.splitlines()
    assert main.run(["inspect", "b.pt", "-v"]) == 0
    assert ["root", root] in [line.split() for line in capfd.readouterr().out.splitlines()]


def test_another_value_or_name_is_another_root(file: str) -> None:
    roots = {ptsave.inspect(file).root}
    for value, name in ((7.0, "w"), (6.0, "v")):
        ptsave.save("b.safetensors", {name: torch.arange(value)[:6], "b": torch.ones(2) * value})
        roots.add(ptsave.inspect("b.safetensors").root)
    assert len(roots) == 3


def test_what_was_not_checked_has_no_root(file: str) -> None:
    assert ptsave.verify(file, checks="safe").root == ""
    torch.save({"w": torch.ones(2)}, "foreign.pt")
    assert ptsave.inspect("foreign.pt").root == ""
    assert ptsave.verify("foreign.pt").root == ""
    damaged = bytearray(Path(file).read_bytes())
    damaged[-1] ^= 1
    Path(file).write_bytes(damaged)
    assert not ptsave.verify(file).is_yes
    assert ptsave.verify(file).root == ""


def test_a_tensor_says_which_file_holds_it(file: str, capfd: pytest.CaptureFixture[str]) -> None:
    ptsave.convert(file, "shards", shard_size=24, format="safetensors-sharded")
    found = {row.entry.name: row.files for row in ptsave.inspect("shards").rows}
    assert found == {name: [f"model-0000{i}-of-00002.safetensors"] for i, name in ((1, "w"), (2, "b"))}
    assert main.run(["inspect", "shards", "-v"]) == 0
    assert "8 B  in model-00002-of-00002.safetensors" in capfd.readouterr().out
    assert main.run(["inspect", "shards"]) == 0
    assert "model-00002" not in capfd.readouterr().out
    assert [row.files for row in ptsave.inspect(file).rows] == [(), ()]

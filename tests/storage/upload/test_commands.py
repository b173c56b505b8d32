"""Whole commands whose destination is an address: the bytes that a disk would have, and no secret shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.servers.stores import Store
from tests.storage.upload.objects import left
from tests.support import Command


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A `.pt` of a training, some tensors of it large."""
    import torch

    state = {f"layer.{i}.weight": torch.arange(i, i + 700_000.0).reshape(700, 1000) for i in range(4)}
    torch.save({**state, "scalar": torch.tensor(1.5), "tied": state["layer.0.weight"]}, tmp_path / "m.pt")
    return tmp_path / "m.pt"


FORMATS = ["safetensors", "pt", "npz", "safetensors-sharded", "dcp"]


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_has_the_same_bytes_there_and_comes_back(
    ptsave_here: Command, each: Store, source: Path, tmp_path: Path, format: str
) -> None:
    there, flags = f"{each.address}/there", ["--format", format]
    flags += ["--shard-size", "5MB"] if format == "safetensors-sharded" else []
    ptsave_here("convert", source, tmp_path / "here", *flags)
    done = json.loads(ptsave_here("convert", source, there, *flags, "--json", env=each.env).stdout)
    assert done["checked"].startswith("the store's ")
    here = tmp_path / "here"
    files = {f"there/{f.name}": f for f in here.iterdir()} if here.is_dir() else {"there": here}
    assert each.names() == sorted(files)
    assert [name for name, file in files.items() if each.get(name) != file.read_bytes()] == []
    assert left(each) == []
    ptsave_here("convert", there, tmp_path / "back.pt", env=each.env)
    ptsave_here("verify", tmp_path / "back.pt", "--against", source)
    refused = ptsave_here("convert", source, there, *flags, code=4, env=each.env)
    assert "--overwrite" in refused.stderr
    ptsave_here("convert", source, there, *flags, "--overwrite", env=each.env)
    assert "the-secret" not in refused.stderr + json.dumps(done)


def test_an_input_is_never_the_destination(ptsave_here: Command, each: Store, source: Path) -> None:
    each.put("run/m.pt", source.read_bytes())
    for where in ("run/m.pt", "run"):
        flags = ["--format", "pt" if where == "run/m.pt" else "dcp", "--overwrite"]
        ptsave_here(
            "convert",
            f"{each.address}/run/m.pt",
            f"{each.address}/{where}",
            *flags,
            code=4,
            env=each.env,
        )
    assert each.get("run/m.pt") == source.read_bytes()
    assert each.names() == ["run/m.pt"]

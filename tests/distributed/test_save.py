"""save under torchrun: a folder that every reader opens, from any layout to any other."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

from ptsave.cli import main
from ptsave.formats import open_checkpoint
from ptsave.models.behaviour.trace import digest_of
from tests.distributed.launch import digests, errors, ptsave, run_cases, torchrun
from tests.distributed.models import write_models


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its configs, and its weights in one file."""
    folder = tmp_path_factory.mktemp("made")
    write_models(folder)
    ptsave(folder, "save", "plain.toml", "m.safetensors")
    return folder


@pytest.fixture
def studio(made: Path, tmp_path: Path) -> Path:
    """A copy of it for each test."""
    return Path(shutil.copytree(made, tmp_path / "studio"))


def save(studio: Path, ranks: int, config: str, destination: str, *more: str) -> None:
    done = torchrun(ranks, "save", config, destination, *more, cwd=studio)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("saved odd.Odd") == 1


def assert_made_of(folder: Path, file: Path) -> None:
    """Tensors, ties, digests, behaviour and the model."""
    assert digests(folder) == digests(file)
    with open_checkpoint(folder) as one, open_checkpoint(file) as other:
        assert one.record is not None
        assert other.record is not None
        assert one.record.digests == other.record.digests
        assert one.record.model == other.record.model
        assert one.record.behaviour is not None
        assert other.record.behaviour is not None
        assert one.record.behaviour["calls"] == other.record.behaviour["calls"]
        assert one.tensors["head.weight"].view == one.tensors["embed.weight"].view


def test_a_folder_of_one_rank_is_the_file_it_was_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rank is this process, and torchrun's store is beside it."""
    write_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main.run(["save", "plain.toml", "m.safetensors"]) == 0
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
    with monkeypatch.context() as launch:
        for name, value in {**ranks, **where, "TORCHELASTIC_RUN_ID": "one", "PTSAVE_TIMEOUT": 60}.items():
            launch.setenv(name, str(value))
        assert main.run(["save", "dp.toml", "ckpt", "--weights", "m.safetensors"]) == 0
    assert not torch.distributed.is_initialized()
    assert sorted(os.listdir("ckpt")) == [".metadata", "__0_0.distcp", "ptsave.json"]
    assert_made_of(Path("ckpt"), Path("m.safetensors"))
    assert main.run(["verify", "ckpt", "-c", "plain.toml"]) == 0
    assert main.run(["convert", "ckpt", "back.safetensors"]) == 0
    assert main.run(["inspect", "back.safetensors", "--diff", "m.safetensors"]) == 0
    del sys.modules["odd"]


@pytest.mark.slow
def test_a_folder_of_two_ranks_is_the_file_it_was_made_of(studio: Path) -> None:
    """One process takes it for its own save."""
    save(studio, 2, "dp.toml", "ckpt", "--weights", "m.safetensors")
    assert sorted(path.name for path in (studio / "ckpt").iterdir()) == [
        ".metadata",
        "__0_0.distcp",
        "__1_0.distcp",
        "ptsave.json",
    ]
    assert_made_of(studio / "ckpt", studio / "m.safetensors")
    ptsave(studio, "verify", "ckpt", "-c", "plain.toml")
    ptsave(studio, "convert", "ckpt", "back.safetensors")
    ptsave(studio, "inspect", "back.safetensors", "--diff", "m.safetensors")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_reads_it_without_ptsave(studio: Path) -> None:
    save(studio, 2, "dp.toml", "ckpt", "--weights", "m.safetensors")
    want = digests(studio / "m.safetensors")
    with open_checkpoint(studio / "m.safetensors") as checkpoint:
        state = {
            name: torch.zeros(entry.shape, dtype=getattr(torch, entry.dtype.name))
            for name, entry in checkpoint.tensors.items()
        }
    load(state, storage_reader=FileSystemReader(studio / "ckpt"), no_dist=True)
    assert {name: digest_of(tensor) for name, tensor in state.items()} == want


@pytest.mark.slow
def test_any_layout_to_any_layout(studio: Path) -> None:
    """Saved on one mesh and saved again from another: the tensors stay what they are."""
    want = digests(studio / "m.safetensors")
    source = "m.safetensors"
    for ranks, config in (
        (4, "grid.toml"),
        (3, "dp.toml"),
        (2, "tp2.toml"),
        (1, "dp.toml"),
        (4, "hybrid.toml"),
    ):
        if source == "ckpt":  # an input is never written over
            (studio / "ckpt").rename(studio / "before")
            source = "before"
        save(studio, ranks, config, "ckpt", "--weights", source)
        shutil.rmtree(studio / "before", ignore_errors=True)
        source = "ckpt"
        assert digests(studio / "ckpt") == want
        names = {path.name for path in (studio / "ckpt").iterdir()}
        files = {name for name in names if name.endswith(".distcp")}
        assert names == {".metadata", "ptsave.json", *files}
        ptsave(studio, "verify", "ckpt", "-c", "plain.toml")
    cases = [{"path": "ckpt", "config": name} for name in ("dp.toml", "tp2.toml", "plain.toml")]
    (reference,) = run_cases(1, studio, [{"path": "m.safetensors", "config": "plain.toml"}])
    for found in run_cases(2, studio, cases):
        assert found["digests"] == reference["digests"]


@pytest.mark.slow
def test_fresh_weights_are_those_of_one_process(studio: Path) -> None:
    ptsave(studio, "save", "plain.toml", "one.safetensors", "--seed", "7")
    save(studio, 2, "dp.toml", "ckpt", "--seed", "7", "--no-record", "--no-check")
    assert digests(studio / "ckpt") == digests(studio / "one.safetensors")
    assert not (studio / "ckpt" / "ptsave.json").exists()


@pytest.mark.slow
def test_nothing_is_replaced_unless_asked(studio: Path) -> None:
    save(studio, 2, "dp.toml", "ckpt", "--weights", "m.safetensors")
    before = {path.name: path.read_bytes() for path in (studio / "ckpt").iterdir()}
    done = torchrun(2, "save", "dp.toml", "ckpt", "--weights", "m.safetensors", "--json", cwd=studio)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == 4
    assert len(errors(done.stderr)) <= 1
    assert {path.name: path.read_bytes() for path in (studio / "ckpt").iterdir()} == before
    done = torchrun(2, "save", "dp.toml", "x.safetensors", "--format", "safetensors", cwd=studio)
    (line,) = errors(done.stderr)
    assert "ranks write dcp together, not safetensors" in line

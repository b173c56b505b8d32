"""What a command reads it never writes over, however the destination is spelled."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ptsave.cli import main

Run = Callable[..., tuple[int, str]]
SIMPLE = Path(__file__).parents[1] / "configs" / "simple_net.toml"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in several formats, inputs for it, and a run."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "simple.toml").write_text(SIMPLE.read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in (
            "save simple.toml net.pt",
            "convert net.pt net.safetensors",
            "convert net.pt sharded --format safetensors-sharded --shard-size 10KB",
            "convert net.pt dcp --format dcp",
        ):
            assert main.run([*words.split(), "-q"]) == 0
    np.savez(folder / "x.npz", x=np.zeros((4, 10), "float32"))
    (folder / "run").mkdir()
    torch.save({"step": 1, "model_state_dict": {"w": torch.ones(2)}}, folder / "run/step-000000001.pt")
    return folder


@pytest.fixture
def run(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """Run the command line beside copies of these; its exit code and stderr."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")

    def call(line: str) -> tuple[int, str]:
        capfd.readouterr()
        code = main.run(line.split())
        return code, capfd.readouterr().err

    return call


def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}


LINKS = {
    "link.json": "sharded/model.safetensors.index.json",
    "other.json": "net.pt",
    "weights.json": "dcp/.metadata",
    "step.json": "run/step-000000001.pt",
    "config.json": "simple.toml",
    "y.npz": "x.npz",
    "z.npz": "net.pt",
    "w.pt": "net.pt",
    "t.pt": "simple.toml",
}


@pytest.mark.parametrize(
    "line",
    [
        "verify sharded --report sharded/model.safetensors.index.json",
        "verify sharded --report link.json",
        "verify net.safetensors --against net.pt --report other.json",
        "verify net.safetensors --against sharded --report link.json",
        "verify dcp --report dcp/ptsave.json",
        "verify dcp --report weights.json",
        "verify run --report step.json",
        "verify net.pt -c simple.toml --report config.json",
        "load net.pt -c simple.toml --inputs x.npz --outputs x.npz --overwrite",
        "load net.pt -c simple.toml --inputs x.npz --outputs y.npz --overwrite",
        "load net.pt -c simple.toml --outputs z.npz --overwrite",
        "load net.safetensors -c simple.toml --outputs net.safetensors --overwrite",
        "convert net.pt ./net.pt --overwrite",
        "convert net.safetensors net.pt w.pt --overwrite --only nothing*",
        "convert net.pt w.pt --overwrite",
        "convert sharded sharded/model-00001-of-00001.safetensors --overwrite",
        "convert sharded/model-00001-of-00001.safetensors sharded --format dcp --overwrite",
        "convert dcp dcp --format safetensors-sharded --overwrite",
        "convert sharded sharded/new.pt",
        "save simple.toml net.pt --weights net.pt --overwrite",
        "save simple.toml w.pt --weights net.pt --overwrite",
        "save simple.toml t.pt --overwrite",
    ],
)
def test_no_output_replaces_an_input(run: Run, line: str) -> None:
    for name, target in LINKS.items():
        if name in line:
            (os.link if name < "s" else os.symlink)(target, name)
    before = contents()
    code, err = run(line)
    assert code in (2, 4), err
    assert contents() == before


def test_what_was_not_read_is_replaced(run: Run) -> None:
    Path("old.json").write_text("{}")
    assert run("verify sharded --report old.json")[0] == 0
    assert json.loads(Path("old.json").read_text())["verdict"] == "yes"
    assert run("verify sharded --report old.json")[0] == 0
    assert run("save simple.toml net.pt --overwrite --seed 3")[0] == 0
    assert run("convert net.pt dcp --format dcp --overwrite")[0] == 0
    assert run("verify net.pt -c simple.toml --record")[0] == 0
    assert run("verify dcp -c simple.toml --record --checks keys")[0] == 0


def test_a_file_that_a_config_names_as_input_stays(run: Run) -> None:
    text = Path("simple.toml").read_text()
    Path("simple.toml").write_text(text.partition("[inputs.x]")[0] + '[inputs]\nfile = "x.npz"\n')
    before = contents()
    code, err = run("load net.pt -c simple.toml --outputs x.npz --overwrite")
    assert code == 4, err
    assert contents() == before


@pytest.mark.parametrize("format", ["safetensors-sharded", "dcp"])
def test_overwriting_a_folder_removes_what_its_layout_names_alone(run: Run, format: str) -> None:
    """An old index may name any file, and decides nothing."""
    folder = Path("victim")
    folder.mkdir()
    Path("outside").mkdir()
    for path in ("outside/precious.safetensors", "victim/precious.txt", "victim/notes.distcp", "precious.pt"):
        Path(path).write_text("precious")
    os.symlink("../precious.pt", folder / "linked.safetensors")
    save_file({"a": torch.ones(1)}, folder / "model-00001-of-00001.safetensors")
    names = [
        "model-00001-of-00001.safetensors",
        "precious.txt",
        "notes.distcp",
        "linked.safetensors",
        "../precious.pt",
        "../outside/precious.safetensors",
        str(Path("precious.pt").resolve()),
    ]
    index = {"metadata": {}, "weight_map": {f"t{i}": name for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    code, err = run(f"convert net.pt victim --format {format} --overwrite")
    assert code == 0, err
    left = sorted(os.listdir(folder))
    assert "model-00001-of-00001.safetensors" not in left
    assert {"linked.safetensors", "notes.distcp", "precious.txt"} <= set(left)
    for path in ("outside/precious.safetensors", "victim/precious.txt", "victim/notes.distcp", "precious.pt"):
        assert Path(path).read_text() == "precious"

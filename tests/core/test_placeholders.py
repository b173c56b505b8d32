"""Empty tensors that ZeRO-3 leaves where weights were, with the weights' shapes beside them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import ptsave
from ptsave.cli import run as run_cli
from ptsave.errors import LossyError


def deepspeed(model: nn.Module, *, is_split: bool) -> dict[str, object]:
    """The model's file of a ZeRO-3 (`is_split`) or a ZeRO-1 checkpoint, in DeepSpeed's layout."""
    shapes = OrderedDict((name, parameter.shape) for name, parameter in model.named_parameters())
    state = model.state_dict()
    if is_split:
        for name in shapes:
            state[name] = torch.empty(0)
    return {"module": state, "buffer_names": ["1.running_mean"], "param_shapes": [shapes], "dp_world_size": 2}


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def test_placeholders_are_named_and_refused(
    tmp_path: Path, model: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model_states.pt"
    torch.save(deepspeed(model, is_split=True), path)
    assert run_cli(["verify", str(path)]) == 1
    shown = capsys.readouterr().out
    assert "has the shape [0], and the file says that it has [3, 4]" in shown
    assert shown.count("the weight is in another file") == 4
    for more in ([], ["--select", "module"], ["--select", "model"]):
        assert run_cli(["convert", str(path), str(tmp_path / "out.pt"), *more]) == 4
        assert "and 3 more" in capsys.readouterr().err
    assert not (tmp_path / "out.pt").exists()
    with ptsave.open(path) as checkpoint, pytest.raises(LossyError, match="the weights are in other files"):
        checkpoint.state_dict()
    with pytest.raises(LossyError, match="the weights are in other files"):
        ptsave.read_training(path)
    with pytest.raises(LossyError):
        ptsave.load(path, model)


def test_what_is_dropped_is_no_loss(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "model_states.pt"
    torch.save(deepspeed(model, is_split=True), path)
    drop = [flag for name in ("*.weight", "*.bias") for flag in ("--drop", name)]
    assert run_cli(["convert", str(path), str(tmp_path / "out.pt"), "--select", "module", *drop]) == 0


def test_weights_that_are_there_are_taken(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "model_states.pt"
    torch.save(deepspeed(model, is_split=False), path)
    assert run_cli(["verify", str(path)]) == 0
    assert run_cli(["convert", str(path), str(tmp_path / "out.pt")]) == 0
    ptsave.load(path, model)

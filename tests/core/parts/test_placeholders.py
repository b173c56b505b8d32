"""Empty tensors that ZeRO-3 leaves where weights were, with the weights' shapes beside them."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ptsave
from ptsave.cli.main import run as run_cli
from ptsave.errors import LossyError


def deepspeed(model: nn.Module, *, is_split: bool, persistent: tuple[str, ...] = ()) -> dict[str, Any]:
    """The model's file of a ZeRO-3 (`is_split`) or a ZeRO-1 checkpoint, in DeepSpeed's layout.

    `persistent`: parameters that are too small to be split, and stay whole on every rank.

    Source: a file that DeepSpeed 0.19.8 wrote; deepspeed/runtime/engine.py (`_common_checkpoint_state`,
    `_save_checkpoint`, `_get_zero_param_shapes`, `_get_zero_frozen_param_attributes`), and
    deepspeed/runtime/zero/partition_parameters.py (`free_param`), which makes `torch.empty(0)`.
    """
    named = dict(model.named_parameters())
    groups = [OrderedDict((name, p.shape) for name, p in named.items() if p.requires_grad)]
    frozen = {name: parameter for name, parameter in named.items() if not parameter.requires_grad}
    state = model.state_dict()
    if is_split:
        for name in named.keys() - set(persistent):
            state[name] = torch.empty(0, dtype=named[name].dtype)
    return {
        "module": state,
        "buffer_names": [name for name, _ in model.named_buffers()],
        "optimizer": None,
        "param_shapes": groups,
        "frozen_param_shapes": OrderedDict((name, p.shape) for name, p in frozen.items()),
        "shared_params": {},
        "frozen_param_fragments": OrderedDict(  # one of two ranks' halves
            (name, p.detach().flatten()[: -(-p.numel() // 2)].clone() if is_split else p.detach().clone())
            for name, p in frozen.items()
        ),
        "lr_scheduler": None,
        "data_sampler": None,
        "random_ltd": None,
        "skipped_steps": 0,
        "global_steps": 3,
        "global_samples": 24,
        "dp_world_size": 2,
        "mp_world_size": 1,
        "checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 1},
        "ds_config": {"train_batch_size": 8, "zero_optimization": {"stage": 3 if is_split else 2}},
        "ds_version": "0.19.8",
        "epoch": 1,  # of the caller
    }


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
    assert "failed whole" in shown
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


def test_what_is_frozen_or_small_is_split_like_the_rest_or_whole(
    tmp_path: Path, model: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each rank's file has a half of what is frozen; what is small is whole beside what stands in."""
    model[0].weight.requires_grad_(False)
    path = tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    torch.save(deepspeed(model, is_split=True, persistent=("0.bias", "1.weight", "1.bias")), path)
    assert run_cli(["verify", str(path), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    named = {f["where"]: f["check"] for f in findings if f["level"] == "fail"}
    assert named == {"module.0.weight": "whole", "frozen_param_fragments.0.weight": "whole"}
    for select in ([], ["--select", "model"], ["--select", "module"]):
        assert run_cli(["convert", str(path), str(tmp_path / "out.pt"), *select]) == 4
        assert "the weights are in other files" in capsys.readouterr().err
    with pytest.raises(LossyError, match="the weights are in other files"):
        ptsave.load(path, model)
    torch.save(deepspeed(model, is_split=False), path)
    assert run_cli(["verify", str(path)]) == 0
    with pytest.warns(UserWarning, match="not 'frozen_param_fragments'"):
        ptsave.load(path, model)
    assert ptsave.read_training(path)["step"] == 3

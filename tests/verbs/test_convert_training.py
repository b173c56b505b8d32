"""Training states through `convert`: the next step is bitwise the one that was never interrupted."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from ptsave.cli import main
from tests.formats.write_cases import assert_same

Params = list[dict[str, Any]]
OPTIMIZERS: dict[str, Callable[[Params], torch.optim.Optimizer]] = {
    "adam": lambda params: torch.optim.Adam(params, lr=0.01, betas=(0.8, 0.99)),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "amsgrad": lambda params: torch.optim.AdamW(params, lr=0.01, amsgrad=True, weight_decay=0.1),
    "tensor-lr": lambda params: torch.optim.SGD(params, lr=torch.tensor(0.01), momentum=0.9),
}


class Net(nn.Module):
    """One parameter is frozen and one is never used: neither has an optimizer state."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.fc2 = nn.Linear(8, 3)
        self.unused = nn.Parameter(torch.ones(2))
        self.fc1.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc2(torch.relu(self.norm(self.fc1(x))))
        return y


def training(optimizer: str, seed: int) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    net = Net()
    groups: Params = [
        {"params": [*net.fc1.parameters(), net.unused]},
        {"params": [*net.norm.parameters(), *net.fc2.parameters()], "weight_decay": 0.0},
    ]
    return net, OPTIMIZERS[optimizer](groups)


def step(net: Net, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    loss = net(torch.randn(5, 6, generator=generator)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def trained(optimizer: str) -> tuple[Net, torch.optim.Optimizer, dict[str, Any]]:
    net, opt = training(optimizer, seed=0)
    for i in range(3):
        step(net, opt, i)
    state = {
        "epoch": 3,
        "model_state_dict": net.state_dict(),
        "optimizer_state_dict": opt.state_dict(),
        "loss": 0.5,
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
    }
    return net, opt, state


def assert_same_tree(found: Any, expected: Any, path: str = "") -> None:
    """Equal types, keys in the same order, and bits."""
    if isinstance(expected, torch.Tensor):
        assert_same(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected), path
        for key, value in expected.items():
            assert_same_tree(found[key], value, f"{path}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected), path
        assert len(found) == len(expected), path
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_same_tree(a, b, f"{path}.{i}")
    else:
        assert type(found) is type(expected), path
        assert found == expected, path


def assert_goes_on(found: dict[str, Any], optimizer: str, net: Net, opt: torch.optim.Optimizer) -> None:
    """A fresh training that loads `found` makes the very steps that `net` and `opt` make."""
    other, other_opt = training(optimizer, seed=1)
    other.load_state_dict(found["model_state_dict"])
    other_opt.load_state_dict(found["optimizer_state_dict"])
    for i in range(10, 12):
        step(net, opt, i)
        step(other, other_opt, i)
        assert_same_tree(other.state_dict(), net.state_dict())
        assert_same_tree(other_opt.state_dict(), opt.state_dict())


def convert(*words: object) -> None:
    assert main.run(["convert", *map(str, words), "-q"]) == 0


def quietly(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: saving and loading from a single process
        return call(*arguments, **named)


@pytest.mark.parametrize(
    "way", [["pt"], ["dcp", "pt"], ["dcp", "dcp", "pt"], ["pt", "dcp", "pt"]], ids="-".join
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_next_step_is_bitwise_the_same(optimizer: str, way: list[str], tmp_path: Path) -> None:
    net, opt, state = trained(optimizer)
    path = tmp_path / "start.pt"
    torch.save(state, path)
    for i, target in enumerate(way):
        convert(path, tmp_path / f"{i}.{target}", "--format", target)
        path = tmp_path / f"{i}.{target}"
    found = torch.load(path, weights_only=True)
    assert found["epoch"] == 3
    assert found["device"] == torch.device("cpu")
    assert found["dtype"] is torch.bfloat16
    assert_same_tree(found["optimizer_state_dict"], state["optimizer_state_dict"])
    assert_goes_on(found, optimizer, net, opt)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_dcp_itself_loads_the_training(optimizer: str, tmp_path: Path) -> None:
    """`dcp.load` in place, into a training that has made a step of its own."""
    net, opt, state = trained(optimizer)
    torch.save(state, tmp_path / "start.pt")
    convert(tmp_path / "start.pt", tmp_path / "folder", "--format", "dcp")
    other, other_opt = training(optimizer, seed=1)
    step(other, other_opt, 0)
    found = {
        "epoch": 0,
        "model_state_dict": other.state_dict(),
        "optimizer_state_dict": other_opt.state_dict(),
    }
    quietly(dcp.load, found, checkpoint_id=tmp_path / "folder")
    assert found["epoch"] == 3
    assert_goes_on(found, optimizer, net, opt)


def test_torch_s_own_conversion_of_our_folder(tmp_path: Path) -> None:
    """`dcp_to_torch_save` reads it; that the optimizer's numbers become text is torch's doing."""
    _, _, state = trained("adam")
    torch.save(state, tmp_path / "start.pt")
    convert(tmp_path / "start.pt", tmp_path / "folder", "--format", "dcp")
    quietly(dcp_to_torch_save, tmp_path / "folder", tmp_path / "torch.pt")
    found = torch.load(tmp_path / "torch.pt", weights_only=True)
    assert_same_tree(dict(found["model_state_dict"]), dict(state["model_state_dict"]))
    moments = found["optimizer_state_dict"]["state"]
    for number, expected in state["optimizer_state_dict"]["state"].items():
        assert_same(moments[str(number)]["exp_avg"], expected["exp_avg"])
    convert(tmp_path / "torch.pt", tmp_path / "again", "--format", "dcp")
    convert(tmp_path / "folder", tmp_path / "ours.pt")
    ours = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert_same_tree(ours["optimizer_state_dict"], state["optimizer_state_dict"])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_folder_that_torch_saved_by_qualified_names(optimizer: str, tmp_path: Path) -> None:
    """What FSDP trainings save (`get_state_dict`): dcp → pt → dcp, loaded and set by torch."""
    net, opt, _ = trained(optimizer)
    model_state, optimizer_state = quietly(get_state_dict, net, opt)
    saved = {"model": model_state, "optim": optimizer_state}
    quietly(dcp.save, saved, checkpoint_id=tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "one.pt")
    convert(tmp_path / "one.pt", tmp_path / "ours", "--format", "dcp")
    other, other_opt = training(optimizer, seed=1)
    step(other, other_opt, 0)  # else torch makes a state for the parameter that has none
    model_state, optimizer_state = quietly(get_state_dict, other, other_opt)
    found = {"model": model_state, "optim": optimizer_state}
    quietly(dcp.load, found, checkpoint_id=tmp_path / "ours")
    quietly(
        set_state_dict,
        other,
        other_opt,
        model_state_dict=found["model"],
        optim_state_dict=found["optim"],
        options=StateDictOptions(strict=False),  # a parameter has no state
    )
    for i in range(10, 12):
        step(net, opt, i)
        step(other, other_opt, i)
        assert_same_tree(other.state_dict(), net.state_dict())


def test_what_safetensors_keeps_of_a_training(tmp_path: Path) -> None:
    """The optimizer's tensors under their paths, the rest as JSON; refused when nothing is said."""
    _, _, state = trained("adam")
    torch.save(state, tmp_path / "start.pt")
    out = tmp_path / "kept.safetensors"
    assert main.run(["convert", str(tmp_path / "start.pt"), str(out), "-q"]) == 4
    assert not out.exists()
    convert(tmp_path / "start.pt", out, "--extras", "keep")
    with safe_open(out, "pt") as file:
        moments = state["optimizer_state_dict"]["state"][0]
        assert_same(file.get_tensor("optimizer_state_dict.state.0.exp_avg"), moments["exp_avg"])
        extras = json.loads(file.metadata()["ptsave"])["extras"]
    assert extras["epoch"] == 3
    assert extras["optimizer_state_dict.param_groups.1.weight_decay"] == 0.0
    assert extras["optimizer_state_dict.param_groups.0.betas"] == [0.8, 0.99]
    assert extras["dtype"] == "torch.bfloat16"

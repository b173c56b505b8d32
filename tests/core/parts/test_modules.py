"""Which elements are parameters, which are trained, and which are buffers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ptsave.cli import main
from ptsave.core.parts.modules import ModuleNode
from ptsave.formats import open_checkpoint
from ptsave.verbs.inspect import inspect


@pytest.fixture
def net() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2, bias=False))
    net[2].weight = nn.Parameter(torch.randn(2, 8))
    net[0].requires_grad_(False)
    net[1].register_buffer("scale", torch.ones(3))
    return net


def counted(value: object, path: Path) -> ModuleNode:
    torch.save(value, path)
    with open_checkpoint(path) as checkpoint:
        return inspect(checkpoint).parameters


def test_a_module_says_what_its_tensors_are(net: nn.Module, tmp_path: Path) -> None:
    root = counted(net, tmp_path / "net.pt")
    assert root.num_parameters == sum(p.numel() for p in net.parameters())
    assert root.num_trainable == sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert root.num_elements - root.num_parameters == sum(b.numel() for b in net.buffers())


def test_of_a_state_dict_names_and_dtypes_tell(net: nn.Module, tmp_path: Path) -> None:
    root = counted(net.state_dict(), tmp_path / "net.pt")
    assert root.num_trainable == 0
    assert root.num_elements - root.num_parameters == 8 + 8 + 1  # not `scale`, which could be a parameter
    assert root.children["1"].num_parameters == 8 + 8 + 3


def test_tied_parameters_count_once(tmp_path: Path) -> None:
    weight = torch.randn(5, 3)
    root = counted(
        {"embed.weight": weight, "head.weight": weight, "head.bias": torch.randn(5)}, tmp_path / "a.pt"
    )
    assert root.num_parameters == 15 + 5
    assert root.children["head"].num_parameters == 5


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_what_an_optimizer_keeps_is_no_parameter(
    optimizer: type[torch.optim.Optimizer], net: nn.Module, tmp_path: Path
) -> None:
    made = optimizer([p for p in net.parameters() if p.requires_grad], lr=0.1)
    net(torch.randn(6, 4)).sum().backward()
    made.step()
    alone = counted(net.state_dict(), tmp_path / "net.pt")
    both = counted({"model": net.state_dict(), "optimizer": made.state_dict()}, tmp_path / "both.pt")
    assert both.num_parameters == alone.num_parameters
    assert counted(made.state_dict(), tmp_path / "optimizer.pt").num_parameters == 0


def test_params_prints_them(net: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.pt"
    torch.save(net, path)
    for flags in (["--params"], ["-v"]):
        assert main.run(["inspect", str(path), *flags]) == 0
        lines = [" ".join(line.split()) for line in capfd.readouterr().out.splitlines()]
        assert "module parameters buffers trainable" in lines
        assert "├─ 1 16 22.2% 20 16" in lines
    for flags in (["--params", "--tree"], ["--params", "--stats"], ["--params", "--diff", str(path)]):
        assert main.run(["inspect", str(path), *flags]) == 2
        assert "would not be used" in capfd.readouterr().err

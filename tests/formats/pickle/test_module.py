"""Whole modules (`torch.save(model)`), checked against `model.state_dict()`, with classes and without."""

from __future__ import annotations

import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ptsave.formats import open_checkpoint
from tests.formats.torch_reading import assert_holds

pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")

SOURCE = """
import torch
class Block(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.linear = torch.nn.Linear(size, size)
        self.norm = torch.nn.BatchNorm1d(size)
        self.register_buffer("table", torch.arange(float(size)))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.register_buffer("absent", None)
        self.register_parameter("none", None)
        self.cache = torch.ones(5)
        self.size = size
        self.names = ["a", "b"]
        self.kind = torch.float16
        self.yaml = {"layers": [[-1, 1, "Conv", [64, 3]]], "names": {i: str(i) for i in range(80)}}
        self.mixed = {"a": [1, torch.ones(1)]}
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.own = torch.nn.Parameter(torch.ones(3))
        self.blocks = torch.nn.ModuleList([Block(2), Block(3)])
        self.shared = self.blocks[0]
        self.empty = None
        self.head = torch.nn.Linear(3, 4, bias=False)
        self.tail = torch.nn.Linear(3, 4, bias=False)
        self.tail.weight = self.head.weight
        self.by_name = torch.nn.ModuleDict({"x": torch.nn.Conv2d(1, 2, 3)})
        self.activation = torch.nn.functional.relu
        self.extra = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(2))])
"""


@pytest.fixture
def net() -> Iterator[Any]:
    """A model whose classes live in a module that goes away after the test has saved it."""
    module = types.ModuleType("vanishing")
    sys.modules["vanishing"] = module
    exec(SOURCE, module.__dict__)
    yield module.Net()
    sys.modules.pop("vanishing", None)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_the_state_dict(net: Any, new: bool, protocol: int, tmp_path: Path) -> None:
    torch.save(net, tmp_path / "m.pt", _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    del sys.modules["vanishing"]
    with open_checkpoint(tmp_path / "m.pt") as checkpoint:
        assert_holds(checkpoint, net.state_dict())
        data = checkpoint.data
        assert data["value"].name == "vanishing.Net"
        assert data["blocks.1"].name == "vanishing.Block"
        assert data["blocks.1.size"] == 3
        assert data["blocks.1.names"] == ["a", "b"]
        assert str(data["blocks.1.kind"].name) == "float16"
        assert data["blocks.1.yaml.layers.0.3"] == [64, 3]
        assert data["blocks.1.yaml.names.79"] == "79"
        assert data["training"] is True
        assert not any("_hooks" in name or "cache" in name or "mixed" in name for name in data)
        assert checkpoint.globals["vanishing.Net"].used_for == "built"
        assert "torch.nn.functional.relu" in checkpoint.globals


def test_inside_dictionaries(net: Any, tmp_path: Path) -> None:
    """As YOLO's checkpoints hold a model, its average and the optimizer."""
    torch.save({"epoch": 4, "model": net, "ema": net.head, "updates": [net.blocks[1]]}, tmp_path / "m.pt")
    expected = {
        "model": net.state_dict(),
        "ema": net.head.state_dict(),
        "updates": [net.blocks[1].state_dict()],
    }
    with open_checkpoint(tmp_path / "m.pt") as checkpoint:
        assert_holds(checkpoint, expected)
        assert checkpoint.data["epoch"] == 4


def test_wrappers(net: Any, tmp_path: Path) -> None:
    wrapped = torch.nn.DataParallel(net)
    torch.save(wrapped, tmp_path / "m.pt")
    with open_checkpoint(tmp_path / "m.pt") as checkpoint:
        assert_holds(checkpoint, wrapped.state_dict())
        assert next(iter(checkpoint.tensors)).startswith("module.")


def test_modules_of_old_versions(net: Any, tmp_path: Path) -> None:
    """Without the attributes that later versions of torch added."""
    for module in net.modules():
        for name in list(module.__dict__):
            if name.startswith("_") and name not in ("_parameters", "_buffers", "_modules"):
                del module.__dict__[name]
    torch.save(net, tmp_path / "m.pt")
    expected = list(torch.load(tmp_path / "m.pt", weights_only=False).state_dict())
    with open_checkpoint(tmp_path / "m.pt") as checkpoint:
        assert list(checkpoint.tensors) == expected
        assert "blocks.0.scratch" in checkpoint.tensors


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm(tmp_path: Path) -> None:
    model = torch.nn.utils.weight_norm(torch.nn.Linear(2, 3))
    torch.save(model, tmp_path / "m.pt")
    with open_checkpoint(tmp_path / "m.pt") as checkpoint:
        assert_holds(checkpoint, model.state_dict())


@pytest.mark.parametrize(
    "model",
    [
        torch.nn.TransformerEncoderLayer(8, 2, 16),
        torch.nn.LSTM(3, 4, 2),
        torch.nn.MultiheadAttention(8, 2),
        torch.nn.Embedding(5, 3, padding_idx=0),
    ],
    ids=lambda model: type(model).__name__,
)
def test_modules_of_torch(model: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(model, tmp_path / "m.pt")
    with open_checkpoint(tmp_path / "m.pt") as checkpoint:
        assert_holds(checkpoint, model.state_dict())


def test_an_ordered_dict_is_no_module(tmp_path: Path) -> None:
    tree = OrderedDict(_parameters={}, _buffers={}, _modules={"a": torch.ones(1)})
    torch.save(tree, tmp_path / "m.pt")
    with open_checkpoint(tmp_path / "m.pt") as checkpoint:
        assert list(checkpoint.tensors) == ["_modules.a"]

"""Folders that plain torch.distributed.checkpoint wrote, and models that are awkward to build or to shard."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptsave.formats import open_checkpoint
from ptsave.storage.scan import tensor_digest
from tests.distributed.launch import ptsave, run_cases, torchrun
from tests.distributed.models import write_models

pytestmark = pytest.mark.slow

PLAIN = """
import os, torch, warnings
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from odd import Odd

warnings.simplefilter("ignore")
dist.init_process_group("gloo")
torch.manual_seed(3)
model = Odd()
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
model.tiny = None
for block in model.blocks:
    block.gain = torch.nn.Parameter(torch.ones(1))
    fully_shard(block, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters())
model.eval()
for parameter in model.parameters():
    parameter.grad = torch.ones_like(parameter)
optimizer.step()
weights, moments = get_state_dict(model, optimizer)
dcp.save({"model": weights, "optim": moments, "epoch": 3}, checkpoint_id="plain")
dist.destroy_process_group()
os._exit(0)
"""

AWKWARD = '''
import torch
from torch import nn


class Computes(nn.Module):
    """Its constructor computes with its weights: it cannot be built without them."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(7, 5)
        self.register_buffer("inverse", torch.linalg.pinv(self.a.weight.detach()))
        self.scale = self.a.weight.detach().sum().item()

    def forward(self, x):
        return self.a(x)


class Extra(nn.Module):
    """It keeps more than tensors in its state dict."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.n = 3

    def get_extra_state(self):
        return {"n": self.n, "t": torch.arange(3)}

    def set_extra_state(self, state):
        self.n = state["n"]

    def forward(self, x):
        return self.a(x) * self.n


class Mixed(nn.Module):
    """Types that not every collective has, no elements at all, and more than one floating-point type."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4).to(torch.bfloat16)
        self.i = nn.Parameter(torch.arange(6), requires_grad=False)
        self.register_buffer("f", torch.randn(5).to(torch.float8_e4m3fn))
        self.register_buffer("s", torch.arange(3, dtype=torch.int16))
        self.z = nn.Parameter(torch.zeros(0, 3))
        self.c = nn.Parameter(torch.randn(3, dtype=torch.complex64))

    def forward(self, x):
        return self.a(x)


class Laid(nn.Module):
    """Parameters in another memory format, and one that the model and a submodule hand out as it is."""

    def __init__(self):
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.conv = nn.Conv2d(3, 5, 2).to(memory_format=torch.channels_last)
        self.turned = nn.Parameter(torch.randn(3, 4).t())

    def forward(self, x):
        return self.a(x) * self.conv.weight.sum(), self.turned
'''
INPUTS = {"Computes": 7, "Extra": 4, "Mixed": 4, "Laid": 4}


def digests(path: Path, prefix: str = "") -> dict[str, str]:
    with open_checkpoint(path) as checkpoint:
        named = checkpoint.tensors.items()
        return {n.removeprefix(prefix): tensor_digest(e) for n, e in named if n.startswith(prefix)}


def test_a_training_that_torch_saved_from_two_ranks(tmp_path: Path) -> None:
    write_models(tmp_path)
    (tmp_path / "odd.py").write_text(
        (tmp_path / "odd.py")
        .read_text()
        .replace("torch.tensor(0.5)", "torch.ones(1)")
        .replace("* self.tiny", "")
        .replace("self.tiny = nn.Parameter(torch.ones(1))", "self.tiny = None")
    )
    (tmp_path / "plain_save.py").write_text(PLAIN)
    done = torchrun(2, cwd=tmp_path, module="plain_save")
    assert done.returncode == 0, done.stderr
    want = digests(tmp_path / "plain", "model.")
    assert len(want) > 20
    (found,) = run_cases(3, tmp_path, [{"path": "plain", "config": "dp.toml"}])
    assert {name: found["digests"][name] for name in want} == want
    ptsave(tmp_path, "convert", "plain", "one.safetensors", "--select", "model")
    assert digests(tmp_path / "one.safetensors") == want


def test_awkward_models(tmp_path: Path) -> None:
    """Loaded over two ranks as by one, and saved by two as they are."""
    (tmp_path / "awkward.py").write_text(AWKWARD)
    for name, width in INPUTS.items():
        text = f'[model]\nclass = "awkward.{name}"\n[inputs.x]\nshape = [2, {width}]\ndtype = "float32"\n'
        (tmp_path / f"{name}.toml").write_text(text)
        ptsave(tmp_path, "save", f"{name}.toml", f"{name}.pt")
    cases = [{"path": f"{name}.pt", "config": f"{name}.toml"} for name in INPUTS]
    spread = run_cases(2, tmp_path, cases)
    for one, two in zip(run_cases(1, tmp_path, cases), spread, strict=True):
        assert "error" not in two, two
        assert (one["digests"], one.get("digest")) == (two["digests"], two.get("digest"))
        assert max(two["bytes"]) < sum(one["bytes"])
    replicated = [case | {"set": ["parallel.mesh={ddp=2}"]} for case in cases]
    for one, two in zip(run_cases(2, tmp_path, replicated), spread, strict=True):
        assert one.get("digest") == two["digest"], one
    for name in INPUTS:
        done = torchrun(2, "save", f"{name}.toml", name, "--weights", f"{name}.pt", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr
        assert digests(tmp_path / name) == digests(tmp_path / f"{name}.pt")
        with open_checkpoint(tmp_path / name) as folder, open_checkpoint(tmp_path / f"{name}.pt") as file:
            assert folder.data == file.data

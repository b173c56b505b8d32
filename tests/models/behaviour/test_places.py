"""Where a difference begins: rounding excuses what it does at that place, and nothing else."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from ptsave.models.behaviour.trace import watch, watch_precisions, with_precisions
from ptsave.models.inputs import Arguments
from tests.workshop import Saved, Workshop

VISION = """
import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * 8
        weights = scores.softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, 4)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.pos = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.pos
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1)) * 1e-3
"""
CONFIG = '[model]\nclass = "nets.net.Vit"\n[inputs.x]\nshape = [2, 3, 32, 32]\n'


@pytest.fixture
def shop(workshop: Workshop, saved: Saved) -> Workshop:
    workshop.write_code(net=VISION)
    workshop.write_config(CONFIG)
    workshop.save_once(saved)
    return workshop


HIDDEN = {
    "half softmax": (
        "weights = scores.softmax(-1)",
        "weights = scores.half().softmax(-1).float()",
        "blocks.0.attn",
    ),
    "half softmax by dtype": (
        "weights = scores.softmax(-1)",
        "weights = scores.softmax(-1, dtype=torch.float16).to(x.dtype)",
        "blocks.0.attn",
    ),
    "bfloat16 products": (
        "scores = q @ k.transpose(-2, -1) * 8",
        "scores = (q.bfloat16() @ k.bfloat16().transpose(-2, -1)).float() * 8",
        "blocks.0.attn",
    ),
    "bfloat16 inside one linear layer": (
        "self.down(F.gelu(self.up(x)))",
        "F.linear(F.gelu(self.up(x)).bfloat16(), *(p.bfloat16() for p in self.down.parameters())).float()",
        "blocks.0.mlp",
    ),
    "autocast": (
        "return self.down(F.gelu(self.up(x)))",
        "with torch.autocast('cpu', torch.bfloat16):\n"
        "            return self.down(F.gelu(self.up(x))).float()",
        "blocks.0.mlp.up",
    ),
}


@pytest.mark.parametrize(
    "what",
    ["half softmax", *(pytest.param(w, marks=pytest.mark.slow) for w in HIDDEN if w != "half softmax")],
)
def test_coarser_numbers_inside_one_module(shop: Workshop, what: str) -> None:
    old, new, place = HIDDEN[what]
    shop.edit("net", old, new)
    outcome = shop.verify("net.safetensors", "--checks", "behaviour")
    assert not outcome.is_yes, outcome.document["findings"]
    assert outcome.first == [place]


@pytest.mark.slow
def test_a_model_that_always_computed_so_is_no_fault(workshop: Workshop) -> None:
    """Half precision inside when it was recorded, too: other kernels round it otherwise."""
    old, new, _ = HIDDEN["half softmax"]
    workshop.write_code(net=VISION.replace(old, new))
    workshop.write_config(CONFIG)
    workshop.save()
    assert workshop.verify().found("behaviour", "ok") == [("output", "bitwise equal")]
    torch._C._set_mkldnn_enabled(False)
    try:
        outcome = workshop.verify("net.safetensors", "--checks", "behaviour")
    finally:
        torch._C._set_mkldnn_enabled(True)
    assert outcome.is_yes, outcome.document["findings"]


ILL = """
import torch
from torch import nn


class Scale(nn.Module):
    def forward(self, x):
        return x * 1.7


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.fc = Scale(), nn.Linear(16, 16)

    def forward(self, x):
        y = self.fc(self.scale(x))
        return (y * 1e5).sin()
"""


def test_an_ill_conditioned_whole_excuses_no_module(workshop: Workshop) -> None:
    workshop.write_code(net=ILL)
    workshop.write_config('[model]\nclass = "nets.net.Net"\n[inputs.x]\nshape = [4, 16]\n')
    workshop.save()
    workshop.edit("net", "x * 1.7", "x * 1.70001")
    outcome = workshop.verify("net.safetensors", "--checks", "behaviour")
    assert not outcome.is_yes, outcome.document["findings"]
    assert outcome.first == ["scale"]


# --- the same environment -------------------------------------------------------------------------------


@pytest.mark.slow
def test_other_bits_in_the_same_environment_are_a_finding(shop: Workshop) -> None:
    shop.edit("net", "return self.down(F.gelu(self.up(x)))", "return (self.down(F.gelu(self.up(x))) * 3) / 3")
    outcome = shop.verify("net.safetensors", "--checks", "behaviour")
    assert outcome.is_yes
    (found,) = [f for f in outcome.found("behaviour", "warn") if "not bitwise equal" in f[1]]
    assert found[0] == "blocks.0.mlp"
    code, _, _ = shop.run("verify", "net.safetensors", "-c", "net.toml", "--checks", "behaviour", "--strict")
    assert code == 1


def test_strict_changes_nothing_where_all_is_equal(shop: Workshop) -> None:
    assert shop.run("verify", "net.safetensors", "-c", "net.toml", "--strict")[0] == 0


@pytest.mark.slow
def test_the_yes_says_what_of_the_environment_is_another(shop: Workshop) -> None:
    torch._C._set_mkldnn_enabled(False)
    try:
        outcome = shop.verify("net.safetensors", "--checks", "behaviour")
    finally:
        torch._C._set_mkldnn_enabled(True)
    assert outcome.is_yes
    ((_, message),) = outcome.found("behaviour", "ok")
    if message != "bitwise equal":
        assert "another environment: mkldnn True → False" in message
        assert "not bitwise equal, though" not in json.dumps(outcome.document)


# --- train mode -----------------------------------------------------------------------------------------


def test_train_mode_is_a_no_even_where_the_outputs_are_equal(shop: Workshop) -> None:
    start = "class Mlp(nn.Module):\n"
    shop.edit("net", start, f"{start}    def train(self, mode=True):\n        return self\n\n")
    outcome = shop.verify("net.safetensors", "--checks", "behaviour")
    assert not outcome.is_yes
    assert outcome.found("behaviour", "ok") == [("output", "bitwise equal")]
    assert outcome.cause == "left in train mode: blocks.0.mlp, blocks.1.mlp, blocks.2.mlp"


# --- a forward pass that raises -------------------------------------------------------------------------


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.fc = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        y: torch.Tensor = self.fc(x)
        return y


class Fallible(nn.Module):
    """Tries one way, and takes another where that raises."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.last = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            y: torch.Tensor = self.wide(x)
        except RuntimeError:
            y = self.narrow(x)
        return torch.tanh(self.last(y))


def test_a_failing_pass_leaves_the_buffers_as_they_were() -> None:
    model = Counting()
    with pytest.raises(Exception, match="forward pass failed"):
        watch(model, Arguments((torch.zeros(2, 5),)))
    assert float(model.calls) == 0
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_an_error_that_the_parent_catches_shifts_nothing() -> None:
    model, x = Fallible(), torch.randn(2, 3)
    seen = watch(model, Arguments((x,)))
    assert [call.module for call in seen.calls] == ["narrow", "last", ""]
    shapes = [[sample.shape for sample in call.inputs.values()] for call in seen.calls]
    assert shapes == [[(2, 3)]] * 3
    digests = [[sample.digest for sample in call.inputs.values()] for call in seen.calls]
    assert digests[0] == digests[2]
    assert digests[1] == [sample.digest for sample in seen.calls[0].outputs.values()]
    precise = watch_precisions(model, Arguments((x,)), seen)
    assert precise is not None
    assert [call.inside for call in with_precisions(seen.calls, precise)] == ["", "", ""]


# --- what no state dict knows ---------------------------------------------------------------------------

OUTSIDE = """
import numpy as np
import torch
from torch import nn

TABLE = torch.randn(4)
SHIFT = np.random.normal(size=4)
FACTORS = (float(np.random.normal()),)


class Global(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) + TABLE


class Array(Global):
    def forward(self, x):
        return self.fc(x) + torch.as_tensor(SHIFT, dtype=x.dtype)


class Attribute(Global):
    def __init__(self):
        super().__init__()
        self.scale = torch.randn(4)

    def forward(self, x):
        return self.fc(x) * self.scale


class Listed(Global):
    def __init__(self):
        super().__init__()
        self.scales = {"all": [torch.ones(4), torch.randn(4)]}

    def forward(self, x):
        return self.fc(x) * self.scales["all"][1]


class Number(Global):
    def __init__(self):
        super().__init__()
        self.scale = float(torch.rand(()))

    def forward(self, x):
        return self.fc(x) * self.scale


class GlobalNumber(Global):
    def forward(self, x):
        return self.fc(x) * FACTORS[0]


class Nothing(nn.Module):
    def forward(self, x):
        return x * 2
"""


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("Global", "nets.net.TABLE"),
        ("Array", "nets.net.SHIFT"),
        ("Attribute", "scale"),
        ("Listed", "scales.all.1"),
        ("Number", "scale"),
    ],
)
def test_what_is_drawn_anew_is_named(workshop: Workshop, kind: str, name: str) -> None:
    workshop.write_code(net=OUTSIDE)
    workshop.write_config(f'[model]\nclass = "nets.net.{kind}"\n[inputs.x]\nshape = [2, 4]\n')
    workshop.save()
    workshop.write_code(net=OUTSIDE)  # imported anew, as another process does
    outcome = workshop.verify("net.safetensors", "--checks", "behaviour")
    assert not outcome.is_yes
    assert (
        outcome.cause
        == f"recreated: {name} is outside the state dict, and not what it was (drawn at random?)"
    )


def test_a_number_that_is_drawn_at_import_is_named(workshop: Workshop) -> None:
    """Plain data that code uses is a part of the code."""
    workshop.write_code(net=OUTSIDE)
    workshop.write_config('[model]\nclass = "nets.net.GlobalNumber"\n[inputs.x]\nshape = [2, 4]\n')
    workshop.save()
    workshop.write_code(net=OUTSIDE)
    outcome = workshop.verify("net.safetensors", "--checks", "behaviour")
    assert not outcome.is_yes
    assert outcome.cause.startswith("class changed since save: nets.net.FACTORS differs")


@pytest.mark.parametrize("path", ["net.pt", "net.safetensors"])
def test_a_model_without_parameters_is_verified(workshop: Workshop, path: str) -> None:
    workshop.write_code(net=OUTSIDE)
    workshop.write_config('[model]\nclass = "nets.net.Nothing"\n[inputs.x]\nshape = [2, 4]\n')
    workshop.save(path)
    outcome = workshop.verify(path)
    assert outcome.is_yes, outcome.document
    assert outcome.found("behaviour", "ok") == [("output", "bitwise equal")]
    assert outcome.found("roundtrip", "ok")
    assert workshop.run("load", path, "-c", "net.toml")[0] == 0

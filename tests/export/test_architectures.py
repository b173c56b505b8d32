"""Architectures of many kinds: each is exported to both formats, compared with its model, and verified."""

from __future__ import annotations

import json

import pytest

from tests.export.conftest import Prepare
from tests.support import Command

pytestmark = pytest.mark.slow

IMAGE = '[inputs.{name}]\nshape = ["batch=2", 3, {size}, {size}]\n'
TOKENS = '[inputs.{name}]\nshape = ["batch=2", {length}]\ndtype = "int64"\nhigh = {high}\n'
X = '[inputs.x]\nshape = ["batch=4", 6]\n'

ARCHITECTURES = {
    "simple": ("ptsave.examples.SimpleNet", X, {"input_size": 6, "hidden_size": 5, "output_size": 2}),
    "conv with batch norm": (
        "ptsave.examples.ConvNet",
        IMAGE.format(name="image", size=16),
        {"in_channels": 3, "width": 8, "num_classes": 10, "dropout": 0.5},
    ),
    "transformer": (
        "ptsave.examples.TinyTransformer",
        TOKENS.format(name="tokens", length=16, high=64),
        {
            "vocab_size": 64,
            "d_model": 32,
            "num_heads": 4,
            "num_layers": 2,
            "max_length": 16,
            "dropout": 0.1,
        },
    ),
    "lstm": ("Lstm", '[inputs.x]\nshape = ["batch=2", 7, 6]\n', {}),
    "mixture of experts": ("Experts", X, {}),
    "dict outputs": ("Dict", X, {}),
    "pixel unshuffle": ("Unshuffle", IMAGE.format(name="x", size=8), {}),
    "mask by keyword": (
        "Masked",
        '[inputs.x]\nshape = ["batch=2", 5, 8]\n[inputs.mask]\nshape = ["batch=2", 5]\ndtype = "bool"\n',
        {},
    ),
    "encoder and decoder": (
        "torch.nn.Transformer",
        '[inputs.src]\nshape = ["batch=2", 5, 16]\n[inputs.tgt]\nshape = ["batch=2", 3, 16]\nseed = 1\n',
        {
            "d_model": 16,
            "nhead": 2,
            "num_encoder_layers": 1,
            "num_decoder_layers": 1,
            "dim_feedforward": 32,
            "batch_first": True,
        },
    ),
}


@pytest.mark.parametrize("format", ["pt2", "onnx"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_exported_compared_and_verified(
    name: str, format: str, prepare: Prepare, ptsave_here: Command
) -> None:
    target, inputs, args = ARCHITECTURES[name]
    checkpoint, config = prepare(target, inputs, **args)
    done = ptsave_here("convert", checkpoint, f"model.{format}", "-c", config, "--json")
    assert json.loads(done.stdout)["proof"]["verdict"] == "yes"
    assert "yes: " in ptsave_here("verify", f"model.{format}").stdout
    assert "yes: " in ptsave_here("verify", f"model.{format}", "--checks", "program").stdout

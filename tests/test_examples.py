"""The example models and the ready configs: each one parses, builds, runs, and shows what it is there for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ptsave.config.toml import load_config
from ptsave.examples import ConvNet, SimpleNet, TinyTransformer, train_simple_net
from ptsave.models.build import build_model
from ptsave.models.imports import import_path
from ptsave.models.inputs import make_inputs, output_tensors

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
OURS = [path for path in CONFIGS if load_config(path).model.target.startswith("ptsave.examples")]
SHAPES = {
    "simple_net": (4, 2),
    "train_simple_net": (4, 2),
    "conv_net": (2, 10),
    "tiny_transformer": (2, 16, 64),
    "sharded_transformer": (2, 16, 64),
}


def run(model: nn.Module, path: Path) -> Tensor:
    inputs = load_config(path).inputs
    assert inputs is not None
    with torch.no_grad():
        (output,) = output_tensors(make_inputs(inputs, model).call(model)).values()
    return output


def test_every_example_has_its_config() -> None:
    assert {path.stem for path in OURS} == SHAPES.keys()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_say_what_they_run_on(path: Path) -> None:
    config = load_config(path)
    assert config.inputs is not None
    assert config.inputs.named


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_it_runs_and_repeats(path: Path) -> None:
    config = load_config(path)
    model = build_model(config.model, seed=0).eval()
    output = run(model, path)
    assert output.shape == SHAPES[path.stem]
    assert torch.equal(output, run(model, path))
    again = build_model(config.model, seed=0).eval()
    assert torch.equal(output, run(again, path))


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_it_is_rebuilt_from_its_state_dict(path: Path) -> None:
    config = load_config(path)
    original = build_model(config.model, seed=0).eval()
    model = build_model(config.model, device="meta", seed=1).eval()
    model.load_state_dict(original.state_dict(), assign=True)
    assert torch.equal(run(model, path), run(original, path))


def test_simple_net() -> None:
    model = SimpleNet(10, 5, 2)
    assert [name for name, _ in model.named_children()] == ["fc1", "relu", "fc2"]
    assert [tuple(tensor.shape) for tensor in model.state_dict().values()] == [(5, 10), (5,), (2, 5), (2,)]
    x = torch.rand(3, 10)
    assert torch.equal(model(x), model.fc2(model.fc1(x).clamp(min=0)))


def test_training_is_reproducible_and_helps() -> None:
    def error(model: SimpleNet) -> float:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            SimpleNet(10, 5, 2)  # takes the same random numbers as training does before the task
            task = torch.randn(10, 2)
            x = torch.randn(256, 10)
        return nn.functional.mse_loss(model(x), x @ task).item()

    state = torch.get_rng_state()
    trained, again = train_simple_net(), train_simple_net()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))
    assert error(train_simple_net(steps=200)) < 0.5 * error(train_simple_net(steps=0))


def test_conv_net_repeats_in_eval_mode_only() -> None:
    model = ConvNet()
    image = torch.rand(2, 3, 16, 16)
    mean = model.features[1].running_mean.clone()
    assert not torch.equal(model(image), model(image))
    assert not torch.equal(model.features[1].running_mean, mean)
    model.eval()
    assert torch.equal(model(image), model(image))


def test_tiny_transformer_is_tied_and_causal() -> None:
    model = TinyTransformer().eval()
    assert model.head.weight is model.embed.weight
    assert "causal_mask" not in model.state_dict()
    tokens = torch.arange(16).reshape(1, 16)
    changed = tokens.clone()
    changed[0, 8:] = 3
    with torch.no_grad():
        a, b = model(tokens), model(changed)
    assert torch.equal(a[:, :8], b[:, :8])
    assert not torch.equal(a[:, 8:], b[:, 8:])
    assert bool(torch.isfinite(a).all())


def test_examples_have_import_paths() -> None:
    assert import_path(SimpleNet) == "ptsave.examples.simple_net.SimpleNet"

"""A model filled from a checkpoint: in place where it has memory, through its own code where it has some."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ptsave
from ptsave.cli.main import run
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.parts.select import select_model
from ptsave.errors import AmbiguousError, CorruptError, LossyError
from ptsave.formats import open_checkpoint
from ptsave.models.weights.fill import fill
from ptsave.models.weights.streaming import stream_to
from ptsave.models.weights.tensors import read_tensors


def make() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    model[2].weight = nn.Parameter(torch.randn(8, 4).t().detach())  # strides of its own
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[tuple[Checkpoint, dict[str, torch.Tensor]]]:
    state = make().double().state_dict()
    torch.save(state, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        yield checkpoint, state


def filled(model: nn.Module, checkpoint: Checkpoint, **options: Any) -> list[str]:
    warned: list[str] = []
    fill(model, checkpoint, select_model(checkpoint), "cpu", warned.append, **options)
    return warned


def assert_filled(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name].to(tensor.dtype)), name


@pytest.mark.parametrize("is_mapped", [False, True])
def test_memory_stays_where_it_is(saved: tuple[Checkpoint, dict[str, torch.Tensor]], is_mapped: bool) -> None:
    model = make()
    before = {name: (id(t), t.data_ptr(), t.stride()) for name, t in model.state_dict(keep_vars=True).items()}
    warned = filled(model, saved[0], is_mapped=is_mapped)
    after = {name: (id(t), t.data_ptr(), t.stride()) for name, t in model.state_dict(keep_vars=True).items()}
    assert after == before
    assert "cast to the model's dtype" in warned[0]
    assert_filled(model, saved[1])


def test_a_model_without_memory(saved: tuple[Checkpoint, dict[str, torch.Tensor]]) -> None:
    with torch.device("meta"):
        model = make()
    filled(model, saved[0])
    assert_filled(model, saved[1])


def test_code_of_the_model_s_own_is_run(saved: tuple[Checkpoint, dict[str, torch.Tensor]]) -> None:
    class Negated(nn.Linear):
        def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
            state_dict[f"{prefix}bias"] = -state_dict[f"{prefix}bias"]
            super()._load_from_state_dict(state_dict, prefix, *arguments)

    def double(module: nn.Module, state: Any, prefix: str, *arguments: Any) -> None:
        state[f"{prefix}weight"] = 2 * state[f"{prefix}weight"]

    model = make()
    model[0] = Negated(4, 8)
    model[2].register_load_state_dict_pre_hook(double)  # type: ignore[no-untyped-call]
    filled(model, saved[0])
    state = dict(saved[1])
    state["0.bias"], state["2.weight"] = -state["0.bias"], 2 * state["2.weight"]
    assert_filled(model, state)


def test_what_does_not_fit_leaves_the_model_as_it_was(
    saved: tuple[Checkpoint, dict[str, torch.Tensor]],
) -> None:
    model = make().append(nn.Linear(1, 1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(LossyError, match="does not fit"):
        filled(model, saved[0])
    assert_filled(model, before)


def test_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    state = make().state_dict()
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    content[content.index(state["0.weight"].numpy().tobytes()) + 9] ^= 1
    path.write_bytes(content)
    model = make()
    with open_checkpoint(path) as checkpoint:
        with pytest.raises(CorruptError, match=r"'0\.weight' is damaged"):
            filled(model, checkpoint)
        filled(model, checkpoint, is_checked=False)
    assert (model[0].weight != state["0.weight"]).sum() == 1


def test_tied_parameters_are_read_once(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    state = tied().state_dict()
    state["1.weight"] = state["1.weight"].clone()  # as safetensors' users store it
    torch.save(state, tmp_path / "a.pt")
    model = tied()
    with open_checkpoint(tmp_path / "a.pt") as checkpoint:
        assert filled(model, checkpoint) == []
    assert model[1].weight is model[0].weight
    assert_filled(model, state)


def test_tensors_made_on_a_device(saved: tuple[Checkpoint, dict[str, torch.Tensor]]) -> None:
    """The way of other devices, taken on the CPU."""
    checkpoint, _ = saved
    dtypes = dict.fromkeys(checkpoint.tensors, torch.float32)
    found = stream_to("cpu", checkpoint.tensors, dtypes)
    for name, tensor in read_tensors(checkpoint.tensors):
        assert torch.equal(found[name], tensor.float())
        assert found[name].stride() == tensor.stride()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("device", ["meta", "cpu", "cuda"])
def test_onto_cuda(saved: tuple[Checkpoint, dict[str, torch.Tensor]], device: str) -> None:
    with torch.device(device):
        model = make()
    fill(model, saved[0], select_model(saved[0]), "cuda", print)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cuda"}
    assert_filled(model.cpu(), saved[1])


GENERATOR, DISCRIMINATOR = nn.Linear(3, 2).state_dict(), nn.Linear(5, 2).state_dict()
TWO: dict[str, tuple[Any, str]] = {
    "beside each other": ({"discriminator": DISCRIMINATOR, "generator": GENERATOR}, "generator"),
    "in one": ({"model": {"discriminator": DISCRIMINATOR, "generator": GENERATOR}}, "model.generator"),
    "the better name": ({"model": DISCRIMINATOR, "generator": GENERATOR}, "generator"),
    "nested": (
        {"state_dict": {**nn.Linear(9, 9).state_dict(), "more": torch.ones(3), "state_dict": GENERATOR}},
        "state_dict.state_dict",
    ),
    "wrapped": (
        {
            "discriminator": DISCRIMINATOR,
            "generator": {f"module.{key}": value for key, value in GENERATOR.items()},
        },
        "generator",
    ),
    "with an average": ({"model": GENERATOR, "ema": GENERATOR}, "model"),
}


@pytest.mark.parametrize("case", TWO)
def test_the_state_dict_that_fits_is_taken(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, where = TWO[case]
    torch.save(tree, tmp_path / "m.pt")
    config = tmp_path / "m.toml"
    config.write_text('[model]\nclass = "torch.nn.Linear"\n[model.args]\nin_features = 3\nout_features = 2\n')
    with pytest.warns(UserWarning, match=f"took the state dict under '{where}'"):
        loaded = (
            ptsave.load(tmp_path / "m.pt", nn.Linear(3, 2)),
            ptsave.load(tmp_path / "m.pt", config=config),
        )
    for model in loaded:
        assert torch.equal(model.weight, GENERATOR["weight"])  # type: ignore[arg-type]
    file, saved = str(tmp_path / "m.pt"), str(tmp_path / "s.pt")
    for argv in (["load", file], ["verify", file]):
        assert run([*argv, "-c", str(config)]) == 0
        said = capsys.readouterr()
        assert where in said.out + said.err
    assert run(["save", str(config), saved, "--weights", file]) == 0
    assert torch.equal(torch.load(saved)["weight"], GENERATOR["weight"])


def test_two_that_fit_are_both_named(tmp_path: Path) -> None:
    both = {"a": nn.Linear(3, 2).state_dict(), "b": nn.Linear(3, 2).state_dict(), "c": DISCRIMINATOR}
    torch.save(both, tmp_path / "m.pt")
    with pytest.raises(AmbiguousError, match="'a', 'b'") as caught:
        ptsave.load(tmp_path / "m.pt", nn.Linear(3, 2))
    assert "'c'" not in str(caught.value)
    with pytest.raises(AmbiguousError, match="'a', 'b', 'c'"):
        ptsave.load(tmp_path / "m.pt", nn.Linear(7, 7))

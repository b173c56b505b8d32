"""New names, in state dicts and in the optimizers that name the same parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ptsave
from ptsave.errors import RefusedError, UsageError

SWAP = {"^one": "swapped", "^two": "one", "^swapped": "two"}


class Net(nn.Module):
    """Two layers of one shape, called and run in this order."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        for name in names:
            setattr(self, name, nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            x = getattr(self, name)(x).tanh()
        return x


def trained(*names: str) -> tuple[Net, torch.optim.Adam]:
    torch.manual_seed(0)
    net = Net(*names)
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(2, 4)).square().sum().backward()
        optimizer.step()
    return net, optimizer


def momenta(net: nn.Module, optimizer: torch.optim.Adam) -> list[torch.Tensor]:
    return [optimizer.state[parameter]["exp_avg"] for parameter in net.parameters()]


@pytest.mark.parametrize("middle", ["", "middle.dcp"])
def test_a_renamed_training_goes_on_with_the_state_of_each_parameter(tmp_path: Path, middle: str) -> None:
    net, optimizer = trained("one", "two")
    source = tmp_path / "training.pt"
    ptsave.save(source, ptsave.TrainingState(model=net, optimizer=optimizer).state_dict())
    if middle:
        ptsave.convert(source, tmp_path / middle, format="dcp")
        source = tmp_path / middle
    ptsave.convert(source, tmp_path / "renamed.pt", rename=SWAP)
    assert ptsave.verify(tmp_path / "renamed.pt", checks="resume").is_yes
    other = Net("two", "one")
    resumed = torch.optim.Adam(other.parameters())
    state = ptsave.TrainingState(model=other, optimizer=resumed)
    assert state.load_state_dict(ptsave.read_training(tmp_path / "renamed.pt")) == []
    for saved, now in zip(momenta(net, optimizer), momenta(other, resumed), strict=True):
        assert torch.equal(saved, now)


def test_optimizers_of_several_models_by_label(tmp_path: Path) -> None:
    models = {"g": trained("one", "two")[0], "d": trained("one", "two")[0]}
    parameters = [p for model in models.values() for p in model.parameters()]
    state = ptsave.TrainingState(model=models, optimizer=torch.optim.SGD(parameters)).state_dict()
    ptsave.save(tmp_path / "gan.pt", state)
    ptsave.convert(tmp_path / "gan.pt", tmp_path / "renamed.pt", rename={"^one": "g"})
    groups = torch.load(tmp_path / "renamed.pt")["optimizer_state_dict"]["param_groups"]
    names = [name for name in groups[0]["param_names"] if name.endswith("weight")]
    assert names == ["g.g.weight", "g.two.weight", "d.g.weight", "d.two.weight"]


def by_name(names: list[str]) -> dict[str, Any]:
    """An optimizer's state as torch.distributed.checkpoint gathers it."""
    state = {
        name: {"step": torch.tensor(3.0), "exp_avg": torch.full((2,), i)} for i, name in enumerate(names)
    }
    return {"state": state, "param_groups": [{"lr": 0.1, "params": names}]}


def test_optimizer_state_by_name_takes_the_names_of_the_model(tmp_path: Path) -> None:
    names = ["module.a.weight", "module.step"]
    model = {name: torch.ones(2) for name in names}
    torch.save({"optim": by_name(names), "model": model}, tmp_path / "a.pt")
    done = ptsave.convert(
        tmp_path / "a.pt", tmp_path / "b.pt", strip_prefix="module.", rename={"^a": "b", "^step": "s"}
    )
    found = torch.load(tmp_path / "b.pt")
    assert [*found["model"]] == [*found["optim"]["state"]] == ["b.weight", "s"]
    assert found["optim"]["param_groups"][0]["params"] == ["b.weight", "s"]
    assert [*found["optim"]["state"]["s"]] == ["step", "exp_avg"]
    assert found["optim"]["state"]["s"]["exp_avg"][0] == 1
    assert done.renamed["optim.state.module.step.exp_avg"] == "optim.state.s.exp_avg"
    assert ptsave.verify(tmp_path / "b.pt").is_yes


def test_an_optimizer_alone(tmp_path: Path) -> None:
    torch.save({"optimizer": by_name(["a.weight", "a.bias"])}, tmp_path / "a.pt")
    ptsave.convert(tmp_path / "a.pt", tmp_path / "b.pt", rename={"^a": "b"})
    assert [*torch.load(tmp_path / "b.pt")["optimizer"]["state"]] == ["b.weight", "b.bias"]
    with pytest.raises(RefusedError, match="would both become"):
        ptsave.convert(tmp_path / "a.pt", tmp_path / "c.pt", rename={"weight|bias": "x"})


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"rename": {"^nowhere": "x"}}, "no name matches '\\^nowhere'"),
        ({"rename": {"weight": "w", "weight$": "x"}}, "no name matches 'weight\\$'"),
        ({"rename": {"exp_avg": "x"}}, "no name matches 'exp_avg'"),
        ({"rename": {"weight": "w"}, "strip_prefix": "module."}, "no name starts with 'module\\.'"),
    ],
)
def test_a_rule_that_finds_no_name_is_refused(tmp_path: Path, options: dict[str, Any], what: str) -> None:
    net, optimizer = trained("one")
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    with pytest.raises(UsageError, match=what):
        ptsave.convert(tmp_path / "a.pt", tmp_path / "b.pt", **options)
    assert not (tmp_path / "b.pt").exists()

"""Lazy modules get their shapes from the config's inputs."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from ptsave.errors import UsageError
from ptsave.models.inputs import Arguments
from ptsave.models.weights.lazy import lazy_names, settle

X = Arguments((torch.rand(4, 3),))


def lazy() -> nn.Module:
    layers = OrderedDict(
        fc=nn.LazyLinear(6), norm=nn.LazyBatchNorm1d(), drop=nn.Dropout(), head=nn.LazyLinear(2)
    )
    return nn.Sequential(layers)


class Unreached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.LazyLinear(2), nn.LazyLinear(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x)


def test_settled() -> None:
    model = lazy()
    assert "norm.running_mean" in lazy_names(model)
    model.drop.eval()
    settle(model, X, seed=1)
    assert lazy_names(model) == []
    assert type(model.fc) is nn.Linear
    assert model.fc.weight.shape == (6, 3)
    assert model.norm.running_mean.tolist() == [0.0] * 6
    assert (model.fc.training, model.drop.training) == (True, False)


def test_the_seed_makes_the_weights() -> None:
    first, second = lazy(), lazy()
    settle(first, X, seed=1)
    torch.rand(7)
    settle(second, X, seed=1)
    assert torch.equal(first.head.weight, second.head.weight)


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="lazy modules their shapes failed") as caught:
        settle(lazy(), Arguments(("text",)))
    assert "[inputs]" in caught.value.hint


def test_what_is_not_reached() -> None:
    with pytest.raises(UsageError, match=r"'b\.weight' has no shape after a forward pass"):
        settle(Unreached(), X)

"""What a model may hold in memory on recorded inputs, by ways to come to much."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ptsave.errors import LimitError
from ptsave.models.behaviour import activations
from ptsave.models.behaviour.activations import check_activations
from ptsave.models.inputs import Arguments


class Runs(nn.Module):
    def __init__(self, code: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        return self.code(x)


def kept(x: Tensor) -> Tensor:
    return torch.stack([x * i for i in range(300)])


def let_go(x: Tensor) -> Tensor:
    for i in range(300):
        y = x * i
    return y


TOO_MUCH: dict[str, Callable[[Tensor], Tensor]] = {
    "a product": lambda x: torch.outer(x, x),
    "a size from a value": lambda x: torch.zeros(int(x[0]) * 10**12),
    "a view made whole": lambda x: x[:, None].expand(-1, 10**8).contiguous(),
    "repeats": lambda x: torch.repeat_interleave(x[:1], torch.tensor([10**12])),
    "many that are kept": kept,
}


@pytest.mark.parametrize("way", TOO_MUCH)
def test_too_much(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "MAX_ACTIVATION_BYTES", 1_000_000)
    with pytest.raises(LimitError, match="MAX_ACTIVATION_BYTES = 1000000"):
        check_activations(Runs(TOO_MUCH[way]), Arguments((torch.ones(1024),)))


def looped(x: Tensor) -> Tensor:
    for _ in range(int(x[0]) * 10**6):
        x = x.view(-1)
    return x


def in_place(x: Tensor) -> Tensor:
    for _ in range(3000):
        x.add_(1)
    return x


TOO_LONG: dict[str, Callable[[Tensor], Tensor]] = {
    "as often as a value says": looped,
    "in place": in_place,
    "products": lambda x: x.view(32, 32) @ torch.ones(32, 10_000) @ torch.ones(10_000, 32),
    "a convolution": lambda x: torch.conv2d(x.view(1, 1, 32, 32), torch.ones(256, 1, 17, 17)),
}


@pytest.mark.parametrize("way", TOO_LONG)
def test_too_much_work(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "MAX_COMPUTED_BYTES", 2_200_000)
    monkeypatch.setattr(activations, "_CALL_BYTES", 100)
    with pytest.raises(LimitError, match="MAX_COMPUTED_BYTES = 2200000"):
        check_activations(Runs(TOO_LONG[way]), Arguments((torch.ones(1024),)))


def test_work_is_allowed_by_the_size_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "MAX_COMPUTED_BYTES", 0)
    check_activations(nn.Linear(1024, 1024), Arguments((torch.ones(1000, 1024),)))
    with pytest.raises(LimitError, match="MAX_COMPUTED_BYTES"):
        check_activations(nn.Linear(1024, 1024), Arguments((torch.ones(3000, 1024),)))


def test_what_was_let_go_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "MAX_ACTIVATION_BYTES", 1_000_000)
    check_activations(Runs(let_go), Arguments((torch.ones(1024),)))
    layer = nn.TransformerEncoderLayer(16, 2, batch_first=True)
    check_activations(nn.TransformerEncoder(layer, 2), Arguments((torch.ones(2, 3, 16),)))

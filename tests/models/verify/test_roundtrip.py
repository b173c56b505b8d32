"""The check `roundtrip`, for models whose results depend on where their weights lie."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ptsave.models.verify import subject
from tests.workshop import Workshop


class Placed(nn.Module):
    """Computes something else where its weights do not lie at a multiple of 64 bytes, as some kernels do."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(3))
        self.fc = nn.Linear(6, 6)
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(x)
        return y * (1 + self.by) if self.fc.weight.data_ptr() % 64 else y


def configure(workshop: Workshop, by: float) -> None:
    kind = f'[model]\nclass = "{__name__}.Placed"\nargs = {{by = {by}}}\n'
    workshop.write_config(f"{kind}[inputs.x]\nshape = [2, 6]\n")
    workshop.save("m.safetensors")


def test_mapped_weights_lie_where_the_allocator_puts_them(workshop: Workshop) -> None:
    configure(workshop, 0.5)
    outcome = workshop.verify("m.safetensors", "--through", "pt,safetensors")
    assert outcome.is_yes, outcome.document
    assert not outcome.found("roundtrip", "warn")


def test_equal_tensors_with_other_outputs_are_judged_by_rounding(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(workshop, 1e-7)
    monkeypatch.setattr(subject, "ALLOCATOR_BYTES", 4)
    outcome = workshop.verify("m.safetensors")
    assert outcome.is_yes, outcome.document
    ((where, message),) = outcome.found("roundtrip", "warn")
    assert where == "output"
    assert "explained by rounding: every tensor is bitwise equal" in message
    assert not workshop.verify("m.safetensors", "--strict").is_yes


def test_equal_tensors_with_outputs_beyond_rounding_fail(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(workshop, 1e-3)
    monkeypatch.setattr(subject, "ALLOCATOR_BYTES", 4)
    outcome = workshop.verify("m.safetensors")
    assert not outcome.is_yes
    ((where, message),) = outcome.found("roundtrip", "fail")
    assert where == "output"
    assert message.startswith("the output differs after a round trip through safetensors")

"""The quick judge of outputs: it never explains what the thorough one does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ptsave.examples import ConvNet, TinyTransformer
from ptsave.models.behaviour.judge import judge_alone, judge_outputs, output_key
from ptsave.models.behaviour.trace import watch
from ptsave.models.inputs import Arguments


class Widening(nn.Module):
    """Computes something else in float64: the exact run is not credible."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(x)
        return y + torch.finfo(y.dtype).eps * 1e4


MODELS: dict[str, tuple[nn.Module, torch.Tensor]] = {
    "transformer": (TinyTransformer(), torch.arange(32).view(2, 16)),
    "convolutions": (ConvNet(in_channels=3, width=8, num_classes=4), torch.rand(2, 3, 16, 16)),
    "another function in float64": (Widening(), torch.rand(4, 8)),
    "half precision": (nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8)).half(), torch.rand(4, 8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_quick_judge_allows_no_more_than_the_thorough_one(name: str) -> None:
    model, x = MODELS[name]
    model.eval()
    arguments = Arguments((x.half() if name == "half precision" else x,))
    now = watch(model, arguments)
    quick, thorough = (judge(model, arguments, now, again=now) for judge in (judge_outputs, judge_alone))
    key, sample = output_key("output"), now.outputs["output"]
    few, many = quick.excess(sample, key), thorough.excess(sample, key)
    assert few.is_explained
    assert many.is_explained
    assert 0 < few.allowed <= many.allowed
    far = replace(sample, sketch=tuple(x + many.allowed * sample.norm for x in sample.sketch))
    assert not quick.excess(far, key).is_explained

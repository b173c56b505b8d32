"""`verify` of training checkpoints: what today's class makes of the optimizer's order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.workshop import Workshop

CODE = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.second = nn.Linear(4, 3)

    def forward(self, x):
        return self.second(self.first(x))
"""
CONFIG = '[model]\nclass = "nets.net.Net"\n[inputs.x]\nshape = [2, 6]\n'


def prepare(workshop: Workshop) -> None:
    """A checkpoint after two steps."""
    workshop.write_code(CODE)
    workshop.write_config(CONFIG)
    model = nn.Sequential()
    model.add_module("first", nn.Linear(6, 4))
    model.add_module("second", nn.Linear(4, 3))
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        model(torch.ones(2, 6)).square().sum().backward()
        optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 2}, "t.pt")


def test_a_sound_training_checkpoint(workshop: Workshop) -> None:
    prepare(workshop)
    outcome = workshop.verify("t.pt")
    assert outcome.is_yes
    assert outcome.cause == ""
    assert (
        "optimizer",
        "covers 4 of 4 weights (the architecture), in their order and shapes",
    ) in outcome.found("resume", "ok")


@pytest.mark.slow
def test_layers_registered_in_another_order_since(workshop: Workshop) -> None:
    """The weights fit by name and the model behaves; the optimizer's states would go to others."""
    prepare(workshop)
    workshop.write_code(
        CODE.replace("self.first = nn.Linear(6, 4)\n        ", "").replace(
            "self.second = nn.Linear(4, 3)\n",
            "self.second = nn.Linear(4, 3)\n        self.first = nn.Linear(6, 4)\n",
        )
    )
    outcome = workshop.verify("t.pt")
    assert not outcome.is_yes
    assert {f["check"] for f in outcome.document["findings"] if f["level"] == "fail"} == {"resume"}
    assert outcome.cause == (
        "training state does not fit: optimizer: another order: "
        "the state of parameter 0 has the shape [4, 6], and 'second.weight' in its place has [3, 4]"
    )
    assert workshop.verify("t.pt", config=None).is_yes


def test_resume_speaks_where_there_is_something_or_it_is_named(workshop: Workshop) -> None:
    prepare(workshop)
    torch.save(nn.Linear(2, 2).state_dict(), "w.pt")
    outcome = workshop.verify("w.pt", config=None)
    assert not [f for f in outcome.document["findings"] if f["check"] == "resume"]
    outcome = workshop.verify("w.pt", "--checks", "resume", config=None)
    assert outcome.found("resume", "skipped") == [
        ("", "not a training checkpoint: it has no optimizer state")
    ]
    assert not outcome.is_yes

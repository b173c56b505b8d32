"""The files that the sessions of README and docs are about, made here as their owners would."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import numpy as np
import torch

from ptsave.examples import SimpleNet

FLIP = """
import sys
data = bytearray(open(sys.argv[1], "rb").read())
data[-1] ^= 1
open(sys.argv[2], "wb").write(data)
"""

BREAK = """
import sys
from safetensors.torch import load_file, save_file
state = load_file(sys.argv[1])
state["fc2.weight"][1, 3] = float("nan")
save_file(state, sys.argv[2])
"""


def main() -> None:
    """Write every file."""
    torch.manual_seed(0)
    training("training.pt")
    whole_model("whole_model.pt")
    torch.save({"weight": torch.ones(2), "callback": os.system}, "hostile.pt")
    np.savez("x.npz", x=np.ones((4, 10), dtype=np.float32))
    Path("flip_last_bit.py").write_text(FLIP)
    Path("break_weights.py").write_text(BREAK)


def training(path: str) -> None:
    """The dictionary of the PyTorch tutorial, after one step, saved under DataParallel."""
    model = torch.nn.DataParallel(SimpleNet(10, 5, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loss = model(torch.ones(4, 10)).square().mean()
    loss.backward()
    optimizer.step()
    torch.save(
        {
            "epoch": 12,
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "loss": 0.031,
        },
        path,
    )


def whole_model(path: str) -> None:
    """A model pickled with its class, from a module that nobody has any more."""
    module = types.ModuleType("old_project")
    source = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = torch.nn.Linear(10, 5)
        self.norm = torch.nn.BatchNorm1d(5)
        self.fc2 = torch.nn.Linear(5, 2)
"""
    exec(source, module.__dict__)
    sys.modules[module.__name__] = module
    torch.save(module.Net(), path)


if __name__ == "__main__":
    main()

"""A three-layer feedforward network, and a function that trains one."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SimpleNet(nn.Module):
    """Linear, ReLU, linear."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(input_size, hidden_size)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(hidden_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, input_size) to (batch, output_size)."""
        out: Tensor = self.fc2(self.relu(self.fc1(x)))
        return out


def train_simple_net(
    input_size: int = 10, hidden_size: int = 5, output_size: int = 2, steps: int = 20, seed: int = 0
) -> SimpleNet:
    """A SimpleNet after `steps` steps of SGD on a made-up linear task: a `factory` for a config."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SimpleNet(input_size, hidden_size, output_size)
        task = torch.randn(input_size, output_size)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(steps):
            x = torch.randn(32, input_size)
            loss = nn.functional.mse_loss(model(x), x @ task)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return model

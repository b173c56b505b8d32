"""Models to export: plain ones, ones that torch cannot export, and ones whose export computes otherwise."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import gelu


class Mlp(nn.Module):
    """Two layers, and a fault that only an exporter meets: it follows another branch of the code."""

    def __init__(self, width: int = 8, fault: str = "") -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, width)
        self.norm = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, 3)
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        fault = self.fault if torch.compiler.is_exporting() else ""
        y = self.fc1(x)
        if fault == "weights":
            y = functional.linear(x, self.fc1.weight * 1.001, self.fc1.bias)
        eps = 1e-3 if fault == "eps" else 1e-5
        y = functional.layer_norm(y, y.shape[-1:], self.norm.weight, self.norm.bias, eps)
        y = gelu(y, approximate="tanh" if fault == "activation" else "none")
        if fault == "fixed batch":
            y = y.reshape(4, -1)
        if fault == "train mode":
            y = functional.batch_norm(y, None, None, training=True)
        if fault == "dtype":
            y = y.half().float()
        out: Tensor = self.fc2(y)
        return out


class TwoInputs(nn.Module):
    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.fault = fault

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.fault and torch.compiler.is_exporting():
            x, y = y, x
        out: Tensor = self.a(x) - self.b(y).sigmoid()
        return out


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x).reshape(4, 3) + 1
        return out


class Branching(nn.Module):
    """Decides by the values of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = self.fc(x)
        return x


class Noisy(nn.Module):
    """Draws random numbers in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x) + torch.randn(3)
        return out

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


class NarrowPorts(nn.Module):
    """Takes and gives bfloat16, and computes in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc1(x.float()).bfloat16()
        return out


class Spare(nn.Module):
    """Has a layer that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.spare = nn.Linear(6, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x).tanh()
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


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x)[0])
        return out


class Experts(nn.Module):
    """Two of four experts a row, each weighted by the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 4)
        self.experts = nn.ModuleList(nn.Linear(6, 3) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(2)
        given = torch.stack([expert(x) for expert in self.experts], 1)
        taken = given.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 3))
        return (taken * weights.unsqueeze(-1)).sum(1)


class Dict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, object]:
        return {"logits": self.a(x), "more": (self.b(x), x.argmax(-1))}


class Unshuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.PixelUnshuffle(2), nn.PixelShuffle(2)
        self.conv = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(self.conv(self.down(x)))
        return out


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        scores = self.fc(x) @ x.transpose(1, 2)
        scores = scores.masked_fill(~mask[:, None], -1e4)
        return scores.softmax(-1) @ x


class WithConstants(nn.Module):
    """A table that no checkpoint has, and a counter that is of no use in eval mode."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("table", torch.arange(6.0).reshape(6, 1).repeat(1, 6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x) @ self.table
        return out


class ThreeDimensions(nn.Module):
    """Attention without heads: torch.onnx translates it for four dimensions alone."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(x, x, x)

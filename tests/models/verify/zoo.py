"""Models that do what models do: hold, compute and return all kinds of things."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 8, num_layers=2, bidirectional=True, batch_first=True, dropout=0.2)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y, (h, c) = self.rnn(x)
        return {"y": self.fc(y), "h": h, "c": c}


class Parametrized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.weight_norm(nn.Linear(6, 6))
        self.b = parametrizations.spectral_norm(nn.Linear(6, 6))
        self.c = parametrizations.orthogonal(nn.Linear(6, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.c(self.b(functional.relu(self.a(x))))
        return y


class OldNorms(nn.Module):
    """The norms of before parametrizations, which hooks compute."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.spectral_norm(nn.Linear(6, 6))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.b = nn.utils.weight_norm(nn.Linear(6, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.a(self.b(x))
        return y


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.LazyLinear(5)
        self.norm = nn.LazyBatchNorm1d()
        self.b = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.b(self.norm(self.a(x)))
        return y


class Extra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.scale = 3.0

    def get_extra_state(self) -> dict[str, Any]:
        return {"scale": self.scale, "of": torch.ones(2), "names": ["a"]}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.scale = state["scale"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) * self.scale


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(x.double())
        return y


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 6)
        ).bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x.bfloat16())
        return y


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 64), nn.Linear(64, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y: torch.Tensor = self.b(functional.relu(self.a(x)))
        return y.float()


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 6, dtype=torch.complex64))
        self.b = nn.Parameter(torch.randn(6, dtype=torch.complex128))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.fft.fft(x.to(torch.complex64) @ self.w), (x + 0j) @ self.w + self.b


class Twice(nn.Module):
    """A module that is called twice, and a second name of it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.same = self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.same(functional.relu(self.fc(self.fc(x))))
        return y


class InPlace(nn.Module):
    """Changes its arguments and its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.relu = nn.ReLU(inplace=True)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("cache", torch.zeros(2, 6), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        self.count += 1
        self.cache[:] = self.fc(x)
        self.cache.mul_(2)
        y: torch.Tensor = self.relu(self.cache + x) / self.count
        y[0] = 0
        return y


class Averaging(nn.Module):
    """Puts another tensor in the place of its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        y: torch.Tensor = self.fc(x - self.mean)
        return y


class Compiled(nn.Module):
    """Has compiled a part of itself, which puts `_orig_mod` into the names of its state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.compile(
            nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 6)), backend="eager"
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x).softmax(-1)
        return y


class Wrapping(nn.Module):
    """Has one child, of the name that wrappers put in front."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Linear(6, 6), nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.module(x)
        return y


class Experts(nn.Module):
    """Calls those of its modules that the data choose, some with no rows, and one that returns None."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.log = nn.Linear(6, 4), Returns("nothing")
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.log(x)
        chosen = self.gate(x).argmax(-1)
        y = torch.zeros_like(x)
        for i in chosen.unique().tolist():
            y[chosen == i] = self.experts[i](x[chosen == i])
        return {"y": y, "chosen": chosen, "empty": self.experts[0](x[:0])}


class Force(nn.Module):
    """Takes a gradient in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.energy(x).sum(), x)
        return -gradient


class Extreme(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.fc(x)
        return {
            "huge": y * 1e37,
            "tiny": y * 1e-40,
            "infinite": (y * 1e30) ** 2,
            "nan": (-y.abs() - 1).sqrt(),
            "masked": y.masked_fill(y > 0, torch.finfo(y.dtype).min),
        }


class Small(nn.Module):
    """Keeps a buffer of 8-bit floats."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.register_buffer("w8", torch.randn(6, 6).to(torch.float8_e4m3fn))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(x) @ self.w8.float()
        return y


class Autoencoder(nn.Module):
    """Draws random numbers in eval mode, too, and drops out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 8), nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, log = self.encoder(functional.dropout(x, 0.2)).chunk(2, -1)
        y: torch.Tensor = self.decoder(mean + torch.randn_like(mean) * torch.exp(log / 2))
        return y


class Talkative(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        print("building")
        self.fc = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("running", x.shape)
        y: torch.Tensor = self.fc(x)
        return y


class Picture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.drop(functional.relu(self.norm(self.conv(x)))).mean((2, 3))
        return y


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        y = self.encoder(x)
        found: tuple[torch.Tensor, torch.Tensor | None] = self.attention(y, y, y)
        return found


class Writer(nn.Module):
    """Generates tokens: whole numbers come out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(6):
            x = torch.cat([x, self.head(self.embed(x).mean(1)).argmax(-1, keepdim=True)], 1)
        return x


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.inner = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.ReLU()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.inner(x)
        return y


class Computed(nn.Module):
    """A buffer that is computed from a weight when the model is built, and kept."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 6))
        self.register_buffer("inverse", torch.linalg.inv(self.w.detach()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.inverse


@dataclass
class Result:
    logits: torch.Tensor
    loss: torch.Tensor | None = None
    name: str = "x"
    hidden: tuple[Any, ...] = field(default_factory=tuple)


class Returns(nn.Module):
    """Returns whatever it is asked for."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.fc, self.what = nn.Linear(6, 3), what

    def forward(self, x: torch.Tensor) -> Any:
        y = self.fc(x)
        returned: dict[str, Any] = {
            "dataclass": Result(y, y.sum(), hidden=(y * 2, [y * 3])),
            "tuple": (y, (y, None, {"a": y})),
            "scalar": float(y.detach().sum()),
            "nothing": None,
            "empty": y[:0],
            "argmax": y.argmax(-1),
            "bool": y > 0,
            "text": "hello",
            "nan": y / 0 * 0,
            "infinite": y.masked_fill(y > 0, float("-inf")),
            "sparse": y.to_sparse(),
        }
        return returned[self.what]


class Deep(nn.Module):
    """5,001 modules."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6)) for _ in range(2500))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + 0.01 * layer(x)
        return x


class _Static(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quantize, self.dequantize = (
            torch.ao.quantization.QuantStub(),
            torch.ao.quantization.DeQuantStub(),
        )
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.dequantize(self.fc(functional.relu(self.conv(self.quantize(x)))))
        return y


def quantized() -> nn.Module:
    """Packed weights of linear layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
        done: nn.Module = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        return done


def quantized_by_channel() -> nn.Module:
    """Weights that are quantized channel by channel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _Static().eval()
        model.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
        torch.ao.quantization.prepare(model, inplace=True)
        model(torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4))
        done: nn.Module = torch.ao.quantization.convert(model)
        return done

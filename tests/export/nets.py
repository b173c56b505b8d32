"""More models to export: the kinds of layers and of code that exporters translate each in its own way."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Norm(nn.Module):
    """RMS normalisation, as Llama has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Decoder(nn.Module):
    """One block of a decoder: rotary positions, a causal mask, a gated network, a tied head."""

    def __init__(self, width: int = 16, heads: int = 2, vocabulary: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(vocabulary, width)
        self.norm1, self.norm2, self.norm3 = Norm(width), Norm(width), Norm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, 32, bias=False), nn.Linear(width, 32, bias=False)
        self.down = nn.Linear(32, width, bias=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("steps", 1e4 ** -torch.linspace(0, 1, width // heads // 2), persistent=False)

    def turned(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[-2], device=x.device)[:, None] * self.steps
        one, other = x.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((one * cos - other * sin, other * cos + one * sin), -1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(self.turned(q), self.turned(k), v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(-2))
        y = self.norm2(x)
        x = x + self.down(functional.silu(self.gate(y)) * self.up(y))
        logits: Tensor = self.head(self.norm3(x))
        return logits


class UNet(nn.Module):
    """Down and up again, with the way across: pooling, a transposed convolution, normalisations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.group, self.instance = nn.GroupNorm(2, 8), nn.InstanceNorm2d(16, affine=True)
        self.second = nn.Conv2d(8, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = functional.silu(self.group(self.first(x)))
        second = functional.leaky_relu(self.instance(self.second(functional.max_pool2d(first, 2))))
        out: Tensor = self.last(torch.cat((self.up(second), first), 1))
        return out


class Mobile(nn.Module):
    """Depthwise and pointwise convolutions, squeeze and excitation, hard activations."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Conv2d(3, 6, 3, groups=3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.squeeze, self.excite = nn.Linear(6, 3), nn.Linear(3, 6)
        self.point = nn.Conv2d(6, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.hardswish(self.norm(self.depth(x)))
        gate = functional.hardsigmoid(self.excite(functional.relu6(self.squeeze(x.mean((2, 3))))))
        out: Tensor = self.point(x * gate[:, :, None, None]).flatten(2).amax(-1)
        return out


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gru = nn.Embedding(20, 6, padding_idx=0), nn.GRU(6, 8, batch_first=True)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        states, last = self.gru(self.embed(tokens))
        return states, last[0]


class Wave(nn.Module):
    """Causal dilated convolutions with gates, each added to what it was given; upsampled at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(4, 8, 2, dilation=2**i) for i in range(3))
        self.prelu = nn.PReLU(4)

    def forward(self, x: Tensor) -> Tensor:
        for i, conv in enumerate(self.convs):
            filtered, gate = conv(functional.pad(x, (2**i, 0))).chunk(2, 1)
            x = x + filtered.tanh() * gate.sigmoid()
        return functional.interpolate(self.prelu(x), scale_factor=2, mode="linear")


class Mixer(nn.Module):
    """Patches mixed across places and across channels, by einsum and by a weight-normed layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.LayerNorm(8)
        self.across = nn.Parameter(torch.rand(4, 4) - 0.5)
        self.inside = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patch(x).flatten(2).transpose(1, 2))
        x = x + torch.einsum("bpc,pq->bqc", functional.mish(x), self.across)
        out: Tensor = (x + functional.elu(self.inside(x))).mean(1)
        return out


class Bag(nn.Module):
    """A bag of words beside the mean of its tokens, with a mask; a part that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.tokens = nn.EmbeddingBag(30, 8, mode="mean"), nn.Embedding(30, 8)
        self.head, self.unused = nn.Bilinear(8, 8, 3), nn.Linear(2, 2)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        means = (self.tokens(tokens) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        out: Tensor = self.head(self.words(tokens), means).log_softmax(-1)
        return out


class Nested(nn.Module):
    """Tensors in a dict and a list, a number beside them; outputs in a tuple, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, batch: dict[str, Tensor], pair: list[Tensor], scale: float) -> tuple[Tensor, ...]:
        x = self.a(batch["x"]) * batch["y"].sigmoid()
        z = self.b(pair[0] - pair[1]) * scale
        return x, z, x + z.cumsum(-1)

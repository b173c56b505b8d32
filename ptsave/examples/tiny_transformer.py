"""A small causal language model whose input embedding and output head are one parameter."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Pre-norm self-attention and feedforward, each with a residual connection."""

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.proj = nn.Linear(d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.ff = nn.Sequential(
            nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * d_model, d_model)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, length, d_model) to the same; `mask` (length, length) is added to the scores."""
        batch, length, d_model = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, length, 3, self.num_heads, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * (d_model // self.num_heads) ** -0.5 + mask
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, d_model)
        x = x + self.proj(mixed)
        out: Tensor = x + self.ff(self.norm2(x))
        return out


class TinyTransformer(nn.Module):
    """Token and position embeddings, blocks, and a head tied to the token embedding.

    `causal_mask` is a buffer that no state dict holds: it has to be built again, not left uninitialised.
    """

    causal_mask: Tensor

    def __init__(
        self,
        vocab_size: int = 64,
        d_model: int = 32,
        num_heads: int = 4,
        num_layers: int = 2,
        max_length: int = 16,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, d_model)
        self.position = nn.Embedding(max_length, d_model)
        self.blocks = nn.ModuleList(Block(d_model, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        self.head.weight = self.embed.weight
        mask = torch.full((max_length, max_length), float("-inf")).triu(1)
        self.register_buffer("causal_mask", mask, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token numbers (batch, length) to logits (batch, length, vocab_size)."""
        length = tokens.shape[1]
        x = self.embed(tokens) + self.position.weight[:length]
        for block in self.blocks:
            x = block(x, self.causal_mask[:length, :length])
        out: Tensor = self.head(self.norm(x))
        return out

"""Models that are awkward to shard, as a module that the tests write into their folder."""

from __future__ import annotations

from pathlib import Path

CODE = '''
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return x + self.gain * self.down(torch.relu(self.up(x)))


class Odd(nn.Module):
    """Sizes that no number of ranks divides, a scalar, a tie, statistics, a buffer of no state dict."""

    def __init__(self, vocab=13, width=7, depth=3):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.norm = nn.BatchNorm1d(width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.tiny = nn.Parameter(torch.ones(1))
        self.register_buffer("table", torch.linspace(-1, 1, width), persistent=False)
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.norm(self.embed(tokens)) + self.table * self.tiny
        for block in self.blocks:
            x = block(x)
        return self.head(x)
'''

CONFIG = """
[model]
class = "odd.Odd"

[inputs.tokens]
shape = [11]
dtype = "int64"
low = 0
high = 13
"""

PARALLEL = {
    "plain": "",
    "dp": '[parallel]\nwrap = ["odd.Block"]\n',
    "hybrid": '[parallel]\nmesh = {ddp = 2, dp = 2}\nwrap = ["blocks.*"]\n',
    "ddp2": "[parallel]\nmesh = {ddp = 2}\n",
    "tp2": '[parallel]\nmesh = {tp = 2}\n[parallel.tensor]\n"blocks.*.up" = "colwise"\n'
    '"blocks.*.down" = "rowwise"\n',
    "tp3": '[parallel]\nmesh = {tp = 3}\n[parallel.tensor]\n"blocks.*.up" = "colwise"\n'
    '"blocks.*.down" = "rowwise"\n',
    "grid": '[parallel]\nmesh = {dp = 2, tp = 2}\nwrap = ["odd:Block"]\n[parallel.tensor]\n'
    '"blocks.*.up" = "colwise"\n"blocks.*.down" = "rowwise"\n',
}
"""Ways to shard it; without a table, and in `dp` without a mesh, over as many ranks as there are."""


def write_models(folder: Path) -> None:
    """`odd.py`, and one config for each way to shard its model."""
    (folder / "odd.py").write_text(CODE)
    for name, table in PARALLEL.items():
        (folder / f"{name}.toml").write_text(f"{CONFIG}\n{table}")

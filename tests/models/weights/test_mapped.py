"""Weights over a file's own pages: they lie where torch's functions want them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import ptsave
from ptsave.formats import open_checkpoint
from ptsave.models.weights.mapped import ALLOCATOR_BYTES, GROUPED_BYTES, map_apart


def write(path: Path, tensors: dict[str, torch.Tensor], shift: int) -> None:
    """A safetensors file whose data begin `shift` bytes beyond a multiple of 64."""
    about, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        about[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(about).encode()
    text += b" " * (-(8 + len(text)) % 64 + shift)
    data = b"".join(tensor.numpy().tobytes() for tensor in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


class Experts(nn.Module):
    """Weights of all experts in one tensor, of which a grouped product takes one for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(3))
        self.weight = nn.Parameter(torch.randn(4, 8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ends = torch.arange(2, 10, 2, dtype=torch.int32)
        y: torch.Tensor = nn.functional.grouped_mm(x, self.weight, offs=ends)
        return y


@pytest.mark.parametrize("shift", [0, 4, 8, 12])
def test_grouped_products_run_from_a_mapped_file(tmp_path: Path, shift: int) -> None:
    path, model = tmp_path / "m.safetensors", Experts()
    write(path, {name: p.detach() for name, p in model.named_parameters()}, shift)
    (tmp_path / "m.toml").write_text(f'[model]\nclass = "{__name__}.Experts"\n')
    lazy = ptsave.load(path, config=tmp_path / "m.toml", lazy=True)
    assert lazy.weight.data_ptr() % GROUPED_BYTES == 0
    x = torch.randn(8, 8)
    with torch.no_grad():
        assert torch.equal(lazy(x), model(x))


@pytest.mark.parametrize("shift", [0, 4, 8, 32])
def test_a_model_can_have_its_weights_as_the_allocator_puts_them(tmp_path: Path, shift: int) -> None:
    path = tmp_path / "m.safetensors"
    tensors = {"a": torch.randn(3), "b": torch.randn(5, 7), "c": torch.randn(2, 3, 5)}
    write(path, tensors, shift)
    with open_checkpoint(path) as checkpoint:
        mapped = map_apart(checkpoint.tensors, ALLOCATOR_BYTES)
    assert all(torch.equal(mapped[name], tensor) for name, tensor in tensors.items())
    assert {tensor.data_ptr() % ALLOCATOR_BYTES for tensor in mapped.values()} == {0}

"""Tensors mapped lazily, and streamed into memory that is already there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ptsave.errors import CorruptError, LossyError
from ptsave.formats import open_checkpoint
from ptsave.models.weights.mapped import map_tensors
from ptsave.models.weights.streaming import STREAM_BYTES, stream_into


@pytest.fixture(params=["pt", "safetensors"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    state = {
        "big": torch.randn(STREAM_BYTES // 4 * 2 + 17),
        "half": torch.randn(5, 7).half(),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "flags": torch.tensor([True, False]),
        "c": torch.randn(3, dtype=torch.complex64),
    }
    path = tmp_path / f"a.{request.param}"
    if request.param == "pt":
        torch.save({**state, "t": state["half"].t()}, path)
        state["t"] = state["half"].t()
    else:
        safetensors.torch.save_file(state, path)
    return path, state


def test_mapped_tensors_equal_and_never_write_to_the_file(
    saved: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    path, state = saved
    before = path.read_bytes()
    with open_checkpoint(path) as checkpoint:
        found = map_tensors(checkpoint.tensors)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype is tensor.dtype
        assert found[name].stride() == tensor.stride()
        assert torch.equal(found[name], tensor), name
    found["big"].zero_()
    assert path.read_bytes() == before


def test_streaming_fills_what_is_there(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, state = saved
    targets = {name: torch.full_like(tensor, 1).contiguous() for name, tensor in state.items()}
    targets["half"] = torch.zeros(7, 5).t()  # another dtype and other strides
    where = targets["big"].data_ptr()
    moved: list[int] = []
    with open_checkpoint(path) as checkpoint:
        stream_into(targets, checkpoint.tensors, progress=moved.append)
    assert targets["big"].data_ptr() == where
    assert sum(moved) == sum(t.numel() * t.element_size() for t in state.values())
    for name, tensor in state.items():
        assert torch.equal(targets[name], tensor.to(targets[name].dtype)), name


def test_streaming_refuses_another_shape_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    weights = torch.arange(1000, dtype=torch.float32)
    torch.save({"w": weights}, path)
    with open_checkpoint(path) as checkpoint, pytest.raises(LossyError, match="'w' has the shape"):
        stream_into({"w": torch.zeros(3)}, checkpoint.tensors)
    content = bytearray(path.read_bytes())
    content[content.index(weights.numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)
    with open_checkpoint(path) as checkpoint, pytest.raises(CorruptError, match="'w' is damaged"):
        stream_into({"w": torch.zeros(1000)}, checkpoint.tensors)


@pytest.mark.slow
def test_streaming_needs_little_beside_the_model(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(64 * 1024 * 1024)}, tmp_path / "a.pt")
    code = """
import resource, sys, torch
from ptsave.formats import open_checkpoint
from ptsave.models.weights.mapped import map_tensors
from ptsave.models.weights.streaming import stream_into
target = {"w": torch.ones(64 * 1024 * 1024)}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open_checkpoint(sys.argv[1]) as checkpoint:
    stream_into(target, checkpoint.tensors)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.pt"], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) <= 32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_streaming_to_cuda(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, state = saved
    targets = {name: torch.zeros_like(tensor, device="cuda") for name, tensor in state.items()}
    with open_checkpoint(path) as checkpoint:
        stream_into(targets, checkpoint.tensors)
    assert all(torch.equal(targets[name].cpu(), tensor) for name, tensor in state.items())

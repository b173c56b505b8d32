"""What ptsave writes it reads, however many tensors there are: caps grow with a file's size."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.writers import BY_NAME
from tests.attacks import torch_files as tf

NUM_TENSORS = 280_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts' small scales, in safetensors."""
    names = [
        f"model.layers.{i % 60}.mlp.experts.{i // 60}.down_proj.weight_scale_inv" for i in range(NUM_TENSORS)
    ]
    header = {name: tf.info("F32", (1,), (4 * i, 4 * i + 4)) for i, name in enumerate(names)}
    path = tmp_path_factory.mktemp("large") / "a.safetensors"
    path.write_bytes(tf.safetensors(header, bytes(4 * NUM_TENSORS)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pt", "safetensors"])
def test_a_quarter_of_a_million_tensors(name: str, source: Path, tmp_path: Path) -> None:
    target = tmp_path / f"a.{name}"
    with open_checkpoint(source) as checkpoint:
        BY_NAME[name].write(checkpoint, target, WriteOptions(check=False, sync=False))
    with open_checkpoint(target) as checkpoint:
        assert len(checkpoint.tensors) == NUM_TENSORS

"""What ptsave writes it reads, however many tensors there are: caps grow with a file's size."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from ptsave.core import checkpoint as core_checkpoint
from ptsave.core.record import MAX_BYTES, Record
from ptsave.errors import LimitError
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.writers import BY_NAME
from tests.attacks import torch_files as tf
from tests.formats.write_cases import checkpoint_of
from tests.support import Command

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
@pytest.mark.parametrize("name", ["pt", "safetensors", "npz"])
def test_a_quarter_of_a_million_tensors(name: str, source: Path, tmp_path: Path) -> None:
    target = tmp_path / f"a.{name}"
    with open_checkpoint(source) as checkpoint:
        BY_NAME[name].write(checkpoint, target, WriteOptions(check=False, sync=False))
    with open_checkpoint(target) as checkpoint:
        assert len(checkpoint.tensors) == NUM_TENSORS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pt", "safetensors", "safetensors-sharded", "dcp"])
def test_a_record_may_be_as_long_as_its_file(name: str, tmp_path: Path) -> None:
    record = Record(extras="x" * (MAX_BYTES + 1))
    source = checkpoint_of({"w": torch.ones(2)})
    source.record = record
    BY_NAME[name].write(source, tmp_path / "a", WriteOptions(check=False, sync=False))
    with open_checkpoint(tmp_path / "a") as checkpoint:
        assert checkpoint.record is not None
        assert checkpoint.record.extras == record.extras


@pytest.mark.slow
def test_a_short_pickle_beside_many_records_may_name_them_all(tmp_path: Path) -> None:
    """Below 16 MB a pickle may cost 2.5 million units; what lies beside it in its file counts, too."""
    names = [f"w{i}" for i in range(NUM_TENSORS)]
    header = {name: tf.info("F32", (1,), (4 * i, 4 * i + 4)) for i, name in enumerate(names)}
    source, target = tmp_path / "a.safetensors", tmp_path / "a.pt"
    source.write_bytes(tf.safetensors(header, bytes(4 * NUM_TENSORS)))
    with open_checkpoint(source) as checkpoint:
        BY_NAME["pt"].write(checkpoint, target, WriteOptions(check=False, sync=False))
    with zipfile.ZipFile(target) as archive:
        assert archive.getinfo("archive/data.pkl").file_size < 16 * 2**20
    with open_checkpoint(target) as checkpoint:
        assert len(checkpoint.tensors) == NUM_TENSORS


def test_a_small_file_holds_no_long_record(tmp_path: Path) -> None:
    """A deflated one would be of any length."""
    text = b'{"schema_version":1,"extras":"' + b"x" * MAX_BYTES + b'"}'
    path = tmp_path / "a.pt"
    path.write_bytes(tf.pt({"w": tf.tensor()}))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/ptsave.json", text)
    with pytest.raises(LimitError, match="record_bytes"):
        open_checkpoint(path)


FORMATS = ["safetensors", "pt", "npz", "safetensors-sharded", "dcp"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("is_small", [True, False])
def test_the_tensors_of_a_small_file_are_counted(
    name: str, is_small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the size of the whole file or folder, whatever a shard has."""
    state = {f"w{i}": torch.zeros(1) for i in range(5)} | {"big": torch.zeros(1 if is_small else 17 << 18)}
    path = tmp_path / "file"
    BY_NAME[name].write(checkpoint_of(state), path, WriteOptions(record=False))
    monkeypatch.setattr(core_checkpoint, "SMALL_FILE_TENSORS", 5)
    with open_checkpoint(path) as opened:
        if is_small:
            with pytest.raises(LimitError, match="tensors = 5 "):
                _ = opened.tensors
        else:
            assert len(opened.tensors) == 6


@pytest.mark.slow
def test_a_hundred_thousand_tensors_in_a_small_file(tmp_path: Path, ptsave_here: Command) -> None:
    """What the contract says of `inspect`, for every command: no cap refuses them."""
    names = [f"layer.{i}.weight" for i in range(100_000)]
    header = {name: tf.info("F32", (1,), (4 * i, 4 * i + 4)) for i, name in enumerate(names)}
    path = tmp_path / "a.safetensors"
    path.write_bytes(tf.safetensors(header, bytes(4 * len(names))))
    assert path.stat().st_size < 16 * 1024**2
    assert "100,000 tensors" in ptsave_here("inspect", path).stdout
    for target in ("a.pt", "a.npz", "sharded --format safetensors-sharded", "dcp --format dcp"):
        ptsave_here("convert", path, *target.split())
    ptsave_here("verify", "a.pt", "--against", path, "--checks", "against,bytes,finite,safe,whole")
    config = Path(__file__).parents[2] / "configs" / "simple_net.toml"
    assert "100000 unexpected" in ptsave_here("verify", path, "-c", config, code=1).stdout
    fresh = ("--allow-missing", "*", "--allow-unexpected", "*", "--min-coverage", "0")
    ptsave_here("load", path, "-c", config, *fresh)

"""verify under torchrun: one verdict, from bytes that the ranks share and a model that they run together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.torch_layer.parallel.launch import ptsave, torchrun
from tests.torch_layer.parallel.models import CODE, write_models

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its configs, and its weights, recorded by one process."""
    folder = tmp_path_factory.mktemp("made")
    write_models(folder)
    ptsave(folder, "save", "plain.toml", "m.safetensors")
    ptsave(folder, "convert", "m.safetensors", "m.dcp", "--format", "dcp")
    return folder


@pytest.fixture
def studio(made: Path, tmp_path: Path) -> Path:
    """A copy of it for each test."""
    return Path(shutil.copytree(made, tmp_path / "studio"))


def verify(studio: Path, path: str, config: str, *more: str, code: int = 0) -> dict[str, Any]:
    """The one JSON object that the ranks print."""
    done = torchrun(2, "verify", path, "-c", config, "--json", *more, cwd=studio)
    assert done.returncode == code, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["verdict"] == ("no" if code else "yes"), result
    return result


def lines(result: dict[str, Any], check: str) -> list[tuple[str, str, str]]:
    return [(f["level"], f["where"], f["message"]) for f in result["findings"] if f["check"] == check]


def test_sound_weights_over_two_ranks(studio: Path) -> None:
    """Sharded, the outputs are those of one process, bit by bit; split, as far as rounding goes."""
    result = verify(studio, "m.dcp", "dp.toml")
    within, digests, records = lines(result, "bytes")
    assert within == ("ok", "", "23 tensors lie within the bounds of the file")
    assert digests == ("ok", "", "23 tensors match their CRC-32 and recorded xxh3_128 digest")
    assert records[2].endswith("records match their CRC-32")
    assert lines(result, "finite") == [("ok", "", "22 floating-point tensors, every element finite")]
    assert lines(result, "behaviour")[0][0] == "ok"
    assert lines(result, "roundtrip")[0][0] == "skipped"
    (level, _, message) = lines(verify(studio, "m.safetensors", "tp2.toml"), "behaviour")[0]
    assert level == "ok"
    assert message == "bitwise equal" or message.startswith("explained by rounding")


def test_a_damaged_tensor_is_named(studio: Path) -> None:
    path = studio / "m.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 16
    path.write_bytes(data)
    result = verify(studio, "m.safetensors", "dp.toml", "--checks", "bytes,keys", code=1)
    (bad,) = [where for level, where, _ in lines(result, "bytes") if level == "fail"]
    assert bad
    assert bad in result["cause"]


@pytest.mark.parametrize("config", ["dp.toml", "tp2.toml"])
def test_changed_code_is_found_where_it_departs(studio: Path, config: str) -> None:
    (studio / "odd.py").write_text(CODE.replace("self.gain * self.down", "self.gain * 1.5 * self.down"))
    result = verify(studio, "m.safetensors", config, "--checks", "behaviour", code=1)
    departs = [where for level, where, message in lines(result, "behaviour") if "first to depart" in message]
    assert departs == ["blocks.0"]
    assert "forward of odd.Block differs" in result["cause"]

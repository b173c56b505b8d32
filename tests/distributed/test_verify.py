"""verify under torchrun: one verdict, from bytes that the ranks share and a model that they run together."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ptsave as package
from tests.distributed.launch import environment, errors, ptsave, torchrun
from tests.distributed.models import CODE, write_models
from tests.schemas import faults
from tests.sign.keys_made import write_pair

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
    assert faults(result, "verify") == []
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
    assert message == "bitwise equal" or message.startswith(
        "explained by rounding (modules were not run alone: several ranks run the model)"
    )


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


def test_what_the_model_itself_says_of_dtensors_is_no_fault_of_the_plan(studio: Path) -> None:
    failing = CODE.replace("for block in", "raise RuntimeError('no DTensor here')\n        for block in")
    (studio / "odd.py").write_text(failing)
    result = verify(studio, "m.safetensors", "dp.toml", "--checks", "behaviour", code=1)
    ((level, _, message),) = [line for line in lines(result, "behaviour") if "does not run" in line[2]]
    assert level == "fail"
    assert "no DTensor here" in message


def test_a_run_is_verified_by_one_rank(studio: Path) -> None:
    with package.Checkpoints(studio / "run") as keeper:
        for step in range(2):
            keeper.save(package.TrainingState(model=torch.nn.Linear(3, 2)), step=step)
    done = torchrun(2, "verify", "run", cwd=studio)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("yes: run passed bytes")
    assert done.stdout.count("yes: ") == 1
    newest = sorted((studio / "run").glob("*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:900])
    done = torchrun(2, "verify", "run", "--json", "--report", "verdict.json", cwd=studio)
    assert done.returncode == 1
    assert json.loads(done.stdout)["cause"].endswith("a training would go on from step-000000000.pt")
    assert json.loads((studio / "verdict.json").read_text()) == json.loads(done.stdout)
    assert errors(done.stderr) == []


@pytest.mark.parametrize(
    ("flags", "word"),
    [(["--checks", "bites"], "bites"), (["--against", "m.dcp"], "--against is for one process")],
)
def test_a_wrong_flag_is_named_by_one_rank(studio: Path, flags: list[str], word: str) -> None:
    done = torchrun(2, "verify", "m.dcp", "-c", "dp.toml", *flags, cwd=studio)
    assert done.returncode == 1
    (line,) = errors(done.stderr)
    assert word in line


def test_the_others_wait_for_the_one_that_speaks(studio: Path) -> None:
    """torchrun ends all ranks as soon as one has ended, the one that speaks too."""
    names = ("TORCHELASTIC_RUN_ID", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    argv = [sys.executable, "-m", "ptsave", "verify", "m.dcp", "--checks", "bites"]
    second, first = (
        subprocess.Popen(
            argv,
            cwd=studio,
            env=environment(RANK=rank, **dict.fromkeys(names, "1")),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "10"
    )
    assert "bites" in first.communicate()[1]
    assert first.returncode == 2
    assert second.poll() is None
    second.terminate()
    assert second.communicate()[1] == ""


def test_the_checks_are_listed_once(studio: Path) -> None:
    done = torchrun(2, "verify", "--list-checks", "--json", cwd=studio)
    assert done.returncode == 0, done.stderr
    assert "roundtrip" in json.loads(done.stdout)["checks"]


def test_signatures_and_pins(studio: Path) -> None:
    """The ranks share the reading for both; what departs from its pin is loaded on none."""
    secret, public = write_pair(studio, "k")
    ptsave(studio, "convert", "m.dcp", "signed.dcp", "--format", "dcp", "--sign", str(secret))
    ptsave(studio, "verify", "signed.dcp", "--signed-by", str(public), "--pin")
    result = verify(studio, "signed.dcp", "dp.toml", "--signed-by", str(public), "--checks", "signature,keys")
    kinds = [f["kind"] for f in result["findings"] if f["check"] == "signature"]
    assert kinds == ["pinned", "signed", "beside_signature"]
    ptsave(studio, "save", "plain.toml", "other.pt", "--seed", "3")
    ptsave(studio, "convert", "other.pt", "signed.dcp", "--format", "dcp", "--overwrite")
    done = torchrun(2, "load", "signed.dcp", "-c", "dp.toml", cwd=studio)
    assert done.returncode
    assert errors(done.stderr) == [
        "error: it is not what ptsave.lock pins: values of tensors are others (signed.dcp)"
    ]

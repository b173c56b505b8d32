"""convert to an exported program: it gets its name once it has run beside the model, and not before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

import ptsave
from ptsave.errors import RefusedError, UsageError
from ptsave.export.onnx import check_installed
from tests.export.conftest import Prepare
from tests.schemas import faults
from tests.sign.keys_made import write_pair
from tests.support import Command

X = '[inputs.x]\nshape = ["batch=4", 6]'
XY = '[inputs.x]\nshape = ["batch=4", 4]\n[inputs.y]\nshape = ["batch=4", 4]\nseed = 1'


FORMATS = ("pt2", pytest.param("onnx", marks=pytest.mark.slow))


def test_a_pt2_computes_what_the_model_does(prepare: Prepare, ptsave_here: Command, tmp_path: Path) -> None:
    checkpoint, config = prepare("Mlp", X)
    done = ptsave_here("convert", checkpoint, "model.pt2", "-c", config, "--json")
    result = json.loads(done.stdout)
    assert faults(result, "convert") == []
    assert result["format"] == "pt2"
    assert result["proof"]["verdict"] == "yes"
    places = [f["where"] for f in result["proof"]["findings"] if f["check"] == "behaviour"]
    assert places == ["output", "output (batch=1)", "output (batch=5)"]
    model = ptsave.load(checkpoint, config=config)
    program = torch.export.load(tmp_path / "model.pt2").module()
    x = torch.randn(7, 6)
    torch.testing.assert_close(program(x=x), model(x), rtol=0, atol=0)


def test_what_was_recorded_is_computed_again_bit_by_bit(prepare: Prepare, ptsave_here: Command) -> None:
    """A linear layer adds its bias elsewhere where its weights need no gradients."""
    checkpoint, config = prepare("Lstm", '[inputs.x]\nshape = ["batch=4", 7, 6]')
    ptsave_here("convert", checkpoint, "model.pt2", "-c", config)
    done = ptsave_here("verify", "model.pt2", "-c", config, "--checks", "behaviour").stdout
    assert "bitwise equal" in done
    assert "explained" not in done


@pytest.mark.parametrize("format", FORMATS)
def test_equal_input_gives_equal_bytes(
    format: str, prepare: Prepare, ptsave_here: Command, tmp_path: Path
) -> None:
    checkpoint, config = prepare("Mlp", X)
    for name in ("one", "other"):
        ptsave_here("convert", checkpoint, f"{name}.{format}", "-c", config)
    assert (tmp_path / f"one.{format}").read_bytes() == (tmp_path / f"other.{format}").read_bytes()


@pytest.mark.parametrize("format", FORMATS)
def test_the_weights_of_a_program_are_those_of_the_checkpoint(
    format: str, prepare: Prepare, ptsave_here: Command, tmp_path: Path
) -> None:
    """A signature of the checkpoint, in a file of its own, holds for the program."""
    checkpoint, config = prepare("Mlp", X)
    secret, public = write_pair(tmp_path, "k")
    signed = tmp_path / "signed.pt"
    ptsave_here("convert", checkpoint, signed, "--sign", secret, "--signature", "signature")
    ptsave_here("convert", signed, f"model.{format}", "-c", config)
    assert "same: 6 tensors" in ptsave_here("inspect", checkpoint, "--diff", f"model.{format}").stdout
    check = ("--signed-by", public, "--signature", "signature", "--checks", "signature")
    assert "signed 6 tensors" in ptsave_here("verify", f"model.{format}", *check).stdout


@pytest.mark.parametrize("format", FORMATS)
def test_a_program_is_signed_and_keeps_the_signatures_of_its_checkpoint(
    format: str, prepare: Prepare, ptsave_here: Command, tmp_path: Path
) -> None:
    checkpoint, config = prepare("Mlp", X)
    (first, first_public), (second, second_public) = (write_pair(tmp_path, name) for name in ("a", "b"))
    ptsave_here("convert", checkpoint, "signed.pt", "--sign", first)
    done = ptsave_here(
        "convert", "signed.pt", f"model.{format}", "-c", config, "--sign", second, "--signature", "s"
    )
    assert "signed by SHA256:" in done.stderr
    both = ("--signed-by", first_public, "--signed-by", second_public, "--checks", "signature")
    assert ptsave_here("verify", f"model.{format}", *both).stdout.count("signed 6 tensors") == 2
    check = ("--signed-by", second_public, "--checks", "signature")
    assert "signed 6 tensors" in ptsave_here("verify", "signed.pt", *check, "--signature", "s").stdout
    ptsave_here("convert", f"model.{format}", "back.safetensors", "--extras", "drop")
    assert "signed 6 tensors" in ptsave_here("verify", "back.safetensors", *check).stdout
    ptsave_here("save", config, "other.pt", "--seed", "7", "--no-behaviour")
    ptsave_here("convert", "other.pt", f"other.{format}", "-c", config)
    done = ptsave_here("verify", f"other.{format}", *check, "--signature", "s", code=1)
    assert "with other values" in done.stdout


@pytest.mark.parametrize("format", FORMATS)
def test_what_of_a_program_is_not_signed(
    format: str, prepare: Prepare, ptsave_here: Command, tmp_path: Path
) -> None:
    """Constants that it computes with, and what of the state dict it has not."""
    checkpoint, config = prepare("WithConstants", X)
    secret, public = write_pair(tmp_path, "k")
    done = ptsave_here("convert", checkpoint, f"model.{format}", "-c", config, "--sign", secret)
    if format == "onnx":
        assert "not in the program, so not signed with it: norm.num_batches_tracked" in done.stderr
    check = ("--signed-by", public, "--checks", "signature")
    done = ptsave_here("verify", f"model.{format}", *check)
    assert "of the program (such as" in done.stdout
    assert ptsave_here("verify", f"model.{format}", *check, "--strict", code=1)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("weights", "in the code of tests.export.models.Mlp before 'fc2'"),
        ("eps", "computes otherwise: output, output (batch=1), output (batch=5) differ"),
        pytest.param("activation", "the program computes otherwise: output", marks=pytest.mark.slow),
        pytest.param("fixed batch", "the model fixes the size 'batch'", marks=pytest.mark.slow),
        pytest.param("train mode", "the program computes otherwise: output", marks=pytest.mark.slow),
        pytest.param("dtype", "the program computes otherwise: output", marks=pytest.mark.slow),
    ],
)
def test_a_program_that_computes_otherwise_gets_no_name(
    format: str, fault: str, cause: str, prepare: Prepare, ptsave_here: Command, tmp_path: Path
) -> None:
    checkpoint, config = prepare("Mlp", X, fault=fault)
    code = UsageError.exit_code if fault == "fixed batch" else 4
    to = f"model.{format}"
    done = ptsave_here("convert", checkpoint, to, "-c", config, "--report", "r.json", code=code)
    assert cause in done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"model.toml", "model.safetensors", "r.json"}
    if code == 4:
        report = json.loads((tmp_path / "r.json").read_text())
        assert report["verdict"] == "no"
        by_layer = {call["module"]: call["relative"] for call in report["growth"]}
        assert by_layer.get("fc1", 0) < 1e-6  # the program with other weights does not have it
        assert by_layer["fc2"] > 1e-6


@pytest.mark.parametrize("format", FORMATS)
def test_swapped_inputs_are_another_function(format: str, prepare: Prepare, ptsave_here: Command) -> None:
    checkpoint, config = prepare("TwoInputs", XY, fault="swapped")
    done = ptsave_here("convert", checkpoint, f"model.{format}", "-c", config, code=4)
    assert "the program computes otherwise: output" in done.stderr
    assert "from 'a' on (torch.nn.modules.linear.Linear)" in done.stderr


def test_an_old_file_stays_where_the_new_one_fails(
    prepare: Prepare, ptsave_here: Command, tmp_path: Path
) -> None:
    checkpoint, config = prepare("Mlp", X, fault="eps")
    (tmp_path / "model.pt2").write_bytes(b"old")
    ptsave_here("convert", checkpoint, "model.pt2", "-c", config, code=4)
    ptsave_here("convert", checkpoint, "model.pt2", "-c", config, "--overwrite", code=4)
    assert (tmp_path / "model.pt2").read_bytes() == b"old"


@pytest.mark.slow
def test_half_precision_is_judged_by_what_rounds_there(prepare: Prepare, ptsave_here: Command) -> None:
    checkpoint, config = prepare("Mlp", X)
    for dtype in ("float16", "bfloat16"):
        ptsave_here("convert", checkpoint, f"{dtype}.pt2", "-c", config, "--dtype", dtype)
        shown = json.loads(ptsave_here("inspect", f"{dtype}.pt2", "--json").stdout)
        assert {tensor["dtype"] for tensor in shown["tensors"]} == {dtype}


def test_a_model_that_draws_random_numbers_has_no_program(prepare: Prepare, ptsave_here: Command) -> None:
    checkpoint, config = prepare("Noisy", X)
    done = ptsave_here("convert", checkpoint, "model.pt2", "-c", config, code=4)
    assert "not deterministic" in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--only", "fc*"], "--only would not be used"),
        (["--opset", "18"], "--opset would not be used: it is a version of ONNX"),
        (["--shard-size", "1GB"], "--shard-size would not be used"),
    ],
)
def test_a_flag_without_use_is_refused(
    flags: list[str], said: str, prepare: Prepare, ptsave_here: Command
) -> None:
    checkpoint, config = prepare("Mlp", X)
    assert said in ptsave_here("convert", checkpoint, "model.pt2", "-c", config, *flags, code=2).stderr


def test_a_program_needs_a_config_with_inputs(prepare: Prepare, ptsave_here: Command) -> None:
    checkpoint, config = prepare("Mlp", "")
    assert "-c CONFIG" in ptsave_here("convert", checkpoint, "model.pt2", code=2).stderr
    done = ptsave_here("convert", checkpoint, "model.pt2", "-c", config, code=2)
    assert "add an [inputs] table" in done.stderr
    with pytest.raises(UsageError, match="exported from a model"):
        ptsave.convert(checkpoint, "model.pt2")
    done = ptsave_here("convert", checkpoint, "model.pt", "-c", config, code=2)
    assert "--config would not be used" in done.stderr


@pytest.mark.slow
def test_an_onnx_model_computes_what_the_model_does(
    prepare: Prepare, ptsave_here: Command, tmp_path: Path
) -> None:
    checkpoint, config = prepare("Mlp", X)
    done = ptsave_here("convert", checkpoint, "model.onnx", "-c", config, "--opset", "999", code=4)
    assert "not 999 (--opset)" in done.stderr  # torch writes another one, and says so in a message alone
    done = ptsave_here("convert", checkpoint, "model.onnx", "-c", config, "--json", "--opset", "18")
    assert json.loads(done.stdout)["proof"]["verdict"] == "yes"
    model = ptsave.load(checkpoint, config=config)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(7, 6)
    (output,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), model(x))
    found = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(found, full_check=True)
    assert [one.version for one in found.opset_import if not one.domain] == [18]
    assert found.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert b"stack_trace" not in (tmp_path / "model.onnx").read_bytes()


@pytest.mark.slow
def test_weights_beyond_what_one_file_holds_lie_beside_it(
    prepare: Prepare, ptsave_here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptsave.export.onnx.MAX_INLINE_BYTES", 100)
    checkpoint, config = prepare("Mlp", X)
    kept = {"model.toml", "model.safetensors"}
    ptsave_here("convert", checkpoint, "model.onnx", "-c", config)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "model.onnx", "model.onnx.data"}
    assert "yes: " in ptsave_here("verify", "model.onnx").stdout
    ptsave_here("convert", checkpoint, "model.onnx", "-c", config, "--overwrite")
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "model.onnx", "model.onnx.data.2"}
    assert "yes: " in ptsave_here("verify", "model.onnx").stdout
    checkpoint, config = prepare("Mlp", X, fault="eps")
    ptsave_here("convert", checkpoint, "model.onnx", "-c", config, "--overwrite", code=4)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "model.onnx", "model.onnx.data.2"}
    assert "yes: " in ptsave_here("verify", "model.onnx").stdout


KILLED = """
import os, signal, sys
import ptsave.export.convert as convert, ptsave.export.onnx as onnx
onnx.MAX_INLINE_BYTES = 100
convert._verdict = lambda *given, **options: os.kill(os.getpid(), signal.SIGKILL)
from ptsave.cli.main import main
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no process is killed there")
@pytest.mark.parametrize("has_old", [False, True])
def test_the_weights_of_a_killed_export_are_removed_by_the_next(
    has_old: bool, prepare: Prepare, ptsave_here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the weights have their name, and the model that names them has not."""
    checkpoint, config = prepare("Mlp", X)
    monkeypatch.setattr("ptsave.export.onnx.MAX_INLINE_BYTES", 100)
    words = ("convert", str(checkpoint), "model.onnx", "-c", str(config), "--overwrite")
    if has_old:
        ptsave_here(*words)
    before = set(tmp_path.iterdir())
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *words], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == -signal.SIGKILL
    data = "model.onnx.data.2" if has_old else "model.onnx.data"
    assert {one.name for one in set(tmp_path.iterdir()) - before if not one.name.startswith(".")} == {data}
    (tmp_path / "mine.onnx.data").write_bytes(b"")
    ptsave_here(*words)
    kept = {"model.toml", "model.safetensors", "mine.onnx.data", "model.onnx"}
    assert {one.name for one in tmp_path.iterdir()} == {*kept, data if has_old else "model.onnx.data"}
    assert "yes: " in ptsave_here("verify", "model.onnx").stdout


def test_what_torch_cannot_translate_is_named_with_its_reason(prepare: Prepare, ptsave_here: Command) -> None:
    checkpoint, config = prepare("ThreeDimensions", '[inputs.x]\nshape = ["batch=4", 5, 6]')
    done = ptsave_here("convert", checkpoint, "model.onnx", "-c", config, code=4)
    why = "cannot translate aten.scaled_dot_product_attention.default: only 4D query, key, and value"
    assert why in done.stderr


def test_without_the_packages_of_onnx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptsave.export.onnx.PACKAGES", ("onnx", "onnx_of_tomorrow"))
    with pytest.raises(RefusedError, match="onnx_of_tomorrow, which is not installed") as caught:
        check_installed()
    assert caught.value.hint == "pip install 'ptsave[export]'"

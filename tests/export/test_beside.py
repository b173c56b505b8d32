"""verify --against of a program: its weights and what it computes, beside the model of a config."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import ptsave
from ptsave.own_process import own_process, without_warnings
from tests.export.conftest import Prepare
from tests.support import Command

X = '[inputs.x]\nshape = ["batch=4", 6]'


def edited(path: Path, *, weights: bool = False, eps: bool = False, constant: bool = False) -> None:
    """Change a model with the onnx library, and take ptsave's record out of it."""
    model = onnx.load(path)
    del model.metadata_props[:]
    if weights:
        tensor = next(one for one in model.graph.initializer if one.name == "fc1.weight")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.01, tensor.name))
    if eps:
        (node,) = (one for one in model.graph.node if one.op_type == "LayerNormalization")
        next(one for one in node.attribute if one.name == "epsilon").f = 1e-2
    if constant:
        model.graph.initializer.append(
            numpy_helper.from_array(numpy_helper.to_array(model.graph.initializer[0]), "own")
        )
    onnx.save(model, path)


def test_a_pt2_is_compared_with_its_model_both_ways_round(prepare: Prepare, ptsave_here: Command) -> None:
    checkpoint, config = prepare("Mlp", X)
    ptsave_here("convert", checkpoint, "model.pt2", "-c", config)
    ptsave_here("convert", checkpoint, "bare.pt2", "-c", config, "--no-record")
    to = ("-c", config, "--checks", "against", "-v")
    done = ptsave_here("verify", "model.pt2", "--against", checkpoint, *to).stdout
    assert "against    ok       output (batch=5): bitwise equal" in done
    done = ptsave_here("verify", checkpoint, "--against", "model.pt2", *to).stdout
    assert "against    ok       output (batch=1): bitwise equal" in done
    config.write_text(config.read_text().replace(X, ""))
    assert "yes: " in ptsave_here("verify", "model.pt2", "--against", checkpoint, *to).stdout
    done = ptsave_here("verify", "bare.pt2", "--against", checkpoint, *to, code=1).stdout
    assert "the config has no [inputs]" in done
    config.write_text(f"{config.read_text()}\n{X}")
    ptsave_here("convert", checkpoint, "half.pt2", "-c", config, "--dtype", "float16")
    done = ptsave_here("verify", "half.pt2", "--against", checkpoint, "-c", config).stdout
    assert "6 tensors are float32 there and float16 here, cast" in done
    ptsave_here("save", config, "other.safetensors", "--set", "model.args.width=8", "--seed", "1")
    done = ptsave_here("verify", "model.pt2", "--against", "other.safetensors", "-c", config, code=1).stdout
    assert "not the same weights as other.safetensors: 4 of 6 tensors differ" in done
    assert "and another graph" not in done


@pytest.mark.slow
def test_what_differs_of_an_onnx_model_is_told_without_a_record(
    prepare: Prepare, ptsave_here: Command, tmp_path: Path
) -> None:
    checkpoint, config = prepare("Mlp", X)
    ptsave_here("convert", checkpoint, "model.onnx", "-c", config)
    made = (tmp_path / "model.onnx").read_bytes()

    def verdict(*, code: int = 1, **changes: bool) -> str:
        (tmp_path / "model.onnx").write_bytes(made)
        edited(tmp_path / "model.onnx", **changes)
        done = ptsave_here("verify", "model.onnx", "--against", checkpoint, "-c", config, "-v", code=code)
        return done.stdout

    assert "against    ok       output (batch=5): explained by rounding" in verdict(code=0)
    done = verdict(code=0, constant=True)
    assert "1 constant of the program that the exporter made: own" in done
    done = verdict(eps=True)
    assert "the program computes otherwise: output" in done
    assert "in the code of tests.export.models.Mlp before 'fc2'" in done
    weights = f"because    not the same weights as {checkpoint}: 1 of 6 tensors differs (fc1.weight)"
    assert weights == verdict(weights=True).splitlines()[-2]
    done = verdict(weights=True, eps=True).splitlines()[-2]
    assert done.startswith(f"{weights}; and another graph: the program computes otherwise")
    (tmp_path / "model.onnx").write_bytes(made)
    done = ptsave_here("verify", "model.onnx", "--against", checkpoint, code=0).stdout
    assert "against    ok       6 tensors are bitwise equal" in done


@pytest.mark.slow
def test_a_program_of_torch_s_own_exporter_is_compared(
    prepare: Prepare, ptsave_here: Command, tmp_path: Path
) -> None:
    checkpoint, config = prepare("Mlp", X)
    model = ptsave.load(checkpoint, config=config)
    path, x = tmp_path / "model.onnx", torch.zeros(4, 6)
    with own_process(), without_warnings():
        torch.onnx.export(model, (x,), path, verbose=False)
    done = ptsave_here("verify", path, "--against", checkpoint, "-c", config, code=1).stdout
    assert "the exported program is fixed: at batch=1, where the model runs, it does not" in done
    with own_process(), without_warnings():
        torch.onnx.export(model, (x,), path, verbose=False, dynamic_shapes={"x": {0: "batch"}})
    done = ptsave_here("verify", path, "--against", checkpoint, "-c", config).stdout
    assert "yes: " in done


@pytest.mark.slow
def test_a_program_with_inputs_and_outputs_of_bfloat16_is_compared(
    prepare: Prepare, ptsave_here: Command, tmp_path: Path
) -> None:
    checkpoint, config = prepare("NarrowPorts", f'{X}\ndtype = "bfloat16"')
    model = ptsave.load(checkpoint, config=config)
    path, x = tmp_path / "model.onnx", torch.zeros(4, 6, dtype=torch.bfloat16)
    with own_process(), without_warnings():
        torch.onnx.export(model, (x,), path, verbose=False, dynamic_shapes={"x": {0: "batch"}})
    against = ("verify", path, "--against", checkpoint, "-c", config, "-v")
    assert "against    ok       output (batch=5): " in ptsave_here(*against).stdout
    edited(path, weights=True)
    assert "1 of 2 tensors differs (fc1.weight)" in ptsave_here(*against, code=1).stdout
    config.write_text(config.read_text().replace("bfloat16", "float32"))
    assert "expected: (tensor(bfloat16))" in ptsave_here(*against, code=1).stdout


@pytest.mark.slow
def test_a_program_that_onnxruntime_dies_of_is_a_no(
    prepare: Prepare, ptsave_here: Command, tmp_path: Path
) -> None:
    """Version 1.32 dies of the loop that torch makes of an embedding bag."""
    table = "[inputs.{}]\nshape = [2, 4]\ndtype = 'int64'\nlow = 1\nhigh = 3\n"
    inputs = table.format("tokens") + table.format("mask")
    checkpoint, config = prepare("tests.export.nets.Bag", inputs)
    done = ptsave_here("convert", checkpoint, "model.onnx", "-c", config, code=4)
    assert "onnxruntime died of it (SIG" in done.stderr
    assert not (tmp_path / "model.onnx").exists()
    model = ptsave.load(checkpoint, config=config)
    path, one = tmp_path / "foreign.onnx", torch.ones(2, 4, dtype=torch.int64)
    with own_process(), without_warnings():
        torch.onnx.export(model, (one, one), path, verbose=False, optimize=False)
    done = ptsave_here("verify", path, "--against", checkpoint, "-c", config, code=1)
    assert "onnxruntime died of it (SIG" in done.stdout


@pytest.mark.slow
def test_a_layer_that_the_graph_does_not_use_is_not_missing(
    prepare: Prepare, ptsave_here: Command, tmp_path: Path
) -> None:
    checkpoint, config = prepare("Spare", X)
    ptsave_here("convert", checkpoint, "model.onnx", "-c", config)
    unused = "keys       warn     2 tensors are not used by the program: spare.weight, spare.bias"
    against = ("verify", "model.onnx", "--against", checkpoint, "-c", config)
    for command in (against, ("verify", "model.onnx", "-c", config)):
        done = ptsave_here(*command).stdout
        assert unused in done
        assert "because" not in done
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((4, 6), "float32"), "x"))
    onnx.save(model, tmp_path / "model.onnx")
    done = ptsave_here("verify", "model.onnx", code=1).stdout
    assert "because    another graph: default of x (initializer)" in done
    model.graph.initializer.pop()
    onnx.save(model, tmp_path / "model.onnx")
    edited(tmp_path / "model.onnx")
    assert unused in ptsave_here(*against).stdout
    assert "spare.weight: missing" in ptsave_here("verify", "model.onnx", "-c", config, code=1).stdout

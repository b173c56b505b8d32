"""Models and trainings on the emulation of Windows."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from tests.windows.scene import ONNX, TORCH, command, environment, linux_only, on_windows, written

pytestmark = [linux_only, pytest.mark.slow]

CONFIG = """
[model]
class = "ptsave.examples.SimpleNet"
[model.args]
input_size = 10
hidden_size = 5
output_size = 2
[inputs.x]
shape = [4, 10]
dtype = "float32"
"""


def whole_models() -> None:
    from ptsave.cli.main import run

    for name in ("model.pt", "model.safetensors", "shards", "dcp"):
        form = ["--format", name] if name == "dcp" else []
        form = ["--format", "safetensors-sharded"] if name == "shards" else form
        assert run(["save", "model.toml", name, *form]) == 0
        assert run(["save", "model.toml", name, *form]) == 4
        assert run(["save", "model.toml", name, *form, "--overwrite"]) == 0
        assert run(["load", name, "--trust-recorded"]) == 0
        assert run(["verify", name, "-c", "model.toml"]) == 0
        assert run(["verify", name, "-c", "model.toml", "--record"]) == 0
        assert run(["verify", name, "-c", "model.toml", "--against", "model.pt"]) == 0
    assert run(["load", "model.pt", "--trust-recorded", "--outputs", "CON.npz"]) == 4
    assert run(["load", "model.pt", "--trust-recorded", "--outputs", "out.npz"]) == 0


def test_models_are_saved_loaded_and_verified(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(CONFIG)
    output = on_windows(whole_models, tmp_path, TORCH)
    assert "Traceback" not in output
    assert sorted(torch.load(tmp_path / "model.pt", weights_only=True)) == [
        "fc1.bias",
        "fc1.weight",
        "fc2.bias",
        "fc2.weight",
    ]
    assert not list(tmp_path.rglob("*tmp*"))


def mapped_models() -> None:
    import gc
    import os

    import pytest
    import torch

    import ptsave
    from ptsave.errors import WriteError
    from ptsave.examples import SimpleNet

    for name in ("model.pt", "model.safetensors"):
        ptsave.save(name, SimpleNet(10, 5, 2))
        model = ptsave.load(name, config="model.toml", lazy=True)
        before = model.fc1.weight.detach().clone()
        with pytest.raises(WriteError, match="in use"):
            ptsave.save(name, model, overwrite=True)
        ptsave.save(f"copy-{name}", model)
        del model
        gc.collect()
        ptsave.save(name, SimpleNet(10, 5, 2), overwrite=True)
        with ptsave.open(f"copy-{name}") as opened:
            assert torch.equal(opened["fc1.weight"], before)
            state = opened.state_dict(lazy=True)
        with pytest.raises(PermissionError):
            os.unlink(f"copy-{name}")
        assert torch.equal(state["fc1.weight"], before)
    loaded = ptsave.load("model.pt", config="model.toml")
    ptsave.save("model.pt", loaded, overwrite=True)


def test_a_model_that_is_mapped_is_not_saved_over(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(CONFIG)
    on_windows(mapped_models, tmp_path, TORCH)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".mapped_models.py",
        "copy-model.pt",
        "copy-model.safetensors",
        "model.pt",
        "model.safetensors",
        "model.toml",
    ]


def training() -> None:
    import os
    import warnings

    import pytest
    import torch
    from torch import nn

    import ptsave

    def parts() -> tuple[nn.Module, torch.optim.Optimizer, ptsave.TrainingState]:
        model = nn.Linear(16, 4)
        optimizer = torch.optim.AdamW(model.parameters())
        return model, optimizer, ptsave.TrainingState(model=model, optimizer=optimizer)

    def train(keeper: ptsave.Checkpoints, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            model(torch.ones(2, 16)).sum().backward()
            optimizer.step()
            keeper.save(state, step=step, metrics={"loss": float(step)})

    def there() -> list[str]:
        return sorted(os.listdir("run"))

    model, optimizer, state = parts()
    with ptsave.Checkpoints("run", keep_last=2, keep_best=("loss", "min")) as keeper:
        assert keeper.resume(state) == 0
        keeper.on_signal()
        train(keeper, range(5))
        keeper.wait()
        steps = [f"step-{step:09d}.pt" for step in (0, 3, 4)]
        assert there() == [".ptsave-lock", *steps]
        with pytest.raises(PermissionError):
            os.unlink("run\\.ptsave-lock")
    assert there() == steps
    weights = model.weight.clone()

    model, optimizer, state = parts()
    with ptsave.Checkpoints("run", keep_last=2, keep_best=("loss", "min")) as keeper:
        assert keeper.resume(state) == 5
        assert torch.equal(model.weight, weights)
        with open(f"run\\{steps[1]}", "rb"), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            train(keeper, range(5, 7))
            keeper.wait()
        assert "in use" in str(told[0].message), told
        assert steps[1] in there()
        train(keeper, range(7, 8))
        keeper.wait()
        assert there() == [".ptsave-lock", steps[0], "step-000000006.pt", "step-000000007.pt"]


def test_a_training_saves_resumes_and_removes_what_nobody_has_open(tmp_path: Path) -> None:
    on_windows(training, tmp_path, TORCH)


def endless() -> None:
    import time

    import torch
    from torch import nn

    import ptsave

    keeper = ptsave.Checkpoints("run")
    model = nn.Linear(2, 2)
    state = ptsave.TrainingState(model=model, optimizer=torch.optim.SGD(model.parameters()))
    start = keeper.resume(state)
    keeper.save(state, step=start)
    keeper.wait()
    print("saved", start, flush=True)
    time.sleep(200)


def second() -> None:
    import torch
    from torch import nn

    import ptsave
    from ptsave.cli.main import run
    from ptsave.errors import RefusedError

    model = nn.Linear(2, 2)
    state = ptsave.TrainingState(model=model, optimizer=torch.optim.SGD(model.parameters()))
    with ptsave.Checkpoints("run") as keeper:
        start = keeper.resume(state)
        try:
            keeper.save(state, step=start)
        except RefusedError as error:
            print("refused", error)
    assert run(["inspect", "run"]) == 0


def test_one_training_a_folder_and_a_killed_one_is_gone_at_once(tmp_path: Path) -> None:
    first = subprocess.Popen(
        command(written(endless, tmp_path), TORCH),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "saved 0\n"
        refused = on_windows(second, tmp_path, TORCH)
        assert f"refused another training writes its checkpoints here: process {first.pid} on" in refused
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    assert (tmp_path / "run" / ".ptsave-lock").exists()
    assert "refused" not in on_windows(second, tmp_path, TORCH)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "step-000000000.pt",
        "step-000000001.pt",
    ]


def programs() -> None:
    from ptsave.cli.main import run

    assert run(["save", "model.toml", "model.pt"]) == 0
    for name in ("model.pt2", "model.onnx"):
        words = ["convert", "model.pt", name, "-c", "model.toml"]
        assert run(words) == 0, name
        assert run([*words, "--overwrite"]) == 0, name
        assert run(["inspect", name]) == 0, name
        assert run(["verify", name, "--quiet"]) == 0, name
        with open(name, "rb"):
            assert run([*words, "--overwrite"]) == 4, name


def test_models_are_exported_and_run_in_their_runtimes(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(CONFIG)
    output = on_windows(programs, tmp_path, ONNX)
    assert output.count("in use") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".programs.py",
        "model.onnx",
        "model.pt",
        "model.pt2",
        "model.toml",
    ]

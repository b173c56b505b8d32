"""ptsave.save, load and open, as a training script calls them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import ptsave
from ptsave.errors import CorruptError, ExistsError, LossyError, MissingFileError, UsageError, WriteError
from ptsave.examples import SimpleNet

HYPERPARAMETERS = {"input_size": 10, "hidden_size": 5, "output_size": 2}


def same(own: nn.Module, other: nn.Module) -> bool:
    states = own.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(v, states[1][k]) for k, v in states[0].items()
    )


@pytest.fixture
def model() -> SimpleNet:
    return SimpleNet(**HYPERPARAMETERS)


# --- import -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_import_and_open_need_neither_torch_nor_numpy(tmp_path: Path, model: nn.Module) -> None:
    ptsave.save(tmp_path / "m.pt", {"epoch": 3, "model": model.state_dict()})
    code = f"""
import sys, ptsave
assert set(ptsave.__all__) <= set(dir(ptsave))
with ptsave.open({str(tmp_path / "m.pt")!r}) as checkpoint:
    assert "model.fc1.bias" in checkpoint and len(checkpoint) == 4 and checkpoint.data == {{"epoch": 3}}
    assert checkpoint.tensors["model.fc1.bias"].shape == (5,)
    assert not {{"torch", "numpy"}} & set(sys.modules), set(sys.modules)
    sys.modules["torch"] = None  # as where there is none
    for use in (lambda: checkpoint["model.fc1.bias"], lambda: ptsave.load):
        try:
            raise SystemExit(use())
        except ptsave.PtsaveError as error:
            assert error.hint.startswith("pip install 'ptsave[torch]'"), error.hint
    del sys.modules["torch"]
    assert checkpoint["model.fc1.bias"].shape == (5,)
try:
    ptsave.nothing
except AttributeError:
    print(ptsave.errors.LossyError.__name__)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("LossyError\n", "")


# --- save -------------------------------------------------------------------------------------------------


def test_a_model_goes_out_and_comes_back(tmp_path: Path, model: nn.Module) -> None:
    for name in ("m.safetensors", "m.pt", "m.npz"):
        has_no_record = pytest.warns(UserWarning, match="the record stays behind")
        with has_no_record if name == "m.npz" else nullcontext():
            saved = ptsave.save(tmp_path / name, model)
        assert (saved.num_tensors, saved.num_elements, saved.num_bytes) == (4, 67, 268)
        other = SimpleNet(**HYPERPARAMETERS)
        assert ptsave.load(tmp_path / name, other) is other
        assert same(model, other)
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "m.safetensors"))
    model.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True))


@pytest.mark.parametrize("format", ["dcp", "safetensors-sharded"])
def test_folders(format: str, tmp_path: Path, model: nn.Module) -> None:
    assert ptsave.save(tmp_path / "m", model, format=format).format == format
    assert same(model, ptsave.load(tmp_path / "m", SimpleNet(**HYPERPARAMETERS)))


def test_an_old_file_is_replaced_unless_that_is_off(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "m.pt"
    ptsave.save(path, {"a": 1})
    ptsave.save(str(path), model)
    with pytest.raises(ExistsError, match="exists") as caught:
        ptsave.save(path, {"a": 1}, overwrite=False)
    assert caught.value.hint == "overwrite=True replaces it"
    assert same(model, ptsave.load(path, SimpleNet(**HYPERPARAMETERS)))
    assert os.listdir(tmp_path) == ["m.pt"]


def test_wrappers_leave_no_trace(tmp_path: Path, model: nn.Module) -> None:
    wrapped = torch.compile(nn.DataParallel(model), backend="eager")
    ptsave.save(tmp_path / "m.pt", wrapped)
    assert list(ptsave.open(tmp_path / "m.pt")) == list(model.state_dict())
    other = nn.DataParallel(SimpleNet(**HYPERPARAMETERS))
    assert ptsave.load(tmp_path / "m.pt", other) is other
    assert same(model, other.module)
    torch.save({f"module.{key}": value for key, value in model.state_dict().items()}, tmp_path / "w.pt")
    assert same(model, ptsave.load(tmp_path / "w.pt", SimpleNet(**HYPERPARAMETERS)))


def test_a_training_dictionary_keeps_its_shape(tmp_path: Path, model: nn.Module) -> None:
    value = {"epoch": 3, "model": model.state_dict(), "best": np.float64(0.5), "seen": [1, (2, None)]}
    ptsave.save(tmp_path / "t.pt", value)
    loaded = torch.load(tmp_path / "t.pt", weights_only=True)
    assert (loaded["epoch"], loaded["best"], loaded["seen"]) == (3, 0.5, [1, (2, None)])
    assert loaded["model"]._metadata == model.state_dict()._metadata
    ptsave.save(tmp_path / "s.pt", ptsave.TrainingState(model=model))
    assert same(model, ptsave.load(tmp_path / "s.pt", SimpleNet(**HYPERPARAMETERS)))


def test_ties_stay_tied(tmp_path: Path) -> None:
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    model[1].weight = model[0].weight
    for name in ("m.safetensors", "m.pt"):
        ptsave.save(tmp_path / name, model)
        other = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        other[1].weight = other[0].weight
        ptsave.load(tmp_path / name, other)
        assert other[0].weight is other[1].weight
        assert same(model, other)
        state = ptsave.open(tmp_path / name).state_dict()
        assert state["0.weight"] is state["1.weight"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x.safetensors", {"epoch": 3, "w": torch.ones(1)}, "'epoch' is none"),
        ("x.pt", {"model": nn.Linear(1, 1)}, "'model' is a torch.nn.modules.linear.Linear"),
        ("x.pt", {"a": [{"b": object()}]}, r"'a\.0\.b' is a builtins\.object"),
        ("x.pt", {"w": torch.ones(2, device="meta")}, "meta device"),
        ("x.pt", {"w": torch.ones(2).to_sparse()}, "sparse_coo"),
    ],
)
def test_what_cannot_be_held_is_refused(tmp_path: Path, name: str, value: Any, message: str) -> None:
    with pytest.raises(LossyError, match=message) as caught:
        ptsave.save(tmp_path / name, value)
    assert "--" not in caught.value.hint
    assert os.listdir(tmp_path) == []


def test_the_order_of_torch_save_is_taken_too(tmp_path: Path, model: nn.Module) -> None:
    for value in (model, model.state_dict()):
        ptsave.save(value, tmp_path / "a.pt")
        ptsave.save(tmp_path / "b.pt", value)
        assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_what_is_no_path_is_told_from_one(tmp_path: Path, model: nn.Module) -> None:
    ptsave.save(tmp_path / "a.pt", model)
    values = (
        (3, "as text"),
        (None, "as text"),
        (b"a.pt", "os.fsdecode"),
        (model, "the path comes first"),
        (model.state_dict(), "the path comes first"),
        (io.BytesIO(), "not the open file"),
        ([tmp_path / "a.pt"], "give one path"),
    )
    for value, hint in values:
        for call in (ptsave.load, ptsave.open, ptsave.inspect, ptsave.verify):
            with pytest.raises(
                UsageError, match="a path or an address is expected, not a value of"
            ) as raised:
                call(value)  # type: ignore[operator]
            assert hint in raised.value.hint


def test_a_wrong_destination_is_said(tmp_path: Path, model: nn.Module) -> None:
    with pytest.raises(UsageError, match="the suffix '' does not say"):
        ptsave.save(tmp_path / "x", model)
    with pytest.raises(UsageError, match="cannot write the format 'h5'"):
        ptsave.save(tmp_path / "x", model, format="h5")
    with pytest.raises(WriteError, match="the folder does not exist"):
        ptsave.save(tmp_path / "no" / "x.pt", model)


# --- the record -------------------------------------------------------------------------------------------


def test_hyperparameters_make_the_model_again(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "m.safetensors"
    ptsave.save(path, model, hyperparameters=HYPERPARAMETERS)
    with pytest.raises(UsageError, match="needs a config") as caught:
        ptsave.load(path)
    assert "trust_recorded=True" in caught.value.hint
    built = ptsave.load(path, trust_recorded=True)
    assert same(model, built)
    assert not built.training


def test_a_lazy_model_is_its_own(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "m.pt"
    ptsave.save(path, model, hyperparameters=HYPERPARAMETERS)
    built = ptsave.load(path, trust_recorded=True, lazy=True)
    assert same(model, built)
    with torch.no_grad():
        next(built.parameters()).add_(1)
    assert same(model, ptsave.load(path, trust_recorded=True))
    ptsave.save(path, built)  # over the file that it lies in
    with ptsave.open(path) as checkpoint:
        state = checkpoint.state_dict(lazy=True)
    assert same(built, ptsave.load(path, SimpleNet(**HYPERPARAMETERS)))
    assert torch.equal(state["fc1.weight"], built.state_dict()["fc1.weight"])
    with pytest.raises(UsageError, match="has memory already"):
        ptsave.load(path, model, lazy=True)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="is closed"):
        checkpoint.state_dict(lazy=True)


def test_hyperparameters_of_another_model_are_refused(tmp_path: Path, model: nn.Module) -> None:
    with pytest.raises(LossyError, match=r"make another model: 3 of another shape"):
        ptsave.save(tmp_path / "m.pt", model, hyperparameters=HYPERPARAMETERS | {"hidden_size": 6})
    with pytest.raises(UsageError, match="unexpected keyword argument 'hidden'"):
        ptsave.save(tmp_path / "m.pt", model, hyperparameters={"hidden": 6})
    with pytest.raises(UsageError, match="is not plain data"):
        ptsave.save(tmp_path / "m.pt", model, hyperparameters={"hidden_size": object()})
    with pytest.raises(UsageError, match="only a module has"):
        ptsave.save(tmp_path / "m.pt", model.state_dict(), hyperparameters=HYPERPARAMETERS)
    assert os.listdir(tmp_path) == []


def test_a_class_that_no_other_program_can_import_is_said(tmp_path: Path) -> None:
    class Here(nn.Module):
        pass

    with pytest.raises(UsageError, match="Here cannot be imported"):
        ptsave.save(tmp_path / "m.pt", Here(), hyperparameters={})


def test_a_config_builds_and_is_recorded(tmp_path: Path, model: nn.Module) -> None:
    config = tmp_path / "m.toml"
    config.write_text(
        '[model]\nclass = "ptsave.examples.SimpleNet"\n'
        "[model.args]\ninput_size = 10\nhidden_size = 5\noutput_size = 2\n"
    )
    ptsave.save(tmp_path / "m.pt", model, config=config)
    assert same(model, ptsave.load(tmp_path / "m.pt", config=config))
    assert same(model, ptsave.load(tmp_path / "m.pt", trust_recorded=True, device="cpu"))
    record = ptsave.open(tmp_path / "m.pt").record
    assert record is not None
    assert record.model is not None
    assert record.model["class"] == "ptsave.examples.SimpleNet"


# --- load -------------------------------------------------------------------------------------------------


def test_a_misfit_names_every_key_and_changes_nothing(tmp_path: Path, model: nn.Module) -> None:
    ptsave.save(tmp_path / "m.pt", model)
    other = SimpleNet(10, 6, 2)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(LossyError, match=r"does not fit the model: 3 of another shape") as caught:
        ptsave.load(tmp_path / "m.pt", other)
    assert [m["name"] for m in caught.value.details["mismatched"]] == ["fc1.weight", "fc1.bias", "fc2.weight"]  # type: ignore[attr-defined]
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_the_module_keeps_its_mode_and_dtypes(tmp_path: Path, model: nn.Module) -> None:
    ptsave.save(tmp_path / "m.pt", model)
    other = SimpleNet(**HYPERPARAMETERS).half()
    weight = other.fc1.weight
    with pytest.warns(UserWarning, match="4 tensors are cast to the model's dtype"):
        ptsave.load(tmp_path / "m.pt", other)
    assert other.training
    assert other.fc1.weight is weight
    assert torch.equal(weight, model.fc1.weight.half())


def test_a_compiled_layer_is_filled_by_the_layers_name(tmp_path: Path, model: nn.Module) -> None:
    ptsave.save(tmp_path / "m.pt", model)
    other = SimpleNet(**HYPERPARAMETERS)
    inner = other.fc1
    other.fc1 = torch.compile(inner, backend="eager")  # type: ignore[assignment]
    ptsave.load(tmp_path / "m.pt", other)
    assert torch.equal(inner.weight, model.fc1.weight)


def test_another_key_is_selected(tmp_path: Path, model: nn.Module) -> None:
    other = SimpleNet(**HYPERPARAMETERS)
    ptsave.save(tmp_path / "m.pt", {"model": model.state_dict(), "teacher": other.state_dict()})
    assert same(other, ptsave.load(tmp_path / "m.pt", SimpleNet(**HYPERPARAMETERS), select="teacher"))
    with pytest.raises(UsageError, match="has no key 'student'"):
        ptsave.load(tmp_path / "m.pt", SimpleNet(**HYPERPARAMETERS), select="student")


def test_damage_is_found_while_loading(tmp_path: Path) -> None:
    model = nn.Linear(64, 64)
    ptsave.save(tmp_path / "m.safetensors", model)
    data = bytearray((tmp_path / "m.safetensors").read_bytes())
    data[-9] ^= 1
    (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(CorruptError, match="damaged"):
        ptsave.load(tmp_path / "m.safetensors", nn.Linear(64, 64))
    with ptsave.open(tmp_path / "m.safetensors") as checkpoint, pytest.raises(CorruptError, match="damaged"):
        list(map(checkpoint.__getitem__, checkpoint))
    with pytest.raises(MissingFileError):
        ptsave.load(tmp_path / "none.pt", model)


# --- open -------------------------------------------------------------------------------------------------


def test_open_is_a_mapping(tmp_path: Path, model: nn.Module) -> None:
    ptsave.save(tmp_path / "m.pt", {"step": 3, "model": model.state_dict()})
    with ptsave.open(tmp_path / "m.pt") as checkpoint:
        assert repr(checkpoint).startswith("<pt checkpoint")
        assert list(checkpoint) == list(checkpoint.keys()) == [f"model.{key}" for key in model.state_dict()]
        assert torch.equal(checkpoint["model.fc2.bias"], model.state_dict()["fc2.bias"])
        assert checkpoint.get("nothing") is None
        assert checkpoint.tree["step"] == 3
        with pytest.raises(KeyError, match=r"did you mean 'model\.fc1\.bias'"):
            checkpoint["model.fc1.bais"]
        with pytest.raises(KeyError, match="'step' is not a tensor"):
            checkpoint["step"]
        assert list(checkpoint.state_dict()) == list(model.state_dict())
        model.load_state_dict(checkpoint.state_dict("model"))
    with pytest.raises(UsageError, match="is closed"):
        checkpoint["model.fc2.bias"]


def test_threads_read_together(tmp_path: Path) -> None:
    tensors = {str(i): torch.full((1000,), float(i)) for i in range(50)}
    ptsave.save(tmp_path / "m.safetensors", tensors)
    with ptsave.open(tmp_path / "m.safetensors") as checkpoint, ThreadPoolExecutor(8) as pool:
        for name, tensor in zip(tensors, pool.map(checkpoint.__getitem__, tensors), strict=True):
            assert torch.equal(tensor, tensors[name])


def test_what_was_opened_is_what_is_read(tmp_path: Path) -> None:
    ptsave.save(tmp_path / "m.pt", {"w": torch.ones(3)})
    with ptsave.open(tmp_path / "m.pt") as checkpoint:
        ptsave.save(tmp_path / "m.pt", {"w": torch.zeros(3)})
        assert checkpoint["w"].sum() == 3


def test_nothing_warns(tmp_path: Path, model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ptsave.save(tmp_path / "m.pt", model, hyperparameters=HYPERPARAMETERS)
        ptsave.load(tmp_path / "m.pt", trust_recorded=True)
        ptsave.open(tmp_path / "m.pt").close()


def test_loading_in_many_threads_leaves_torch_alone(tmp_path: Path) -> None:
    config = tmp_path / "net.toml"
    config.write_text('[model]\nclass = "torch.nn.Linear"\n[model.args]\nin_features = 3\nout_features = 2\n')
    model = nn.Linear(3, 2)
    ptsave.save(tmp_path / "m.pt", model)
    make = nn.Parameter.__new__
    with ThreadPoolExecutor(6) as pool:
        loaded = list(pool.map(lambda _: ptsave.load(tmp_path / "m.pt", config=config), range(24)))
    assert all(same(model, other) for other in loaded)
    assert nn.Parameter.__new__ is make
    assert not nn.Linear(3, 2).weight.is_meta

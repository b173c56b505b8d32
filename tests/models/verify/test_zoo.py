"""Sound models of all kinds: saved, verified with every check, and never called broken."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from tests.models.verify import zoo
from tests.support import some
from tests.workshop import Workshop

VOID = {"Experts": {"empty"}, "Extreme": {"infinite", "nan"}}
"""The outputs in which no weight could show."""
X = "[inputs.x]\nshape = [2, 6]\n"
TOKENS = '[inputs.x]\nshape = [2, 6]\ndtype = "int64"\nhigh = 20\n'
MODELS = {
    "Lstm": "[inputs.x]\nshape = [2, 5, 6]\n",
    "Parametrized": X,
    "OldNorms": X,
    "Lazy": X,
    "Wide": X,
    "Half": X,
    "Mixed": X,
    "Twice": X,
    "InPlace": X,
    "Talkative": X,
    "Picture": "[inputs.x]\nshape = [2, 3, 8, 8]\n",
    "Attention": "[inputs.x]\nshape = [2, 5, 16]\n",
    "Writer": TOKENS,
    "Scripted": X,
    "Computed": X,
    "Averaging": X,
    "Compiled": X,
    "Wrapping": X,
    "Experts": X,
    "Force": X,
    "Extreme": X,
}


def configure(workshop: Workshop, model: str, inputs: str, key: str = "class", args: str = "") -> None:
    workshop.write_config(f'[model]\n{key} = "tests.models.verify.zoo.{model}"\n{args}{inputs}')


@pytest.mark.parametrize("model", some(MODELS, 3))
def test_every_check_passes(workshop: Workshop, model: str) -> None:
    configure(workshop, model, MODELS[model])
    workshop.save("m.pt")
    outcome = workshop.verify("m.pt", "--through", "pt,safetensors")
    assert outcome.is_yes, outcome.document
    assert outcome.cause == ""
    assert {where for where, _ in outcome.found("roundtrip", "ok")} == {"pt", "safetensors"}
    levels = {(f["check"], f["level"]) for f in outcome.document["findings"]}
    assert {("bytes", "ok"), ("keys", "ok"), ("behaviour", "ok"), ("roundtrip", "ok")} <= levels
    assert {level for _, level in levels} <= {"ok", "skipped"}
    skipped = [f for f in outcome.document["findings"] if f["level"] == "skipped"]
    assert {f["where"] for f in skipped} == VOID.get(model, set())


@pytest.mark.parametrize("model", ["Lstm", "Half", "Picture", "Attention", "Compiled", "Force", "Extreme"])
def test_other_kernels_are_no_other_model(workshop: Workshop, model: str) -> None:
    configure(workshop, model, MODELS[model])
    workshop.save("m.safetensors")
    torch._C._set_mkldnn_enabled(False)
    try:
        outcome = workshop.verify("m.safetensors")
    finally:
        torch._C._set_mkldnn_enabled(True)
    assert outcome.is_yes, outcome.document


@pytest.mark.parametrize("what", ["empty", "nan"])
def test_outputs_that_no_weight_could_change_compare_nothing(workshop: Workshop, what: str) -> None:
    configure(workshop, "Returns", X, args=f'args = {{what = "{what}"}}\n')
    workshop.save("m.safetensors")
    outcome = workshop.verify("m.safetensors")
    assert outcome.is_yes, outcome.document
    ((_, message),) = outcome.found("behaviour", "skipped")
    assert message.startswith("nothing was compared")
    assert not outcome.found("behaviour", "ok")


@pytest.mark.parametrize("what", ["dataclass", "tuple", "scalar", "argmax", "bool", "sparse"])
def test_whatever_a_model_returns(workshop: Workshop, what: str) -> None:
    configure(workshop, "Returns", X, args=f'args = {{what = "{what}"}}\n')
    workshop.save("m.safetensors")
    outcome = workshop.verify("m.safetensors")
    assert outcome.is_yes, outcome.document
    assert outcome.found("behaviour", "ok")
    if what == "dataclass":
        assert [where for where, _ in outcome.found("behaviour", "ok")] == [
            *("logits", "loss", "hidden.0", "hidden.1.0")
        ]


def test_random_numbers_in_eval_mode(workshop: Workshop) -> None:
    configure(workshop, "Autoencoder", X)
    workshop.save("m.pt")
    outcome = workshop.verify("m.pt")
    assert outcome.is_yes, outcome.document
    assert "two seeds gave two results" in outcome.found("behaviour", "warn")[0][1]


def test_a_cast_beside_8_bit_floats(workshop: Workshop) -> None:
    """They have no arithmetic, so that nothing can be perturbed in them."""
    configure(workshop, "Small", X)
    workshop.save("m.pt")
    assert workshop.verify("m.pt").is_yes
    assert workshop.run("convert", "m.pt", "h.pt", "--dtype", "bfloat16")[0] == 0
    outcome = workshop.verify("h.pt")
    assert outcome.is_yes, outcome.document
    assert outcome.cause.endswith("outputs within bfloat16 tolerance")


def test_names_that_have_wrappers_in_them_load(workshop: Workshop) -> None:
    """What torch saved of such a model, with the wrapper's prefix in front of all, too."""
    configure(workshop, "Wrapping", X)
    for prefix in ("", "module."):
        state = {f"{prefix}{name}": value for name, value in zoo.Wrapping().state_dict().items()}
        torch.save(state, "m.pt")
        assert workshop.run("load", "m.pt", "-c", "net.toml")[0] == 0
        assert workshop.verify("m.pt").is_yes


@pytest.mark.parametrize("what", ["nothing", "text"])
def test_nothing_that_could_be_compared_is_skipped(workshop: Workshop, what: str) -> None:
    configure(workshop, "Returns", X, args=f'args = {{what = "{what}"}}\n')
    workshop.save("m.safetensors")
    outcome = workshop.verify("m.safetensors")
    assert outcome.is_yes
    assert outcome.found("behaviour", "skipped")
    assert outcome.found("roundtrip", "skipped")


@pytest.mark.parametrize(
    ("model", "key", "inputs"),
    [
        ("Extra", "class", X),
        ("Complex", "class", X),
        ("quantized", "factory", "[inputs.input]\nshape = [2, 6]\n"),
        ("quantized_by_channel", "factory", "[inputs.x]\nshape = [1, 3, 4, 4]\n"),
    ],
)
def test_what_only_pt_holds(workshop: Workshop, model: str, key: str, inputs: str) -> None:
    configure(workshop, model, inputs, key)
    workshop.save("m.pt")
    outcome = workshop.verify("m.pt", "--through", "pt,safetensors")
    assert outcome.is_yes, outcome.document
    assert {where for where, _ in outcome.found("roundtrip", "ok")} == {"pt"}
    ((where, message),) = outcome.found("roundtrip", "skipped")
    assert where == "safetensors"
    assert message.startswith("the format cannot hold the model")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (zoo.quantized, "[inputs.input]\nshape = [2, 6]\n"),
        (zoo.quantized_by_channel, "[inputs.x]\nshape = [1, 3, 4, 4]\n"),
    ],
)
def test_quantized_weights_are_torchs_own(workshop: Workshop, make: object, inputs: str) -> None:
    """What ptsave writes, torch reads, and the other way round."""
    assert callable(make)
    configure(workshop, make.__name__, inputs, "factory")
    workshop.save("m.pt")
    model = make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own typed storages
        theirs = torch.load("m.pt", weights_only=True)
    model.load_state_dict(theirs)
    assert list(theirs) == list(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(model.state_dict(), "theirs.pt")
    assert workshop.verify("theirs.pt").is_yes
    assert workshop.run("verify", "theirs.pt", "-c", "net.toml", "--record")[0] == 0
    assert workshop.verify("theirs.pt").found("behaviour", "ok")


def test_a_lazy_module_without_inputs_cannot_be_saved(workshop: Workshop) -> None:
    configure(workshop, "Lazy", "")
    code, _, err = workshop.run("save", "net.toml", "m.pt")
    assert code == 2
    assert "add an [inputs] table" in err


@pytest.mark.slow
def test_a_model_of_5001_modules(workshop: Workshop) -> None:
    configure(workshop, "Deep", X)
    code, out, _ = workshop.run("save", "net.toml", "m.safetensors", "--json")
    assert code == 0
    size = json.loads(out)["behaviour_bytes"]
    assert 500_000 < size <= 2 * 1024 * 1024
    file = Path("m.safetensors").read_bytes()
    header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    record = json.loads(header["__metadata__"]["ptsave"])
    assert len(json.dumps(record["behaviour"], separators=(",", ":"))) == size
    outcome = workshop.verify("m.safetensors")
    assert outcome.is_yes
    assert len(outcome.document["growth"]) == 0

"""`verify --against OTHER`: the same tensors and behaviour, of two checkpoints or of a config's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workshop import CONFIG, Saved, Workshop, edit_record, rewrite

FILE = Path("net.safetensors")
AGAINST = ("--checks", "against")


@pytest.fixture
def shop(workshop: Workshop, saved: Saved) -> Workshop:
    """A workshop with a checkpoint whose record says nothing of behaviour, and a copy of it."""
    workshop.save_once(saved)
    edit_record(FILE, behaviour=None)
    assert workshop.run("convert", FILE, "copy.pt")[0] == 0
    return workshop


def change(path: Path, name: str, by: float) -> None:
    def add(tensors: dict[str, Any]) -> None:
        tensors[name] = tensors[name] + by

    rewrite(path, add)
    edit_record(path, digests=None)


def test_another_format_is_the_same_model(shop: Workshop) -> None:
    outcome = shop.verify("net.safetensors", "--against", "copy.pt", *AGAINST)
    assert outcome.is_yes
    assert outcome.found("against", "ok") == [
        ("", "20 tensors are bitwise equal"),
        ("output", "bitwise equal"),
    ]
    assert outcome.cause == ""


def test_without_a_config_the_tensors_are_compared(shop: Workshop) -> None:
    outcome = shop.verify("net.safetensors", "--against", "copy.pt", *AGAINST, config=None)
    assert outcome.is_yes
    assert outcome.found("against", "ok") == [("", "20 tensors are bitwise equal")]


@pytest.mark.parametrize("config", ["net.toml", None])
def test_a_changed_weight_names_its_tensor_and_its_layer(shop: Workshop, config: str | None) -> None:
    change(FILE, "blocks.1.down.weight", 0.01)
    outcome = shop.verify("net.safetensors", "--against", "copy.pt", *AGAINST, config=config)
    assert not outcome.is_yes
    expected = "not the same weights as copy.pt: 1 of 20 tensors differs (blocks.1.down.weight)"
    assert outcome.cause == expected
    assert outcome.first == (["blocks.1.down"] if config else [])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cast_is_the_same_when_that_is_asked_for(shop: Workshop, dtype: str) -> None:
    assert shop.run("convert", FILE, "cast.safetensors", "--dtype", dtype)[0] == 0
    outcome = shop.verify("cast.safetensors", "--against", "net.safetensors", *AGAINST)
    assert not outcome.is_yes
    assert len(outcome.found("against", "fail")) == 20
    assert any("explained by rounding" in text for _, text in outcome.found("against", "ok"))
    outcome = shop.verify("cast.safetensors", "--against", "net.safetensors", "--close", *AGAINST)
    assert outcome.is_yes, outcome.document
    assert any(text.endswith("are within the tolerance") for _, text in outcome.found("against", "ok"))
    change(Path("cast.safetensors"), "norm.bias", 0.1)
    outcome = shop.verify("cast.safetensors", "--against", "net.safetensors", "--close", *AGAINST)
    assert not outcome.is_yes
    assert outcome.first == ["norm"]
    assert "norm.bias" in [where for where, _ in outcome.found("against", "fail")]


def test_the_configs_own_tolerance(shop: Workshop) -> None:
    change(FILE, "norm.bias", 0.25)
    flags = ("--against", "copy.pt", "--close", *AGAINST)
    assert not shop.verify("net.safetensors", *flags).is_yes
    shop.write_config(f"{CONFIG}\n[verify]\nrtol = 0.0\natol = 8.0\n")
    assert shop.verify("net.safetensors", *flags).is_yes


def test_a_fresh_model_is_another(shop: Workshop) -> None:
    """The checkpoint was saved with seed 0, as a config's fresh model is; a factory gives what it gives."""
    assert shop.verify("net.safetensors", "--against", "net.toml", *AGAINST, config=None).is_yes
    shop.save("seed1.safetensors", "--seed", "1")
    outcome = shop.verify("seed1.safetensors", "--against", "net.toml", *AGAINST)
    assert not outcome.is_yes
    assert outcome.cause.startswith("not the same weights as net.toml: ")


def test_a_factorys_model(shop: Workshop) -> None:
    factory = "\n\ndef trained():\n    torch.manual_seed(0)\n    return Net()\n"
    shop.write_code(net=(shop.folder / "nets" / "net.py").read_text() + factory)
    (shop.folder / "factory.toml").write_text('[model]\nfactory = "nets.net.trained"\n')
    outcome = shop.verify("net.safetensors", "--against", "factory.toml", *AGAINST)
    assert outcome.is_yes, outcome.document
    assert ("output", "bitwise equal") in outcome.found("against", "ok")


def test_a_rewritten_class_with_the_same_weights(shop: Workshop) -> None:
    """Two configs, two classes, one set of weights: what they compute is compared."""
    text = (shop.folder / "nets" / "net.py").read_text()
    shop.write_code(
        net=text + "\n\nclass Other(Net):\n    def forward(self, tokens):\n"
        "        return 1.001 * super().forward(tokens)\n"
    )
    (shop.folder / "other.toml").write_text(CONFIG.replace("nets.net.Net", "nets.net.Other"))
    outcome = shop.verify("net.safetensors", "--against", "other.toml", *AGAINST)
    assert not outcome.is_yes
    assert outcome.cause == "another function than other.toml: the tensors are equal"
    assert outcome.found("against", "fail")[0][0] == "output"


def test_another_architecture_is_not_run(shop: Workshop) -> None:
    def drop(tensors: dict[str, Any]) -> None:
        del tensors["norm.bias"]

    rewrite(FILE, drop)
    outcome = shop.verify("copy.pt", "--against", "net.safetensors", *AGAINST)
    assert not outcome.is_yes
    assert [where for where, _ in outcome.found("against", "fail")] == ["norm.bias"]
    assert "does not fit the model" in outcome.found("against", "skipped")[0][1]


def test_flags_that_do_not_go_together(shop: Workshop) -> None:
    assert shop.run("verify", "net.safetensors", "--close")[0] == 2
    code, _, err = shop.run("verify", "net.safetensors", *AGAINST)
    assert code == 2
    assert "the check against needs a second checkpoint" in err


def test_numerics_of_another_library_are_the_same(shop: Workshop) -> None:
    torch._C._set_mkldnn_enabled(False)
    try:
        assert shop.verify("net.safetensors", "--against", "copy.pt").is_yes
    finally:
        torch._C._set_mkldnn_enabled(True)

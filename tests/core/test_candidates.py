"""Which state dict is the model's: never a smaller one without a word, never one of two equals."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ptsave.cli import run
from ptsave.core.select import Selection, select_model
from ptsave.errors import AmbiguousError
from ptsave.formats import open_checkpoint


def weights(*names: str, size: int = 4) -> dict[str, Tensor]:
    return {name: torch.randn(size, size) for name in names}


def selected(tmp_path: Path, tree: Any, key: str | None = None) -> Selection:
    torch.save(tree, tmp_path / "c.pt")
    with open_checkpoint(tmp_path / "c.pt") as checkpoint:
        return select_model(checkpoint, key)


BIG, SMALL = weights("a.weight", "b.weight", "c.weight"), weights("mean", "std", size=2)

TAKEN: dict[str, tuple[Any, str, set[str], str]] = {
    "nested under its own key": (
        {"state_dict": {**BIG, "state_dict": SMALL}},
        "state_dict",
        set(BIG),
        "took the tensors under 'state_dict' (not 'state_dict.state_dict')",
    ),
    "the larger one inside": (
        {"state_dict": {**SMALL, "state_dict": BIG}},
        "state_dict.state_dict",
        set(BIG),
        "took the state dict under 'state_dict.state_dict' (not the tensors beside it at 'state_dict')",
    ),
    "at the top beside a model": (
        {**BIG, "model": SMALL},
        "",
        set(BIG),
        "took the tensors at the top (not 'model')",
    ),
    **{
        f"at the top beside {key}": (
            {**BIG, key: SMALL},
            "",
            set(BIG),
            f"took the tensors at the top (not '{key}')",
        )
        for key in ("normalizer", "meta", "train_state")
    },
    "at the top beside what lies deep": (
        {**BIG, "meta": {"a": {"b": {"c": SMALL}}}},
        "",
        set(BIG),
        "took the tensors at the top (not 'meta')",
    ),
    "a model beside a few tensors": (
        {"model": BIG, **SMALL},
        "model",
        set(BIG),
        "took the state dict under 'model' (not the tensors at the top)",
    ),
    "a model beside its kin": (
        {"model": BIG, "ema": BIG, "teacher": dict(BIG), "normalizer": SMALL},
        "model",
        set(BIG),
        "took the state dict under 'model' (not 'ema', 'teacher', 'normalizer')",
    ),
    "an average with a counter more": (
        {"net": BIG, "swa_model": {**{f"module.{k}": v for k, v in BIG.items()}, "n": torch.ones(1)}},
        "net",
        set(BIG),
        "took the state dict under 'net' (not 'swa_model')",
    ),
    "no average where there is another": (
        {"denoiser": BIG, "ema": BIG},
        "denoiser",
        set(BIG),
        "took the state dict under 'denoiser' (not 'ema')",
    ),
    "an average alone": ({"ema": BIG}, "ema", set(BIG), "took the state dict under 'ema'"),
    "training state": (
        {
            "state_dict": BIG,
            "optimizer": {"state": {0: {"exp_avg": torch.randn(99, 99)}}, "param_groups": [{"lr": 0.1}]},
            "rng_state": torch.zeros(5000, dtype=torch.uint8),
            "epoch": torch.tensor(3),
            "history": [torch.tensor(0.5)],
        },
        "state_dict",
        set(BIG),
        "took the state dict under 'state_dict'",
    ),
    "one model under two keys": (
        {"model": BIG, "state_dict": BIG},
        "state_dict",
        set(BIG),
        "took the state dict under 'state_dict' (not 'model')",
    ),
    "the larger of two names": (
        {"state": SMALL, "weights": BIG},
        "weights",
        set(BIG),
        "took the state dict under 'weights' (not 'state')",
    ),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_is_taken_is_said(tmp_path: Path, case: str) -> None:
    tree, where, names, sentence = TAKEN[case]
    selection = selected(tmp_path, tree)
    assert (selection.where, set(selection.tensors)) == (where, names)
    assert selection.sentence() == sentence


REFUSED: dict[str, tuple[Any, list[str]]] = {
    "two of one shape": (
        {"generator": BIG, "discriminator": weights(*BIG)},
        ["generator", "discriminator"],
    ),
    "a larger one without a name": (
        {"model": SMALL, "backbone": BIG},
        ["model", "backbone"],
    ),
    "a larger one of several dictionaries": (
        {"normalizer": SMALL, "networks": {"actor": BIG, "critic": BIG}},
        ["normalizer", "networks"],
    ),
    "names of equal rank": (
        {"state_dict": BIG, "model": weights(*BIG)},
        ["state_dict", "model"],
    ),
    "more tensors, fewer elements": (
        {"w": torch.randn(64, 64), "model": BIG},
        ["model", "."],
    ),
    "one in another": (
        {"state_dict": {"w": torch.randn(64, 64), "state_dict": BIG}},
        ["state_dict.state_dict", "state_dict."],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_both_are_named_and_refused(tmp_path: Path, case: str) -> None:
    tree, keys = REFUSED[case]
    with pytest.raises(AmbiguousError) as caught:
        selected(tmp_path, tree)
    assert caught.value.exit_code == 4
    assert caught.value.details["candidates"] == keys
    assert all(repr(key) in caught.value.hint for key in keys)
    for key in keys:
        if key != "networks":
            assert selected(tmp_path, tree, key).tensors


def test_a_key_with_a_dot_is_the_tensors_there(tmp_path: Path) -> None:
    tree = OrderedDict(BIG, model=SMALL, epoch=3)
    assert selected(tmp_path, tree, ".").tensors.keys() == BIG.keys()
    assert selected(tmp_path, tree, "model.").tensors.keys() == SMALL.keys()


def test_convert_writes_the_larger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({**BIG, "normalizer": SMALL}, tmp_path / "c.pt")
    target = str(tmp_path / "m.safetensors")
    assert run(["convert", str(tmp_path / "c.pt"), target, "--select", "model"]) == 0
    assert "took the tensors at the top (not 'normalizer')" in capsys.readouterr().err
    with open_checkpoint(target) as written:
        assert set(written.tensors) == set(BIG)


def test_load_refuses_one_of_two_equals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = nn.Linear(4, 4).state_dict()
    torch.save({"generator": state, "discriminator": nn.Linear(4, 4).state_dict()}, tmp_path / "gan.pt")
    config = tmp_path / "linear.toml"
    config.write_text('[model]\nclass = "torch.nn.Linear"\n[model.args]\nin_features = 4\nout_features = 4\n')
    assert run(["load", str(tmp_path / "gan.pt"), "-c", str(config)]) == 4
    assert "'generator', 'discriminator'" in capsys.readouterr().err
    assert run(["load", str(tmp_path / "gan.pt"), "-c", str(config), "--select", "discriminator"]) == 0


def test_of_very_many_none_is_the_models(tmp_path: Path) -> None:
    one = weights("w")
    with pytest.raises(AmbiguousError) as caught:
        selected(tmp_path, {f"k{i}": one for i in range(2000)})
    assert len(str(caught.value)) < 500
    few = {"model": one} | {f"k{i}": one for i in range(20)}
    assert selected(tmp_path, few).sentence().endswith("'k5', …)")

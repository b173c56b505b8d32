"""Which state dict is the model's: never a smaller one without a word, never one of two equals."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ptsave
from ptsave.cli.main import run
from ptsave.core.parts.select import Selection, select_model
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
    "a model beside averages deep in a container, and a number": (
        {"state_dict": BIG, "callbacks": {"swa": {"average_model_state": BIG}, "best": torch.tensor(1.0)}},
        "state_dict",
        set(BIG),
        "took the state dict under 'state_dict' (not 'callbacks')",
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
    "an average beside what is none": (  # what rosinality/stylegan2-pytorch publishes
        {"g_ema": BIG, "latent_avg": torch.randn(4)},
        "g_ema",
        set(BIG),
        "took the state dict under 'g_ema' (not the tensors at the top)",
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
    "an average of what is not there": (
        {"g_ema": BIG, "discriminator": SMALL},
        ["discriminator", "g_ema"],
    ),
    "an average beside a name that is none": (
        {"model": {"online": BIG, "ema": BIG}},
        ["model.ema", "model.online"],
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


ADAM = {"state": {0: {"exp_avg": torch.randn(9, 9)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
LISTED = {"decay": 0.9, "shadow_params": list(BIG.values()), "collected_params": None}
LAYOUTS: list[tuple[dict[str, Any], str | None]] = [
    # a training framework's dictionary, and the key of its model; None: several are named
    ({"params": BIG, "params_ema": BIG}, "params"),  # BasicSR
    ({"params_ema": BIG}, "params_ema"),
    ({"state_dict": BIG, "state_dict_ema": BIG, "optimizer": ADAM, "arch": "resnet"}, "state_dict"),  # timm
    ({"model": BIG, "model_ema": BIG, "optimizer": ADAM}, "model"),  # DeiT
    ({"g": BIG, "d": SMALL, "g_ema": BIG, "g_optim": ADAM, "d_optim": ADAM}, None),  # StyleGAN2
    ({"generator": BIG, "g_ema": BIG}, "generator"),
    ({"generator": BIG, "discriminator": SMALL, "g_ema": BIG}, None),
    ({"netG": BIG}, "netG"),
    ({"netG": BIG, "netD": SMALL, "optG": ADAM}, None),
    ({"netG_A": BIG, "netG_B": BIG, "netD_A": SMALL, "netD_B": SMALL}, None),
    ({"net_g": BIG, "net_g_ema": BIG}, "net_g"),
    ({"model_state": BIG, "ema_state": BIG, "optimizer_state": ADAM}, "model_state"),
    ({"student": BIG, "teacher": BIG}, None),  # DINO
    ({"state_dict": BIG, "teacher_state_dict": BIG}, "state_dict"),
    ({"state_dict": SMALL, "teacher": BIG}, None),
    ({"state_dict": BIG, "current_model_state": BIG, "averaging_state": {}}, "state_dict"),  # Lightning
    ({"state_dict": BIG, "callbacks": {"SWA": {"average_model_state": BIG}}}, "state_dict"),
    ({"actor": BIG, "critic": BIG}, None),
    ({"actor": BIG, "critic": {**BIG, "d.weight": torch.ones(4, 4)}, "actor_optimizer": ADAM}, None),
    ({"actor_state_dict": BIG, "critic_state_dict": BIG, "log_alpha": torch.zeros(1)}, None),
    ({"policy_net": BIG, "target_net": BIG}, None),  # DQN
    ({"policy": BIG, "value": SMALL}, None),
    ({"encoder": BIG, "momentum_encoder": BIG}, None),
    ({"model": {"model": BIG, "ema": BIG}}, "model.model"),
    ({"model": {"state_dict": BIG}, "ema": {"state_dict": BIG}}, "model.state_dict"),
    ({"model": BIG, "ema": LISTED}, "model"),  # diffusers, torch_ema
    ({"net_a": BIG, "ema": LISTED}, "net_a"),
    (
        {"model": BIG, "ema": {f"{n}_model.{k}": v for n in ("online", "ema") for k, v in BIG.items()}},
        "model",
    ),
    ({"model": BIG, "best_model": BIG}, "model"),
    ({"best_model": BIG, "last_model": BIG}, None),
    ({"model": BIG, "avg_model": BIG, "polyak": BIG}, "model"),
    ({"vae": SMALL, "unet_ema": BIG}, None),
    ({"fold0": BIG, "fold1": BIG}, None),
    ({"model": BIG, "net": weights(*BIG)}, None),
    ({**BIG, "ema": BIG}, ""),
]


@pytest.mark.parametrize("number", range(len(LAYOUTS)))
def test_layouts_of_training_code(tmp_path: Path, number: int) -> None:
    """The training's weights are taken, or all that may be meant are named; averages only where they are
    all there is. What was not taken is always said."""
    tree, where = LAYOUTS[number]
    tree = {key: copy.deepcopy(value) for key, value in tree.items()}  # none is another one's own tensors
    if where is None:
        with pytest.raises(AmbiguousError, match="more than one state dict"):
            selected(tmp_path, tree)
        return
    selection = selected(tmp_path, tree)
    assert selection.where == where
    named = {part.strip("'").partition(".")[0] for part in selection.others}
    others = {
        key for key, value in tree.items() if isinstance(value, dict) and value and "state" not in value
    }
    assert others - {where.partition(".")[0]} <= named


def test_python_hears_what_was_not_taken(tmp_path: Path) -> None:
    model = nn.Linear(4, 4, bias=False)
    torch.save({"model": weights("weight"), "model_ema": weights("weight")}, tmp_path / "c.pt")
    said = r"took the state dict under 'model' \(not 'model_ema'\)"
    with pytest.warns(UserWarning, match=said):
        ptsave.load(tmp_path / "c.pt", model)
    with ptsave.open(tmp_path / "c.pt") as checkpoint, pytest.warns(UserWarning, match=said):
        checkpoint.state_dict()
    ptsave.load(tmp_path / "c.pt", model, select="model_ema")


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

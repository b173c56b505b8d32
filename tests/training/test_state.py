"""TrainingState: everything goes back by name, or nothing does and the error says what differs."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import random
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, lr_scheduler

import ptsave
from ptsave.errors import LossyError, PtsaveError, UsageError
from ptsave.formats import open_checkpoint
from ptsave.models.weights.sharded import tensors_in
from ptsave.training.items import flatten, named
from ptsave.training.runs.snapshot import HostMemory
from ptsave.verbs.checks.resume import resumable
from tests.support import some

State = dict[str, Any]


class Net(nn.Module):
    """Two layers of the same shape, registered in either order."""

    def __init__(self, *, swapped: bool = False, head: int = 2) -> None:
        super().__init__()
        for name in ("second", "first") if swapped else ("first", "second"):
            setattr(self, name, nn.Linear(4, 4))
        self.head = nn.Linear(4, head)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(inputs).relu()))


def steps(model: nn.Module, optimizer: Any, number: int = 3) -> None:
    for _ in range(number):
        optimizer.zero_grad()
        model(torch.randn(6, 4)).square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()


def moments(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """The state of each parameter by its name."""
    return {name: optimizer.state[p] for name, p in model.named_parameters() if optimizer.state.get(p)}


def assert_same(own: Any, other: Any, where: str = "") -> None:
    if isinstance(own, torch.Tensor) or isinstance(other, torch.Tensor):
        assert torch.equal(torch.as_tensor(own), torch.as_tensor(other)), where
    elif isinstance(own, dict):
        assert own.keys() == other.keys(), where
        for key, value in own.items():
            assert_same(value, other[key], f"{where}.{key}")
    elif isinstance(own, (list, tuple)):
        assert len(own) == len(other), where
        for i, value in enumerate(own):
            assert_same(value, other[i], f"{where}.{i}")
    else:
        assert own == other, where


def trained(**options: Any) -> tuple[Net, Adam, State]:
    model = Net()
    optimizer = Adam(model.parameters(), 0.1, **options)
    steps(model, optimizer)
    return model, optimizer, ptsave.TrainingState(model=model, optimizer=optimizer).state_dict()


def test_it_is_the_tutorials_dictionary() -> None:
    """Plain torch code loads it."""
    model, optimizer, state = trained()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    other = Net()
    other.load_state_dict(loaded["model_state_dict"])
    other_optimizer = Adam(other.parameters(), 0.1)
    other_optimizer.load_state_dict(loaded["optimizer_state_dict"])
    assert_same(moments(model, optimizer), moments(other, other_optimizer))
    random.setstate(loaded["rng_state"]["python"])
    np.random.set_state(loaded["rng_state"]["numpy"])
    torch.set_rng_state(loaded["rng_state"]["torch"])


def test_tensors_are_the_live_ones() -> None:
    model, optimizer, state = trained()
    assert state["model_state_dict"]["head.bias"].data_ptr() == model.head.bias.data_ptr()
    moment = state["optimizer_state_dict"]["state"][0]["exp_avg"]
    assert moment is optimizer.state[model.first.weight]["exp_avg"]


def test_parameters_stay_the_same_tensors() -> None:
    model, optimizer, state = trained()
    pointers = [p.data_ptr() for p in model.parameters()]
    assert ptsave.TrainingState(model=model, optimizer=optimizer).load_state_dict(copy.deepcopy(state)) == []
    assert pointers == [p.data_ptr() for p in model.parameters()]
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], model.parameters(), strict=True))


def test_taking_and_giving_back_take_no_random_number() -> None:
    model, optimizer, state = trained()
    training = ptsave.TrainingState(model=model, optimizer=optimizer)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    training.state_dict()
    training.load_state_dict({key: value for key, value in state.items() if key != "rng_state"})
    assert before[0] == random.getstate()
    assert before[1] == np.random.get_state()[1].tolist()
    assert torch.equal(before[2], torch.get_rng_state())


def test_the_generators_go_on_as_they_would_have() -> None:
    training = ptsave.TrainingState(model=Net())
    state = copy.deepcopy(training.state_dict())
    np.random.standard_normal()  # leaves a second number for later

    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), np.random.standard_normal(), torch.rand(()).item()]

    wanted = draw(), draw()
    training.load_state_dict(state)
    np.random.standard_normal()
    assert (draw(), draw()) == wanted


# --- names ------------------------------------------------------------------------------------------------


def test_registration_in_another_order_is_followed_by_name() -> None:
    model, optimizer, state = trained()
    other = Net(swapped=True)
    other_optimizer = Adam(other.parameters(), 0.1)
    assert ptsave.TrainingState(model=other, optimizer=other_optimizer).load_state_dict(state) == []
    assert_same(moments(model, optimizer), moments(other, other_optimizer))


def test_without_names_the_order_of_the_weights_tells_the_names() -> None:
    """The tutorial's dictionary, whose optimizer torch would attach to the wrong layers without a word."""
    model, optimizer, _ = trained()
    state = {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    other = Net(swapped=True)
    other_optimizer = Adam(other.parameters(), 0.1)
    ptsave.TrainingState(model=other, optimizer=other_optimizer).load_state_dict(state)
    assert_same(moments(model, optimizer), moments(other, other_optimizer))


def test_numbers_that_became_text_are_numbers() -> None:
    """As torch.distributed.checkpoint makes them; torch's own load_state_dict would attach nothing."""
    model, optimizer, state = trained()
    saved = state["optimizer_state_dict"]
    saved["state"] = {str(key): value for key, value in saved["state"].items()}
    other = Net()
    other_optimizer = Adam(other.parameters(), 0.1)
    assert ptsave.TrainingState(model=other, optimizer=other_optimizer).load_state_dict(state) == []
    assert_same(moments(model, optimizer), moments(other, other_optimizer))


def test_without_names_an_order_that_says_nothing_is_refused() -> None:
    model, _, _ = trained()
    some = Adam([*model.second.parameters(), *model.head.parameters()])
    steps(model, some)
    state = {"model_state_dict": model.state_dict(), "optimizer_state_dict": some.state_dict()}
    other = Net(swapped=True)
    optimizer = Adam([*other.first.parameters(), *other.head.parameters()])
    training = ptsave.TrainingState(model=other, optimizer=optimizer)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(LossyError, match="another order"):
        training.load_state_dict(state)
    assert_same(before, other.state_dict())
    assert not optimizer.state


@pytest.mark.parametrize("change", ["number", "shape", "groups"])
def test_without_names_positions_must_agree_exactly(change: str) -> None:
    model, optimizer, _ = trained()
    saved = optimizer.state_dict()
    state = {"model": dict(model.state_dict()), "optimizer": saved}
    other = Net()
    parameters = list(other.parameters())
    groups: dict[str, Any] = {
        "number": parameters[:-1],
        "shape": [parameters[1], parameters[0], *parameters[2:]],
        "groups": [{"params": parameters[:2]}, {"params": parameters[2:]}],
    }
    training = ptsave.TrainingState(model=other, optimizer=Adam(groups[change]))
    with pytest.raises(LossyError, match="has no names"):
        training.load_state_dict(state)


def test_split_groups_take_the_options_of_the_one_that_was() -> None:
    model, optimizer, state = trained(weight_decay=0.5)
    other = Net()
    groups = [{"params": other.head.parameters(), "weight_decay": 0.25}, {"params": other.first.parameters()}]
    groups.append({"params": other.second.parameters(), "weight_decay": 0.5})
    other_optimizer = Adam(groups, 0.1)
    notes = ptsave.TrainingState(model=other, optimizer=other_optimizer).load_state_dict(state)
    assert_same(moments(model, optimizer), moments(other, other_optimizer))
    assert [group["weight_decay"] for group in other_optimizer.param_groups] == [0.5] * 3
    assert any("group 0: weight_decay = 0.5 of the checkpoint wins over 0.25" in note for note in notes)


def test_merged_groups_are_refused_where_their_options_differ() -> None:
    model = Net()
    groups: list[dict[str, Any]] = [
        {"params": list(model.first.parameters()), "lr": 0.1},
        {"params": [*model.second.parameters(), *model.head.parameters()], "lr": 0.2},
    ]
    optimizer = AdamW(groups)
    steps(model, optimizer)
    state = ptsave.TrainingState(model=model, optimizer=optimizer).state_dict()
    merged = ptsave.TrainingState(model=model, optimizer=AdamW(model.parameters()))
    with pytest.raises(LossyError, match=r"whose lr differ: 0\.1 and 0\.2"):
        merged.load_state_dict(state)
    optimizer.param_groups[1]["lr"] = 0.1
    state = ptsave.TrainingState(model=model, optimizer=optimizer).state_dict()
    assert not [note for note in merged.load_state_dict(state) if "start anew" in note]


OPTIMIZERS = (
    *("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "SGD", "RMSprop", "Adagrad", "Adadelta", "Rprop", "ASGD"),
    *("Adafactor", "Muon", "LBFGS"),
)


def stepped(name: str) -> ptsave.TrainingState:
    model = nn.Linear(4, 4, bias=False)
    optimizer = getattr(torch.optim, name)(model.parameters())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(2, 4)).square().mean()
        loss.backward()
        return loss  # type: ignore[no-any-return]

    optimizer.step(closure)
    return ptsave.TrainingState(model=model, optimizer=optimizer)


@pytest.mark.parametrize("name", some(OPTIMIZERS))
def test_an_optimizer_of_another_kind_is_refused(name: str) -> None:
    saved = stepped(name).state_dict()
    for other in OPTIMIZERS:
        if other == name:
            assert stepped(other).load_state_dict(saved) == []
        else:
            with pytest.raises(LossyError, match=f"belongs to .*, and the optimizer here is {other} "):
                stepped(other).load_state_dict(saved)


def test_options_and_states_of_another_version_are_the_same_optimizers() -> None:
    """What torch has added to its groups since then, what a scheduler adds, and what the user did."""
    saved = stepped("AdamW").state_dict()
    (group,) = saved["optimizer_state_dict"]["param_groups"]
    for key in ("decoupled_weight_decay", "fused", "differentiable"):
        del group[key]
    group |= {"initial_lr": 1e-3, "max_lr": 0.1, "layer": 3}
    state = stepped("AdamW")
    state.load_state_dict(saved)
    restored = state.state_dict()["optimizer_state_dict"]["param_groups"][0]
    assert restored["decoupled_weight_decay"] is True
    assert restored["max_lr"] == 0.1


SCHEDULERS: dict[str, tuple[Callable[[Any, int], Any], str]] = {
    "step": (lambda o, n: lr_scheduler.StepLR(o, n), "step_size"),
    "milestones": (lambda o, n: lr_scheduler.MultiStepLR(o, [n, 2 * n]), "milestones"),
    "cosine": (lambda o, n: lr_scheduler.CosineAnnealingLR(o, 10 * n), "T_max"),
    "linear": (lambda o, n: lr_scheduler.LinearLR(o, 0.1, total_iters=n), "total_iters"),
    "polynomial": (lambda o, n: lr_scheduler.PolynomialLR(o, 10 * n), "total_iters"),
    "one_cycle": (lambda o, n: lr_scheduler.OneCycleLR(o, 0.3, total_steps=20 * n), "total_steps"),
    "restarts": (lambda o, n: lr_scheduler.CosineAnnealingWarmRestarts(o, 10 * n), "T_0"),
    "sequence": (
        lambda o, n: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.CosineAnnealingLR(o, 10 * n)], [2]
        ),
        "T_max",
    ),
}


def scheduled(make: Callable[[Any, int], Any], number: int, lr: float, steps: int) -> tuple[Any, Any, Any]:
    model = nn.Linear(2, 2, bias=False)
    optimizer = SGD(model.parameters(), lr, momentum=0.9)
    scheduler = make(optimizer, number)
    for _ in range(steps):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
    return model, optimizer, scheduler


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_settings_that_differ_are_named_and_chosen(name: str) -> None:
    make, key = SCHEDULERS[name]
    model, optimizer, scheduler = scheduled(make, 2, 0.1, 5)
    saved = ptsave.TrainingState(model=model, optimizer=optimizer, scheduler=scheduler).state_dict()
    saved = copy.deepcopy(saved)
    plain = dict(zip(("model", "optimizer", "scheduler"), scheduled(make, 2, 0.1, 0), strict=True))
    assert ptsave.TrainingState(**plain).load_state_dict(saved) == []

    parts = dict(zip(("model", "optimizer", "scheduler"), scheduled(make, 3, 0.4, 0), strict=True))
    notes = ptsave.TrainingState(**parts).load_state_dict(saved)
    assert any(f"{key} = " in note and "of the checkpoint wins over" in note for note in notes)
    assert parts["optimizer"].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert_same(parts["scheduler"].state_dict(), scheduler.state_dict())

    parts = dict(zip(("model", "optimizer", "scheduler"), scheduled(make, 3, 0.4, 0), strict=True))
    notes = ptsave.TrainingState(**parts, settings="given").load_state_dict(saved)
    assert any(f"{key} = " in note and "given here wins over" in note for note in notes)
    _, new, _ = scheduled(make, 3, 0.4, 5)
    assert parts["optimizer"].param_groups[0]["lr"] == pytest.approx(new.param_groups[0]["lr"])
    assert parts["scheduler"].last_epoch == 5
    states = parts["optimizer"].state_dict()["state"], optimizer.state_dict()["state"]
    assert_same(*states)


def test_a_new_lr_without_a_scheduler() -> None:
    model, _, state = trained()
    for settings, lr in (("saved", 0.1), ("given", 0.25)):
        optimizer = Adam(model.parameters(), 0.25)
        resumed = ptsave.TrainingState(model=model, optimizer=optimizer, settings=settings)  # type: ignore[arg-type]
        (note,) = resumed.load_state_dict(state)
        assert note.startswith("optimizer: lr = ")
        assert "0.1" in note
        assert "0.25" in note
        assert optimizer.param_groups[0]["lr"] == lr
    with pytest.raises(UsageError, match="settings='mine'"):
        ptsave.TrainingState(model=model, settings="mine")  # type: ignore[arg-type]


def test_a_plateau_goes_on_from_its_lr() -> None:
    def make(patience: int, lr: float) -> dict[str, Any]:
        model = nn.Linear(2, 2, bias=False)
        optimizer = SGD(model.parameters(), lr)
        plateau = lr_scheduler.ReduceLROnPlateau(optimizer, patience=patience)
        return {"model": model, "optimizer": optimizer, "scheduler": plateau}

    first = make(1, 0.1)
    for _ in range(4):
        first["scheduler"].step(1.0)
    second = make(5, 0.1)
    state = copy.deepcopy(ptsave.TrainingState(**first).state_dict())
    ptsave.TrainingState(**second, settings="given").load_state_dict(state)
    assert second["optimizer"].param_groups[0]["lr"] == first["optimizer"].param_groups[0]["lr"]
    assert second["scheduler"].patience == 5


def test_an_lr_that_a_plateau_reduced_is_no_new_lr() -> None:
    def make(lr: float, **options: Any) -> dict[str, Any]:
        model = nn.Linear(2, 2, bias=False)
        optimizer = SGD(model.parameters(), lr)
        plateau = lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
        return {"model": model, "optimizer": optimizer, "scheduler": plateau, **options}

    first = make(0.1)
    state = ptsave.TrainingState(**first)
    for _ in range(3):  # each time resumed by the same script
        for _ in range(4):
            first["scheduler"].step(1.0)
        saved = copy.deepcopy(state.state_dict())
        second = make(0.1)
        state = ptsave.TrainingState(**second)
        assert state.load_state_dict(saved) == []
        assert second["optimizer"].param_groups[0]["lr"] == first["optimizer"].param_groups[0]["lr"] < 0.1
        assert second["scheduler"].state_dict() == first["scheduler"].state_dict()
        first = second
    for settings in ("saved", "given"):
        (note,) = ptsave.TrainingState(**make(0.4, settings=settings)).load_state_dict(saved)
        assert note.startswith("scheduler: base_lrs = ")
        assert "[0.1]" in note
        assert "[0.4]" in note
    del saved["scheduler_state_dict"]["base_lrs"]  # as torch saves it: no one can tell
    (note,) = ptsave.TrainingState(**make(0.1)).load_state_dict(saved)
    assert note.startswith("optimizer: lr = ")
    plateau = make(0.1)["scheduler"]  # torch alone takes what we wrote, and goes on to be resumed by us
    plateau.load_state_dict(state.state_dict()["scheduler_state_dict"])
    again = {**make(0.1), "scheduler": plateau}
    again["optimizer"] = plateau.optimizer
    again["model"].weight = plateau.optimizer.param_groups[0]["params"][0]
    assert ptsave.TrainingState(**again).state_dict()["scheduler_state_dict"]["base_lrs"] == [0.1]


def test_a_scheduler_of_another_kind_is_refused() -> None:
    model, optimizer, scheduler = scheduled(SCHEDULERS["step"][0], 2, 0.1, 1)
    saved = ptsave.TrainingState(model=model, optimizer=optimizer, scheduler=scheduler).state_dict()
    other = lr_scheduler.ExponentialLR(optimizer, 0.9)
    with pytest.raises(LossyError, match="belongs to StepLR, and the scheduler here is ExponentialLR"):
        ptsave.TrainingState(model=model, optimizer=optimizer, scheduler=other).load_state_dict(saved)


def test_frozen_and_unfrozen_layers_are_said() -> None:
    model = Net()
    optimizer = Adam([*model.first.parameters(), *model.head.parameters()])
    steps(model, optimizer)
    state = ptsave.TrainingState(model=model, optimizer=optimizer).state_dict()
    other = Net()
    other_optimizer = Adam([*other.second.parameters(), *other.head.parameters()])
    notes = ptsave.TrainingState(model=other, optimizer=other_optimizer).load_state_dict(state)
    assert "optimizer: second.weight, second.bias had no state in the checkpoint and start anew" in notes
    assert any("first.weight, first.bias is not used" in note for note in notes)
    assert_same(
        moments(other, other_optimizer), {n: v for n, v in moments(model, optimizer).items() if n[0] == "h"}
    )


def test_tied_parameters_go_by_any_of_their_names() -> None:
    def tied(first: str, second: str) -> nn.Module:
        model = nn.ModuleDict({first: nn.Linear(3, 3), second: nn.Linear(3, 3)})
        model[second].weight = model[first].weight
        return model

    model = tied("a", "b")
    optimizer = Adam(model.parameters())
    model["a"](model["b"](torch.randn(2, 3))).sum().backward()
    optimizer.step()
    state = copy.deepcopy(ptsave.TrainingState(model=model, optimizer=optimizer).state_dict())
    other = tied("b", "a")
    other_optimizer = Adam(other.parameters())
    assert ptsave.TrainingState(model=other, optimizer=other_optimizer).load_state_dict(state) == []
    assert torch.equal(other["a"].weight.grad, model["a"].weight.grad)
    assert torch.equal(
        optimizer.state[model["a"].weight]["exp_avg"], other_optimizer.state[other["a"].weight]["exp_avg"]
    )


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    ],
    ids=["DataParallel", "compile", "both"],
)
def test_wrappers_leave_no_trace(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, optimizer, state = trained()
    wrapped = wrap(model)
    taken = ptsave.TrainingState(model=wrapped, optimizer=optimizer).state_dict()
    assert list(taken["model_state_dict"]) == list(state["model_state_dict"])
    assert taken["optimizer_state_dict"]["param_groups"] == state["optimizer_state_dict"]["param_groups"]
    other = wrap(Net())
    training = ptsave.TrainingState(model=other, optimizer=Adam(other.parameters(), 0.1))
    assert training.load_state_dict(copy.deepcopy(taken)) == []
    plain = {
        "state_dict": {f"_orig_mod.module.{key}": value for key, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
    }
    assert training.load_state_dict(plain) == ["rng_state: random numbers go on from elsewhere"]


def test_a_compiled_layer_keeps_the_layers_name() -> None:
    model = Net()
    model.first = torch.compile(model.first, backend="eager")  # type: ignore[assignment]
    state = ptsave.TrainingState(model=model, optimizer=Adam(model.parameters())).state_dict()
    assert list(state["model_state_dict"]) == list(Net().state_dict())
    assert "first" in state["model_state_dict"]._metadata
    other = Net()
    assert ptsave.TrainingState(model=other, optimizer=Adam(other.parameters())).load_state_dict(state) == []
    assert torch.equal(other.first.weight, model.first.weight)


def test_a_shared_state_runs_through_the_parameters_in_their_order() -> None:
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(6, 4)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.step(closure)
    state = ptsave.TrainingState(model=model, optimizer=optimizer).state_dict()
    same = ptsave.TrainingState(model=model, optimizer=torch.optim.LBFGS(model.parameters(), max_iter=2))
    assert same.load_state_dict(copy.deepcopy(state)) == []
    other = Net(swapped=True)
    with pytest.raises(LossyError, match="in another order"):
        ptsave.TrainingState(model=other, optimizer=torch.optim.LBFGS(other.parameters())).load_state_dict(
            state
        )


# --- several, and others ----------------------------------------------------------------------------------


def test_dicts_and_lists_of_models_and_optimizers() -> None:
    def make() -> tuple[ptsave.TrainingState, dict[str, Net], list[Any]]:
        models = {"g": Net(), "d": Net(swapped=True)}
        optimizers = [Adam(models["g"].parameters()), SGD(models["d"].parameters(), 0.1, momentum=0.9)]
        return ptsave.TrainingState(model=models, optimizer=optimizers), models, optimizers

    training, models, optimizers = make()
    for model, optimizer in zip(models.values(), optimizers, strict=True):
        steps(model, optimizer)
    state = training.state_dict()
    assert state["optimizer_state_dict"][1]["param_groups"][0]["param_names"][0] == "d.second.weight"
    other, other_models, other_optimizers = make()
    assert other.load_state_dict(copy.deepcopy(state)) == []
    for name in models:
        assert_same(models[name].state_dict(), other_models[name].state_dict())
    assert_same(moments(models["d"], optimizers[1]), moments(other_models["d"], other_optimizers[1]))
    with pytest.raises(LossyError, match="2 in the checkpoint, one here"):
        ptsave.TrainingState(model=other_models, optimizer=other_optimizers[0]).load_state_dict(state)


def test_a_loss_with_weights_is_kept_and_named() -> None:
    model, criterion = Net(), nn.Linear(2, 2)
    everything = [*model.parameters(), *criterion.parameters()]
    with pytest.raises(LossyError, match=r"shape \[2, 2\] of no model"):
        ptsave.TrainingState(model=model, optimizer=Adam(everything))
    state = ptsave.TrainingState(model=model, optimizer=Adam(everything), criterion=criterion).state_dict()
    assert state["optimizer_state_dict"]["param_groups"][0]["param_names"][-1] == "criterion:bias"
    assert list(state["criterion_state_dict"]) == ["weight", "bias"]


def test_gradients_of_an_accumulation_are_kept() -> None:
    model, optimizer, _ = trained()
    model.head(torch.randn(2, 4)).sum().backward()
    state = copy.deepcopy(ptsave.TrainingState(model=model, optimizer=optimizer).state_dict())
    assert list(state["gradients"]["model"]) == ["head.weight", "head.bias"]
    other = Net()
    other(torch.randn(2, 4)).sum().backward()
    ptsave.TrainingState(model=other, optimizer=Adam(other.parameters())).load_state_dict(state)
    assert other.first.weight.grad is None
    assert model.head.bias.grad is not None
    assert torch.equal(other.head.bias.grad, model.head.bias.grad)  # type: ignore[arg-type]


def test_sparse_gradients_and_their_optimizer() -> None:
    model = nn.Embedding(5, 3, sparse=True)
    optimizer = torch.optim.SparseAdam(model.parameters())
    model(torch.tensor([1, 1, 3])).sum().backward()
    optimizer.step()
    state = copy.deepcopy(ptsave.TrainingState(model=model, optimizer=optimizer).state_dict())
    other = nn.Embedding(5, 3, sparse=True)
    other_optimizer = torch.optim.SparseAdam(other.parameters())
    assert ptsave.TrainingState(model=other, optimizer=other_optimizer).load_state_dict(state) == []
    optimizer.step()
    other_optimizer.step()
    assert torch.equal(model.weight, other.weight)


def test_float32_moments_of_bfloat16_parameters_stay_float32() -> None:
    """torch's own load_state_dict rounds them to the parameter's dtype."""
    model = nn.Linear(3, 3, dtype=torch.bfloat16)
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.rand_like(parameter, dtype=torch.float32)
    state = ptsave.TrainingState(model=model, optimizer=optimizer).state_dict()
    other = nn.Linear(3, 3, dtype=torch.bfloat16)
    other_optimizer = SGD(other.parameters(), 0.1, momentum=0.9)
    ptsave.TrainingState(model=other, optimizer=other_optimizer).load_state_dict(copy.deepcopy(state))
    assert_same(moments(model, optimizer), moments(other, other_optimizer))


def test_containers_come_back_as_the_object_had_them() -> None:
    model = Net()
    optimizer = SGD(model.parameters(), 0.1)
    scheduler = lr_scheduler.MultiStepLR(optimizer, [1, 2])
    state = ptsave.TrainingState(model=model, optimizer=optimizer, scheduler=scheduler).state_dict()
    assert type(state["scheduler_state_dict"]["milestones"]) is dict
    ptsave.TrainingState(model=model, optimizer=optimizer, scheduler=scheduler).load_state_dict(state)
    assert type(scheduler.milestones) is Counter


# --- what does not fit ------------------------------------------------------------------------------------


class Fails:
    """A part that refuses its state."""

    def state_dict(self) -> State:
        return {"x": 1}

    def load_state_dict(self, state: State) -> None:
        raise ValueError("not mine")


def test_nothing_changes_when_a_part_refuses() -> None:
    model, optimizer, _ = trained()
    scheduler = lr_scheduler.StepLR(optimizer, 2)
    training = ptsave.TrainingState(model=model, optimizer=optimizer, scheduler=scheduler, zzz=Fails())
    state = copy.deepcopy(training.state_dict())
    steps(model, optimizer)
    scheduler.step()
    before = copy.deepcopy(training.state_dict())
    with pytest.raises(LossyError, match=r"refuses its saved state: ValueError: not mine \(zzz\)"):
        training.load_state_dict(state)
    after = training.state_dict()
    assert_same(before["model_state_dict"], after["model_state_dict"])
    assert_same(before["optimizer_state_dict"]["state"], after["optimizer_state_dict"]["state"])
    assert before["scheduler_state_dict"] == after["scheduler_state_dict"]


class Counts(nn.Module):
    """A module with an extra state, which raises when it is given one that it does not want."""

    def __init__(self, wanted: int | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)
        self.seen: list[int] = [1]
        self.wanted = wanted

    def get_extra_state(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.seen[:] = state["seen"]
        if self.wanted is not None and self.wanted not in self.seen:
            raise ValueError("not what is wanted")


class Nested:
    """An object of the user's that keeps its state in another object, and refuses half-way."""

    def __init__(self, fails: bool) -> None:
        self.inner = SimpleNamespace(number=1, shadow=torch.ones(2))
        self.fails = fails

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.inner.number, "shadow": self.inner.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.number = state["number"]
        self.inner.shadow.copy_(state["shadow"])
        if self.fails and state["number"] == 7:
            raise RuntimeError("half-way")


class Hooked(nn.Linear):
    """A module whose own loading code fails after it has copied."""

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        raise OSError("too late")


def everything(model: nn.Module, seed: int, **others: Any) -> tuple[ptsave.TrainingState, nn.Module]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 * seed)
    for _ in range(seed):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, float(seed))
        optimizer.step()
    scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [torch.optim.lr_scheduler.ConstantLR(optimizer), torch.optim.lr_scheduler.StepLR(optimizer, 3)],
        [2],
    )
    for _ in range(seed):
        scheduler.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**seed)
    generator = torch.Generator().manual_seed(seed)
    data = ptsave.ResumableDataLoader(list(range(8)), seed=seed)  # type: ignore[arg-type]
    for _ in zip(range(seed), data, strict=False):
        pass
    parts = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler, "generator": generator}
    return ptsave.TrainingState(model=model, data=data, **parts, **others), model


def pair(last: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), last(2, 2))


@pytest.mark.filterwarnings("ignore::UserWarning")  # what torch thinks of schedulers in schedulers
@pytest.mark.parametrize(
    ("make", "others", "message"),
    [
        (lambda i: Counts([2, None][i]), lambda i: {}, "not what is wanted"),
        (
            lambda i: pair([Hooked, nn.Linear][i]),
            lambda i: {},
            "too late",
        ),
        (lambda i: nn.Linear(2, 2), lambda i: {"ema": Counts([2, None][i])}, "not what is wanted"),
        (lambda i: Counts(), lambda i: {"mine": Nested(i == 0)}, "half-way"),
    ],
)
def test_when_any_part_refuses_all_is_as_it_was(make: Any, others: Any, message: str) -> None:
    saved, model = everything(make(1), 3, **others(1))
    for module in (model, others(1).get("ema")):
        if isinstance(module, Counts):
            module.seen = [5]
    if "mine" in others(1):
        saved._parts["mine"].inner.number = 7
    tree = copy.deepcopy(saved.state_dict())
    state, live = everything(make(0), 1, **others(0))
    torch.manual_seed(11)
    before = copy.deepcopy(state.state_dict())
    tensors = dict(live.named_parameters())
    with pytest.raises(LossyError, match=message) as caught:
        state.load_state_dict(tree)
    assert caught.value.hint == "resume with the same class"
    assert_same(before, state.state_dict())
    assert all(parameter is tensors[name] for name, parameter in live.named_parameters())


def test_a_model_of_another_shape_is_refused_with_every_name() -> None:
    state = trained()[2]
    other = Net(head=3)
    training = ptsave.TrainingState(model=other, optimizer=Adam(other.parameters(), 0.1))
    with pytest.raises(LossyError, match=r"does not fit model: 2 of another shape \(head.weight"):
        training.load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model_state_dict"), "holds no model's state dict"),
        (lambda s: s["optimizer_state_dict"].pop("param_groups"), "not an optimizer's state dict"),
        (lambda s: s["optimizer_state_dict"].update(state=[1]), "not an optimizer's state dict"),
        (lambda s: s["optimizer_state_dict"]["param_groups"][0].update(params=[0]), "differ in number"),
        (lambda s: s["optimizer_state_dict"]["param_groups"][0].update(params=[[0]]), "not an optimizer's"),
        (lambda s: s["optimizer_state_dict"]["param_groups"][0].update(param_names=3), "not an optimizer's"),
        (
            lambda s: s["optimizer_state_dict"].update(x=s["optimizer_state_dict"]),
            "container that holds itself",
        ),
        (lambda s: s["optimizer_state_dict"]["state"][0].update(exp_avg=torch.ones(2)), "has the shape"),
        (
            lambda s: s["rng_state"].update(torch=torch.ones(3, dtype=torch.uint8)),
            "generator 'torch' is malformed",
        ),
        (lambda s: s["rng_state"].update(python=(3, (1, 2), None)), "generator 'python' is malformed"),
        (lambda s: s["rng_state"].update(numpy=("MT19937", [1], 3)), "generator 'numpy' is malformed"),
        (lambda s: s.update(gradients={"model": {"x": torch.ones(1)}}), "no parameter takes"),
        (lambda s: s.update(optimizer_state_dict=[{}, {}]), "2 in the checkpoint"),
    ],
)
def test_damage_is_said_and_nothing_changes(change: Callable[[State], Any], message: str) -> None:
    model, optimizer, state = trained()
    state = copy.deepcopy(state)
    change(state)
    steps(model, optimizer)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(LossyError, match=message):
        ptsave.TrainingState(model=model, optimizer=optimizer).load_state_dict(state)
    assert_same(before, model.state_dict())


def test_a_scheduler_for_another_number_of_groups_is_refused() -> None:
    model = Net()
    two = SGD([{"params": model.first.parameters()}, {"params": model.head.parameters()}], 0.1)
    one = SGD([*model.first.parameters(), *model.head.parameters()], 0.1)
    state = ptsave.TrainingState(
        model=model, optimizer=two, scheduler=lr_scheduler.StepLR(two, 3)
    ).state_dict()
    training = ptsave.TrainingState(model=model, optimizer=one, scheduler=lr_scheduler.StepLR(one, 3))
    with pytest.raises(LossyError, match="is for 2 parameter groups, the optimizer has 1"):
        training.load_state_dict(state)


def test_what_is_missing_is_said() -> None:
    model = Net()
    optimizer = Adam(model.parameters())
    training = ptsave.TrainingState(
        model=model, optimizer=optimizer, scheduler=lr_scheduler.StepLR(optimizer, 3), scaler=None
    )
    notes = training.load_state_dict({"state_dict": model.state_dict(), "epoch": 3, "hparams": {"lr": 1}})
    assert notes == [
        "not used of the checkpoint: hparams",
        "optimizer: not in the checkpoint, goes on as it is",
        "scheduler: not in the checkpoint, goes on as it is",
        "rng_state: random numbers go on from elsewhere",
    ]


def test_a_scaler_that_is_off_has_nothing_to_say() -> None:
    training = ptsave.TrainingState(model=Net(), scaler=torch.amp.GradScaler("cpu", enabled=False))
    assert training.load_state_dict(copy.deepcopy(training.state_dict())) == []


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"model": object()}, "not a torch.nn.Module"),
        ({"model": Net(), "optimizer": 3}, "a int has no state_dict"),
        ({"model": Net(), "data": torch.utils.data.DataLoader([1])}, "does not know how far it came"),
        ({"model": Net(), "step": Fails()}, "'step' is kept anyway"),
    ],
)
def test_what_has_no_state_is_refused_at_once(parts: State, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ptsave.TrainingState(**parts)


def test_what_is_not_plain_data_is_refused_by_its_path() -> None:
    class Odd(Fails):
        def state_dict(self) -> State:
            return {"a": [{"f": print}]}

    with pytest.raises(LossyError, match=r"'odd\.a\.0\.f' is a builtins\.builtin_function"):
        ptsave.TrainingState(model=Net(), odd=Odd()).state_dict()


def test_numpy_values_become_plain_and_come_back() -> None:
    class Counts:
        def __init__(self) -> None:
            self.values: State = {"best": np.float32(0.1), "history": np.arange(3), "last": (1, 2)}

        def state_dict(self) -> State:
            return self.values

        def load_state_dict(self, state: State) -> None:
            self.values = state

    counts = Counts()
    training = ptsave.TrainingState(model=Net(), counts=counts)
    state = training.state_dict()
    assert type(state["counts_state_dict"]["best"]) is float
    training.load_state_dict(state)
    assert type(counts.values["best"]) is np.float32
    assert counts.values["best"] == np.float32(0.1)
    assert counts.values["history"].tolist() == [0, 1, 2]
    assert counts.values["last"] == (1, 2)


def test_an_ordered_dict_stays_one_with_its_versions() -> None:
    state = ptsave.TrainingState(model=Net()).state_dict()
    assert type(state["model_state_dict"]) is OrderedDict
    assert state["model_state_dict"]._metadata["first"] == {"version": 1}


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda seed: torch.Generator().manual_seed(seed), lambda g: torch.rand((), generator=g).item()),
        (np.random.default_rng, lambda g: g.random()),
        (lambda seed: np.random.Generator(np.random.MT19937(seed)), lambda g: g.random()),
        (np.random.RandomState, lambda g: g.standard_normal()),
        (random.Random, lambda g: g.gauss(0, 1)),
    ],
    ids=["torch", "PCG64", "MT19937", "RandomState", "random"],
)
def test_generators_of_ones_own_go_on(
    make: Callable[[int], Any], draw: Callable[[Any], float], tmp_path: Path
) -> None:
    generator, other = make(1), make(2)
    draw(generator)
    model = Net()
    ptsave.save(tmp_path / "s.pt", ptsave.TrainingState(model=model, noise=generator))
    training = ptsave.TrainingState(model=model, noise=other)
    assert training.load_state_dict(torch.load(tmp_path / "s.pt", weights_only=True)) == []
    assert [draw(other) for _ in range(3)] == [draw(generator) for _ in range(3)]


def test_verify_finds_everything_in_it(tmp_path: Path) -> None:
    model = Net()
    optimizer = Adam(model.parameters())
    steps(model, optimizer)
    training = ptsave.TrainingState(
        model=model,
        optimizer=optimizer,
        scheduler=lr_scheduler.StepLR(optimizer, 2),
        scaler=torch.amp.GradScaler("cpu"),
        data=ptsave.ResumableDataLoader([1, 2, 3], shuffle=True),  # type: ignore[arg-type]
    )
    ptsave.save(tmp_path / "s.pt", {"step": 3, **training.state_dict()})
    with open_checkpoint(tmp_path / "s.pt") as checkpoint:
        findings = list(resumable(checkpoint))
    assert {finding.level for finding in findings} == {"ok"}
    assert "data_state_dict" in findings[-1].message


# --- data that has no end ---------------------------------------------------------------------------------


def a_list_in_itself() -> Any:
    value: list[Any] = [1]
    value.append(value)
    return value


def a_dict_in_itself() -> Any:
    value: dict[str, Any] = {"a": 1}
    value["b"] = {"c": [value]}
    return value


def a_tuple_in_itself() -> Any:
    inner: list[Any] = []
    value = (inner, 1)
    inner.append(value)
    return value


def a_lattice() -> Any:
    """60 lists, and 2**60 paths through them."""
    value: Any = [1.0]
    for _ in range(60):
        value = [value, value]
    return value


ENDLESS = [a_list_in_itself, a_dict_in_itself, a_tuple_in_itself, a_lattice]
KEYS = some(["unknown", "mine_state_dict", "optimizer_state_dict", "model_state_dict"])


class Holds:
    """An object whose state is what it was given."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


@pytest.mark.parametrize("make", ENDLESS)
@pytest.mark.parametrize("key", KEYS)
def test_data_of_a_file_that_has_no_end(make: Callable[[], Any], key: str, tmp_path: Path) -> None:
    model, optimizer, state = trained()
    parts = {"model": model, "optimizer": optimizer, "mine": Holds(1)}
    inside = state.get(key, {}) | {"value": make()} if isinstance(state.get(key, {}), dict) else make()
    torch.save(state | {"step": 1, key: inside}, tmp_path / "step-000000001.pt")
    resuming = ptsave.TrainingState(**parts)
    keeper = ptsave.Checkpoints(tmp_path)
    for resume_it in (
        lambda: keeper.resume(resuming),
        lambda: resuming.load_state_dict(ptsave.read_training(tmp_path / "step-000000001.pt")),
        lambda: resuming.load_state_dict(state | {key: inside}),
    ):
        with warnings.catch_warnings(action="ignore"), contextlib.suppress(PtsaveError):
            resume_it()
    with open_checkpoint(tmp_path / "step-000000001.pt") as checkpoint, contextlib.suppress(PtsaveError):
        list(resumable(checkpoint))


@pytest.mark.parametrize("make", [*ENDLESS[:3], lambda: functools.reduce(lambda v, _: [v], range(5000), 0)])
def test_a_state_that_has_no_end_is_not_saved(make: Callable[[], Any]) -> None:
    state = ptsave.TrainingState(model=nn.Linear(1, 1), mine=Holds(make()))
    with pytest.raises(LossyError, match=r"a container that holds itself|nests deeper"):
        state.state_dict()


def test_a_lattice_is_saved_and_comes_back_as_one(tmp_path: Path) -> None:
    mine = Holds(a_lattice())
    state = ptsave.TrainingState(model=nn.Linear(1, 1), mine=mine)
    taken = state.state_dict()
    assert taken["mine_state_dict"]["value"][0] is taken["mine_state_dict"]["value"][1]
    state.load_state_dict(taken)
    assert mine.value[0] is mine.value[1]


class Arrays:
    """A part that keeps arrays, and refuses what it is given when it has taken some of it."""

    def __init__(self) -> None:
        self.counts = np.arange(5.0)
        self.table = {"x": np.array([1.0, np.nan])}

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts, "table": self.table}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts[:] = -1
        self.table["x"] = np.zeros(7)
        raise RuntimeError("half-way")


def test_arrays_of_a_part_are_put_back() -> None:
    model, part = nn.Linear(1, 1), Arrays()
    state = ptsave.TrainingState(model=model, part=part)
    saved = copy.deepcopy(state.state_dict())
    with torch.no_grad():
        model.weight.fill_(7)
    with pytest.raises(LossyError, match="half-way") as caught:
        state.load_state_dict(saved)
    assert "half restored" not in caught.value.hint
    assert part.counts.tolist() == list(range(5))
    assert part.table["x"].tolist()[:1] == [1.0]
    assert model.weight == 7


class Forgetful:
    """A part whose state cannot be asked for any more once loading it has failed."""

    is_lost: Any = ()

    def state_dict(self) -> dict[str, Any]:
        if type(self).is_lost:
            raise RuntimeError("lost")
        return {"a": 1}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        type(self).is_lost = True
        raise RuntimeError("half-way")


def test_a_part_that_cannot_say_what_it_is_keeps_no_other_from_being_put_back() -> None:
    model, part = nn.Linear(1, 1), Forgetful()
    state = ptsave.TrainingState(model=model, other=Arrays(), part=part)
    saved = copy.deepcopy(state.state_dict())
    del saved["other_state_dict"]
    before = model.weight.detach().clone()
    saved["model_state_dict"]["weight"].zero_()
    with pytest.raises(LossyError, match="half-way") as caught:
        state.load_state_dict(saved)
    assert caught.value.hint == "part may be half restored: begin anew"
    assert torch.equal(model.weight, before)


def test_a_setting_that_is_nan_on_both_sides_is_the_same() -> None:
    model = nn.Linear(1, 1)
    optimizer = SGD(model.parameters(), lr=float("nan"))
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    state = ptsave.TrainingState(model=model, optimizer=optimizer, scheduler=scheduler)
    assert state.load_state_dict(copy.deepcopy(state.state_dict())) == []
    assert np.isnan(optimizer.param_groups[0]["lr"])


class Extra(nn.Linear):
    """A layer whose extra state is what it was given."""

    held: Any = None

    def get_extra_state(self) -> Any:
        return self.held

    def set_extra_state(self, state: Any) -> None:
        self.held = state


@pytest.mark.parametrize("make", ENDLESS)
def test_an_extra_state_that_has_no_end(make: Callable[[], Any], tmp_path: Path) -> None:
    """It is given back as it was, refused by a cap, or not saved: every way ends soon."""
    path, model, other = tmp_path / "m.pt", Extra(1, 1), Extra(1, 1)
    model.held = make()
    torch.save(model.state_dict(), path)
    opened = ptsave.open(path)
    for read in (
        lambda: ptsave.load(path, other),
        lambda: other.load_state_dict(opened.state_dict()),
        lambda: other.load_state_dict(ptsave.read_training(path)["model_state_dict"]),
    ):
        other.held = None
        with contextlib.suppress(PtsaveError):
            read()
            assert type(other.held) is type(model.held)
    opened.close()
    for write in (
        lambda: ptsave.save(tmp_path / "n.pt", model),
        lambda: ptsave.Checkpoints(tmp_path / "run").save(ptsave.TrainingState(model=model), step=1),
    ):
        with contextlib.suppress(PtsaveError):
            write()
    held = {"model_state_dict": model.state_dict()}
    for walk in (lambda: list(flatten(held)), lambda: named(held), lambda: list(tensors_in(held))):
        with contextlib.suppress(PtsaveError):
            walk()


def test_a_shared_container_is_one_in_the_snapshot(tmp_path: Path) -> None:
    inner = {"w": torch.ones(2), "n": [1, {}]}
    tree = {"a": inner, "b": [inner, inner]}
    snapshot = HostMemory().snapshot(tree, tmp_path / "s.pt").root
    assert snapshot["a"] is snapshot["b"][0] is snapshot["b"][1]
    found = named(tree)
    assert found == tree
    assert found["a"] is found["b"][1]


@pytest.mark.slow
def test_data_that_is_100000_deep(tmp_path: Path) -> None:
    deep = b"]" * 100_000 + b"a" * 99_999
    pickled = b"\x80\x02}(X\x04\x00\x00\x00stepK\x01X\x04\x00\x00\x00deep" + deep + b"u."
    path = tmp_path / "step-000000001.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("step/data.pkl", pickled)
        archive.writestr("step/version", "3\n")
    state = ptsave.TrainingState(model=nn.Linear(1, 1))
    with pytest.raises(PtsaveError):
        ptsave.read_training(path)
    with pytest.raises(PtsaveError), warnings.catch_warnings(action="ignore"):
        ptsave.Checkpoints(tmp_path).resume(state)
    value: Any = 0
    for _ in range(100_000):
        value = [value]
    state = ptsave.TrainingState(model=nn.Linear(1, 1), mine=Holds(1))
    saved = state.state_dict() | {"mine_state_dict": {"value": value}}
    with pytest.raises(LossyError, match="nests too deep"):
        state.load_state_dict(saved)


@pytest.mark.parametrize("is_named", [True, False])
def test_a_replaced_layer_begins_anew_and_the_rest_goes_on(is_named: bool) -> None:
    """What the optimizer knows of a head of another shape is left; all else is restored."""
    old = Net()
    old_optimizer = Adam(old.parameters())
    steps(old, old_optimizer)
    saved = ptsave.TrainingState(model=old, optimizer=old_optimizer).state_dict()
    if not is_named:
        saved["optimizer_state_dict"] = old_optimizer.state_dict()
    new = Net(head=3)
    head = new.head.weight.detach().clone()
    optimizer = Adam(new.parameters())
    state = ptsave.TrainingState(model=new, optimizer=optimizer)
    with pytest.raises(LossyError, match="of another shape"):
        state.load_state_dict(saved)
    notes = state.load_state_dict(saved, allow_missing="head.*", allow_unexpected=["head.*"])
    assert "optimizer: head.weight, head.bias are fresh, so their saved state is not used" in notes
    assert any("fresh: head.weight, head.bias" in note for note in notes)
    assert torch.equal(new.head.weight, head)
    assert torch.equal(new.first.weight, old.first.weight)
    assert set(moments(new, optimizer)) == {
        "first.weight",
        "first.bias",
        "second.weight",
        "second.bias",
    }
    assert torch.equal(
        optimizer.state[new.first.weight]["exp_avg"], old_optimizer.state[old.first.weight]["exp_avg"]
    )
    steps(new, optimizer, 1)
    assert optimizer.state[new.head.weight]["step"] == 1
    with pytest.raises(LossyError, match="less than 90%"):
        state.load_state_dict(saved, allow_missing="head.*", allow_unexpected="head.*", min_coverage=0.9)

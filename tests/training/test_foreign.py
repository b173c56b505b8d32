"""Trainings that others saved go on: the tutorial's, Lightning's, accelerate's, transformers' Trainer's."""

from __future__ import annotations

import argparse
import copy
import json
import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import AveragedModel

import ptsave
from ptsave.cli.main import run as run_cli
from ptsave.errors import CorruptError, LossyError, MissingFileError, UsageError
from tests.support import some

NO_RNG = "rng_state: random numbers go on from elsewhere"


class Training:
    """A small model with dropout, its optimizer and its scheduler."""

    def __init__(self, seed: int, steps: int = 0) -> None:
        torch.manual_seed(seed)
        self.model: Any = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
        self.optimizer: Any = AdamW(self.model.parameters(), 1e-2)
        self.scheduler: Any = StepLR(self.optimizer, 2)
        self.step(steps)

    def step(self, number: int = 1) -> None:
        for _ in range(number):
            self.optimizer.zero_grad()
            inputs = torch.randn(6, 4) * random.random() * float(np.random.rand())
            self.model(inputs).square().mean().backward()
            self.optimizer.step()
            self.scheduler.step()

    def resume(self, path: Path) -> list[str]:
        parts = {"optimizer": self.optimizer, "scheduler": self.scheduler}
        return ptsave.TrainingState(model=self.model, **parts).load_state_dict(ptsave.read_training(path))

    def goes_on_like(self, other: Training) -> bool:
        """Whether three more steps of both end with the same weights."""
        ends = []
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        for training in (self, other):
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])
            training.step(3)
            ends.append(copy.deepcopy(training.model.state_dict()))
        return all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


# --- files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        ("model_state_dict", "optimizer_state_dict", "scheduler_state_dict"),
        ("state_dict", "optimizer", "scheduler"),
        ("model", "optim", "lr_scheduler"),
        ("net", "opt", "lr_sched"),
    ],
)
def test_the_tutorials_dictionary_and_its_relatives(tmp_path: Path, keys: tuple[str, str, str]) -> None:
    saved = Training(0, 3)
    values = (saved.model.state_dict(), saved.optimizer.state_dict(), saved.scheduler.state_dict())
    torch.save(dict(zip(keys, values, strict=True)) | {"epoch": 2, "loss": 0.5}, tmp_path / "t.pt")
    resumed = Training(1)
    assert resumed.resume(tmp_path / "t.pt") == [NO_RNG]
    assert resumed.goes_on_like(saved)


def test_generators_that_were_saved_by_hand(tmp_path: Path) -> None:
    saved = Training(0, 3)
    state = {
        "model": saved.model.state_dict(),
        "torch_rng_state": torch.get_rng_state(),
        "numpy_rng_state": np.random.get_state(),
        "python_rng_state": random.getstate(),
    }
    torch.save(state, tmp_path / "t.pt")
    wanted = torch.rand(()).item(), np.random.rand(), random.random()
    assert (
        ptsave.TrainingState(model=Training(1).model).load_state_dict(ptsave.read_training(tmp_path / "t.pt"))
        == []
    )
    assert (torch.rand(()).item(), np.random.rand(), random.random()) == wanted


def test_weights_alone_and_whole_modules(tmp_path: Path) -> None:
    saved = Training(0, 3)
    torch.save(saved.model.state_dict(), tmp_path / "w.pt")
    torch.save(saved.model, tmp_path / "m.pt")
    torch.save({"model": saved.model, "epoch": 3}, tmp_path / "d.pt")
    safetensors.torch.save_file(saved.model.state_dict(), tmp_path / "w.safetensors")
    for path in tmp_path.iterdir():
        resumed = Training(1)
        assert "optimizer: not in the checkpoint, goes on as it is" in resumed.resume(path)
        assert all(
            torch.equal(value, saved.model.state_dict()[key])
            for key, value in resumed.model.state_dict().items()
        )


def test_what_is_no_plain_data_stays_inert_and_is_said(tmp_path: Path) -> None:
    saved = Training(0, 1)
    state = {
        "model": saved.model.state_dict(),
        "args": argparse.Namespace(lr=1),
        "scheduler": saved.scheduler,
    }
    torch.save(state, tmp_path / "t.pt")
    notes = Training(1).resume(tmp_path / "t.pt")
    assert any("args (a argparse.Namespace)" in note and "scheduler (a torch" in note for note in notes)
    torch.save(state | {"scheduler": {"last_epoch": argparse.Namespace()}}, tmp_path / "t.pt")
    with pytest.raises(LossyError, match=r"'scheduler\.last_epoch' is a argparse\.Namespace"):
        Training(1).resume(tmp_path / "t.pt")


def test_a_lightning_checkpoint(tmp_path: Path) -> None:
    """Its layout: names below the LightningModule's attribute, lists of optimizers and schedulers."""
    saved = Training(0, 3)
    weights = OrderedDict((f"model.{key}", value) for key, value in saved.model.state_dict().items())
    weights["metric.total"] = torch.zeros(1)
    checkpoint = {
        "epoch": 1,
        "global_step": 3,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": weights,
        "loops": {"fit_loop": {}},
        "callbacks": {},
        "optimizer_states": [saved.optimizer.state_dict()],
        "lr_schedulers": [saved.scheduler.state_dict()],
        "hyper_parameters": {"lr": 0.1},
    }
    torch.save(checkpoint, tmp_path / "l.ckpt")
    resumed = Training(1)
    assert resumed.resume(tmp_path / "l.ckpt") == [
        "not used of the checkpoint: pytorch-lightning_version, loops, hyper_parameters",
        "model: took the names under 'model.'",
        "model: not used: metric.total",
        NO_RNG,
    ]
    assert resumed.goes_on_like(saved)
    assert ptsave.read_training(tmp_path / "l.ckpt")["step"] == 3


def in_lightning(lightning: Any, saved: Training) -> Any:
    """A module of Lightning's that trains what `saved` has."""

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = saved.model

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return self.model(batch[0]).square().mean()  # type: ignore[no-any-return]

        def configure_optimizers(self) -> Any:
            return [saved.optimizer], [saved.scheduler]

    return Module()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_lightning_itself(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", exc_type=ImportError)
    saved = Training(0)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(24, 4)), 6)
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(in_lightning(lightning, saved), data)
    trainer.save_checkpoint(tmp_path / "l.ckpt")
    resumed = Training(1)
    assert NO_RNG in resumed.resume(tmp_path / "l.ckpt")
    assert resumed.scheduler.last_epoch == 3
    assert resumed.goes_on_like(saved)


# --- which weights, which optimizer, which step ------------------------------------------------------------


def average_of(training: Training) -> dict[str, torch.Tensor]:
    return {key: (value * 0.5).to(value.dtype) for key, value in training.model.state_dict().items()}


def same_weights(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, state[key].to(value.dtype)) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("key", "average"),
    [
        ("denoiser", "ema"),
        ("model", "model_ema"),
        ("state_dict", "state_dict_ema"),
        ("net", "ema_model"),
        ("unet", "averaged"),
        ("model", "swa_state_dict"),
        ("generator", "shadow"),
        ("student", "teacher"),
        ("online", "target"),
    ],
)
def test_an_average_is_never_the_model(tmp_path: Path, key: str, average: str) -> None:
    saved = Training(0, 3)
    parts = {average: average_of(saved), key: saved.model.state_dict()}
    torch.save(parts | {"optimizer": saved.optimizer.state_dict()}, tmp_path / "t.pt")
    resumed, ema = Training(1), Training(2).model
    notes = resumed.resume(tmp_path / "t.pt")
    assert f"not used of the checkpoint: {average}" in notes
    assert same_weights(resumed.model, saved.model.state_dict())
    others = {average.removesuffix("_state_dict").removeprefix("state_dict_"): ema}
    state = ptsave.TrainingState(model=resumed.model, optimizer=resumed.optimizer, **others)
    assert state.load_state_dict(ptsave.read_training(tmp_path / "t.pt")) == [NO_RNG]
    assert same_weights(ema, average_of(saved))
    assert same_weights(resumed.model, saved.model.state_dict())


def test_a_part_of_ones_own_is_not_the_model(tmp_path: Path) -> None:
    saved, critic = Training(0, 3), Training(5)
    torch.save({"policy": saved.model.state_dict(), "net": critic.model.state_dict()}, tmp_path / "t.pt")
    resumed, other = Training(1), Training(2)
    state = ptsave.TrainingState(model=resumed.model, net=other.model)
    state.load_state_dict(ptsave.read_training(tmp_path / "t.pt"))
    assert same_weights(resumed.model, saved.model.state_dict())
    assert same_weights(other.model, critic.model.state_dict())


def test_averages_alone_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = Training(0, 3)
    parts = {"ema": average_of(saved), "optimizer": saved.optimizer.state_dict()}
    torch.save(parts, tmp_path / "t.pt")
    with pytest.raises(LossyError, match="only averages of them: ema") as caught:
        Training(1).resume(tmp_path / "t.pt")
    assert "select='ema'" in caught.value.hint
    assert run_cli(["verify", str(tmp_path / "t.pt"), "--checks", "resume"]) == 1
    assert "the only weights are averages" in capsys.readouterr().out


def test_what_verify_finds_is_what_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the keys are, and however deep."""
    saved = Training(0, 3)
    parts = {"adam": saved.optimizer.state_dict(), "plan": {"warmup": saved.scheduler.state_dict()}}
    torch.save({"weights": saved.model.state_dict(), "trainer": parts}, tmp_path / "t.pt")
    assert run_cli(["verify", str(tmp_path / "t.pt"), "--checks", "resume"]) == 0
    assert "trainer.adam" in capsys.readouterr().out
    resumed = Training(1)
    assert resumed.resume(tmp_path / "t.pt") == [NO_RNG]
    assert resumed.goes_on_like(saved)


def test_several_are_named_or_given_by_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = Training(0, 3), Training(1, 2)
    state = {"G": one.model.state_dict(), "D": two.model.state_dict()}
    state |= {"opt_G": one.optimizer.state_dict(), "opt_D": two.optimizer.state_dict()}
    torch.save(state, tmp_path / "gan.pt")
    assert run_cli(["verify", str(tmp_path / "gan.pt"), "--checks", "resume"]) == 0
    assert "there are 2 of them: opt_G, opt_D" in capsys.readouterr().out
    read = ptsave.read_training(tmp_path / "gan.pt")
    first, second = Training(2), Training(3)
    with pytest.raises(LossyError, match="more than one state dict"):
        ptsave.TrainingState(model=first.model).load_state_dict(read)
    with pytest.raises(LossyError, match="there are 2 of them"):
        ptsave.TrainingState(
            model={"G": first.model, "D": second.model}, optimizer=first.optimizer
        ).load_state_dict(read)
    both = ptsave.TrainingState(
        model={"G": first.model, "D": second.model},
        optimizer={"opt_G": first.optimizer, "opt_D": second.optimizer},
    )
    assert both.load_state_dict(read) == [NO_RNG]
    for resumed, saved in ((first, one), (second, two)):
        assert same_weights(resumed.model, saved.model.state_dict())
        moments = [next(iter(training.optimizer.state.values()))["exp_avg"] for training in (resumed, saved)]
        assert torch.equal(*moments)


def test_the_step_is_the_number_of_steps_done(tmp_path: Path) -> None:
    saved = Training(0, 10)
    state = ptsave.TrainingState(model=saved.model, optimizer=saved.optimizer)
    with ptsave.Checkpoints(tmp_path / "run") as keeper:
        keeper.save(state, step=9)
        keeper.wait()
        latest = keeper.latest()
        assert latest is not None
        assert ptsave.read_training(latest)["step"] == 10
        assert keeper.resume(state) == 10
    for keys in ({"global_step": 10}, {"step": 10}, {"meta": {"iter": 10, "epoch": 1}}, {"iter_num": 10}):
        torch.save({"model": saved.model.state_dict(), **keys}, tmp_path / "t.pt")
        assert ptsave.read_training(tmp_path / "t.pt")["step"] == 10


def detectron2(saved: Training, iteration: int) -> dict[str, Any]:
    """What DefaultTrainer's DetectionCheckpointer writes.

    Source: detectron2/engine/train_loop.py (`TrainerBase.state_dict`, `SimpleTrainer.state_dict`),
    defaults.py (`DefaultTrainer`), fvcore/common/checkpoint.py (`PeriodicCheckpointer.step`).
    """
    inner = {"iteration": iteration, "optimizer": saved.optimizer.state_dict()}
    hooks = {"LRScheduler": saved.scheduler.state_dict()}
    trainer = {"iteration": iteration, "hooks": hooks, "_trainer": inner}
    return {"model": saved.model.state_dict(), "trainer": trainer, "iteration": iteration}


def test_the_index_of_the_last_step_is_no_number_of_steps(tmp_path: Path) -> None:
    def step_of(file: dict[str, Any]) -> Any:
        torch.save(file, tmp_path / "t.pt")
        return ptsave.read_training(tmp_path / "t.pt")["step"]

    saved = Training(0, 10)
    weights = saved.model.state_dict()
    assert step_of(detectron2(saved, 9)) == 10
    optimizer, scheduler = saved.optimizer.state_dict(), saved.scheduler.state_dict()
    of_sgd = torch.optim.SGD(saved.model.parameters(), 0.1, momentum=0.9).state_dict()
    for iteration in (
        9,
        10,
    ):  # tools/plain_train_net.py of detectron2; maskrcnn_benchmark/utils/checkpoint.py
        rest = {"model": weights, "iteration": iteration}
        assert step_of({**rest, "optimizer": of_sgd, "scheduler": scheduler}) == 10
        assert step_of({**rest, "optimizer": optimizer}) == 10
        assert step_of(rest) == iteration
    for key in ("step", "iter", "it"):
        for index in (9, 10):
            assert step_of({"model": weights, "optimizer": optimizer, key: index}) == 10
    once_an_epoch = StepLR(saved.optimizer, 2)
    for _ in range(10):
        once_an_epoch.step()
    file = {"model": weights, "optimizer": of_sgd, "scheduler": once_an_epoch.state_dict(), "step": 9}
    assert step_of(file) == 9  # it may count epochs
    accumulated = {"model": weights, "optimizer": optimizer, "step": 40}
    assert step_of(accumulated) == 40
    for odd in ([], [9], "10", float("nan"), 10**400, torch.ones(2), torch.tensor(1j), None):
        states = [{"state": {0: {"step": odd, "exp_avg": torch.ones(1)}}, "param_groups": []}]
        schedulers = [{**scheduler, "last_epoch": odd}]
        file = {"model": weights, "optimizers": states, "schedulers": schedulers, "iteration": 9}
        assert step_of(file) == 9


@pytest.mark.parametrize("extras", ["keep", "drop"])
@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_a_training_flattened_into_names_is_refused(tmp_path: Path, extras: str, suffix: str) -> None:
    saved = Training(0, 2)
    state = ptsave.TrainingState(model=saved.model, optimizer=saved.optimizer).state_dict()
    torch.save(state, tmp_path / "t.pt")
    flat = tmp_path / f"t.{suffix}"
    if suffix == "npz":
        extras = "drop"
    assert run_cli(["convert", str(tmp_path / "t.pt"), str(flat), "--extras", extras, "-q"]) == 0
    with pytest.raises(
        LossyError, match=r"flattened into names such as 'optimizer_state_dict\.state"
    ) as caught:
        ptsave.read_training(flat)
    assert "select='model_state_dict'" in caught.value.hint
    model = Training(1).model
    ptsave.load(flat, model, select="model_state_dict")
    assert same_weights(model, saved.model.state_dict())


class Wrapped(nn.Module):
    """As a LightningModule holds the network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


AVERAGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "of the network": AveragedModel,
    "a copy of the network": copy.deepcopy,
    "of the LightningModule": lambda model: AveragedModel(Wrapped(model)),
    "a copy of the LightningModule": lambda model: copy.deepcopy(Wrapped(model)),
}


@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("part", some(["ema", "swa", "averaged_model"]))
def test_both_the_trained_weights_and_their_average_are_resumed(tmp_path: Path, kind: str, part: str) -> None:
    """Lightning's `WeightAveraging` and `EMAWeightAveraging`: `state_dict` is the average.

    Source: lightning/pytorch/callbacks/weight_averaging.py of Lightning 2.6.6 (`on_save_checkpoint`).
    """
    saved, average = Training(0, 4), Training(2, 4)
    averaged = AveragedModel(Wrapped(average.model))
    averaged.n_averaged.fill_(3)
    checkpoint = {
        "epoch": 0,
        "global_step": 4,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": averaged.module.state_dict(),
        "loops": {},
        "callbacks": {"EMAWeightAveraging": {"latest_update_step": 4}},
        "optimizer_states": [saved.optimizer.state_dict()],
        "lr_schedulers": [saved.scheduler.state_dict()],
        "current_model_state": Wrapped(saved.model).state_dict(),
        "averaging_state": {"n_averaged": averaged.n_averaged},
    }
    torch.save(checkpoint, tmp_path / "l.ckpt")
    resumed = Training(1)
    follower = AVERAGES[kind](resumed.model)
    state = ptsave.TrainingState(model=resumed.model, optimizer=resumed.optimizer, **{part: follower})

    def check() -> None:
        assert same_weights(resumed.model, saved.model.state_dict())
        inner: Any = getattr(follower, "module", follower)
        assert same_weights(getattr(inner, "model", inner), average.model.state_dict())
        if isinstance(follower, AveragedModel):
            assert follower.n_averaged == 3

    state.load_state_dict(ptsave.read_training(tmp_path / "l.ckpt"))
    check()
    with ptsave.Checkpoints(tmp_path / "run") as keeper:  # and ours keeps both apart
        keeper.save(state, step=3)
        keeper.wait()
        for module in (resumed.model, follower):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
        assert keeper.resume(state) == 4
    check()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_lightnings_averaging_itself(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", exc_type=ImportError)
    callbacks = pytest.importorskip("lightning.pytorch.callbacks", exc_type=ImportError)
    saved = Training(0)

    kept: dict[str, torch.Tensor] = {}
    average: dict[str, torch.Tensor] = {}

    class Keep(lightning.Callback):  # type: ignore[misc, name-defined]
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            trainer.save_checkpoint(tmp_path / "l.ckpt")
            kept.update(copy.deepcopy(saved.model.state_dict()))
            average.update(copy.deepcopy(trainer.callbacks[0]._average_model.module.model.state_dict()))

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(24, 4)), 6)
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[callbacks.EMAWeightAveraging(), Keep()],
        **dict.fromkeys(names, False),
    )
    trainer.fit(in_lightning(lightning, saved), data)
    raw = torch.load(tmp_path / "l.ckpt", weights_only=False)
    assert not torch.equal(raw["state_dict"]["model.0.weight"], kept["0.weight"])
    resumed = Training(1)
    resumed.resume(tmp_path / "l.ckpt")
    assert same_weights(resumed.model, kept)
    assert ptsave.read_training(tmp_path / "l.ckpt")["step"] == 4
    ema = AveragedModel(Training(2).model)
    state = ptsave.TrainingState(model=resumed.model, optimizer=resumed.optimizer, ema=ema)
    state.load_state_dict(ptsave.read_training(tmp_path / "l.ckpt"))
    assert same_weights(ema.module, average)
    assert same_weights(resumed.model, kept)


# --- folders ----------------------------------------------------------------------------------------------


def accelerate_folder(folder: Path, training: Training, *, is_safe: bool) -> None:
    """What accelerate's save_state leaves. Source: accelerate/checkpointing.py."""
    folder.mkdir()
    if is_safe:
        safetensors.torch.save_file(training.model.state_dict(), folder / "model.safetensors")
    else:
        torch.save(training.model.state_dict(), folder / "pytorch_model.bin")
    torch.save(training.optimizer.state_dict(), folder / "optimizer.bin")
    torch.save(training.scheduler.state_dict(), folder / "scheduler.bin")
    torch.save(argparse.Namespace(), folder / "sampler.bin")
    states = {
        "step": 0,
        "random_state": random.getstate(),
        "numpy_random_seed": np.random.get_state(),
        "torch_manual_seed": torch.get_rng_state(),
    }
    torch.save(states, folder / "random_states_0.pkl")


@pytest.mark.parametrize("is_safe", [True, False])
def test_an_accelerate_folder_with_its_generators(tmp_path: Path, is_safe: bool) -> None:
    saved = Training(0, 3)
    accelerate_folder(tmp_path / "state", saved, is_safe=is_safe)
    assert "step" not in ptsave.read_training(tmp_path / "state")  # what it calls so counts batches
    saved.step(3)
    resumed = Training(1)
    random.seed(9)
    assert resumed.resume(tmp_path / "state") == ["not used of the checkpoint: sampler.bin"]
    resumed.step(3)
    own = resumed.model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in saved.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("is_safe", [True, False])
def test_accelerate_itself(tmp_path: Path, is_safe: bool) -> None:
    accelerate = pytest.importorskip("accelerate", exc_type=ImportError)
    saved = Training(0)
    prepared = accelerate.Accelerator(cpu=True)
    saved.model, saved.optimizer, saved.scheduler = prepared.prepare(
        saved.model, saved.optimizer, saved.scheduler
    )
    saved.step(3)
    prepared.save_state(str(tmp_path / "state"), safe_serialization=is_safe)
    saved.step(3)
    resumed = Training(1)
    assert resumed.resume(tmp_path / "state") == []
    resumed.step(3)
    own = resumed.model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in saved.model.state_dict().items())


def trainer_folder(folder: Path, training: Training) -> None:
    """What transformers' Trainer leaves. Source: transformers/trainer.py (`_save_checkpoint`)."""
    folder.mkdir()
    safetensors.torch.save_file(training.model.state_dict(), folder / "model.safetensors")
    torch.save(training.optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(training.scheduler.state_dict(), folder / "scheduler.pt")
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    torch.save(states, folder / "rng_state.pth")
    (folder / "trainer_state.json").write_text(
        json.dumps({"global_step": 3, "epoch": 1.5, "log_history": []})
    )
    (folder / "config.json").write_text("{}")


def test_a_trainer_folder(tmp_path: Path) -> None:
    saved = Training(0, 3)
    trainer_folder(tmp_path / "checkpoint-3", saved)
    saved.step(2)
    resumed = Training(1)
    assert resumed.resume(tmp_path / "checkpoint-3") == []
    resumed.step(2)
    own = resumed.model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in saved.model.state_dict().items())
    state = ptsave.read_training(tmp_path / "checkpoint-3")
    assert (state["step"], state["epoch"]) == (3, 1.5)


@pytest.mark.slow
def test_transformers_itself(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", exc_type=ImportError)
    import transformers

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=8, **sizes)
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=4, save_steps=4, report_to=[], use_cpu=True, disable_tqdm=True
    )
    data = [{"input_ids": [1, 2, 3], "labels": i % 2} for i in range(16)]
    model = transformers.BertForSequenceClassification(config)
    transformers.Trainer(model, arguments, train_dataset=data).train()
    other = transformers.BertForSequenceClassification(config)
    trainer = transformers.Trainer(other, arguments, train_dataset=data)
    trainer.create_optimizer_and_scheduler(4)
    state = ptsave.TrainingState(model=other, optimizer=trainer.optimizer, scheduler=trainer.lr_scheduler)
    assert state.load_state_dict(ptsave.read_training(tmp_path / "checkpoint-4")) == []
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
    plain = ptsave.TrainingState(model=other, optimizer=AdamW(other.parameters()))
    with pytest.raises(LossyError, match="has no names, and its parameter groups have"):
        plain.load_state_dict(ptsave.read_training(tmp_path / "checkpoint-4"))


def test_a_folder_without_weights_or_with_damage(tmp_path: Path) -> None:
    saved = Training(0, 1)
    trainer_folder(tmp_path / "t", saved)
    (tmp_path / "t" / "trainer_state.json").write_text("{")
    with pytest.raises(CorruptError, match="the trainer's state is not JSON"):
        ptsave.read_training(tmp_path / "t")
    (tmp_path / "t" / "trainer_state.json").write_text('{"global_step": 1, "global_step": 2}')
    with pytest.raises(CorruptError, match="the trainer's state has two keys 'global_step'"):
        ptsave.read_training(tmp_path / "t")
    (tmp_path / "t" / "trainer_state.json").write_text('{"log_history": ' + "[" * 100_000)
    with pytest.raises(CorruptError, match="the trainer's state"):
        ptsave.read_training(tmp_path / "t")
    (tmp_path / "t" / "trainer_state.json").write_text("[]")
    with pytest.raises(CorruptError, match="is not a JSON object"):
        ptsave.read_training(tmp_path / "t")
    (tmp_path / "t" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="holds no model's weights"):
        ptsave.read_training(tmp_path / "t")
    (tmp_path / "t" / "optimizer.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(CorruptError):
        ptsave.read_training(tmp_path / "t")
    with pytest.raises(MissingFileError):
        ptsave.read_training(tmp_path / "nothing.pt")

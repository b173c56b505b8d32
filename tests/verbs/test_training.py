"""The state of a training is found and named in checkpoints as training code writes them."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.optim import lr_scheduler

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import BY_NAME
from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.core.parts.training import Parts, find_parts
from ptsave.core.record import Record
from ptsave.core.storage import MemoryStorage, Storage
from ptsave.errors import CorruptError
from ptsave.formats import open_checkpoint
from ptsave.formats.dcp import read as dcp_read
from ptsave.formats.safetensors import read as safetensors_read
from ptsave.formats.torch import read as torch_read
from ptsave.storage.local.file import LocalFile
from ptsave.storage.local.folder import LocalFolder
from ptsave.verbs.checks.resume import has_training_state, resumable
from ptsave.verbs.training import Training, describe_training

Describe = Callable[[Any], "Training | None"]


@pytest.fixture
def describe(tmp_path: Path) -> Describe:
    """Save with torch, read with ptsave, describe."""

    def run(value: Any) -> Training | None:
        torch.save(value, tmp_path / "file.pt")
        with torch_read.FORMAT.read(LocalFile(tmp_path / "file.pt")) as checkpoint:
            return describe_training(checkpoint)

    return run


def found(training: Training | None) -> Training:
    assert training is not None
    return training


def make(name: str, steps: int, **options: Any) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    optimizer = getattr(torch.optim, name)(model.parameters(), **{"lr": 0.01, **options})
    for _ in range(steps):

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            value = model(torch.ones(4, 3)).square().sum()
            value.backward()
            return value

        optimizer.step(loss)
    return model, optimizer


KINDS = [
    ("SGD", {}, "SGD"),
    ("SGD", {"momentum": 0.9}, "SGD with momentum"),
    ("SGD", {"momentum": 0.9, "nesterov": True}, "SGD with Nesterov momentum"),
    ("Adam", {}, "Adam"),
    ("Adam", {"amsgrad": True}, "Adam"),
    ("AdamW", {}, "AdamW"),
    ("Adamax", {}, "Adamax"),
    ("NAdam", {}, "NAdam"),
    ("RAdam", {}, "RAdam"),
    ("Adagrad", {}, "Adagrad"),
    ("Adadelta", {}, "Adadelta"),
    ("RMSprop", {}, "RMSprop"),
    ("RMSprop", {"momentum": 0.5, "centered": True}, "RMSprop"),
    ("Rprop", {}, "Rprop"),
    ("ASGD", {}, "ASGD"),
    ("LBFGS", {}, "LBFGS"),
    ("Adafactor", {}, "Adafactor"),
    ("Muon", {}, "Muon"),
]


@pytest.mark.parametrize(("name", "options", "kind"), KINDS, ids=[f"{n}-{o}" for n, o, _ in KINDS])
def test_every_torch_optimizer_is_named(describe: Describe, name: str, options: Any, kind: str) -> None:
    model, optimizer = make(name, steps=2, **options)
    (state,) = found(describe({"model": model.state_dict(), "optimizer": optimizer.state_dict()})).optimizers
    assert (state.where, state.kind, state.num_params) == ("optimizer", kind, 2)
    assert state.num_with_state == len(optimizer.state_dict()["state"])
    assert state.groups[0].options["lr"] == 0.01
    counts_steps = name not in ("SGD", "LBFGS", "Muon")
    assert state.step == (2 if counts_steps else None)


@pytest.mark.parametrize("name", [name for name, options, _ in KINDS if not options and name != "Adamax"])
def test_an_optimizer_that_has_not_stepped_is_named_by_its_groups(describe: Describe, name: str) -> None:
    _, optimizer = make(name, steps=0)
    (state,) = found(describe({"optimizer": optimizer.state_dict()})).optimizers
    assert state.kind == name
    # Adagrad alone makes its state at once.
    assert (state.num_with_state, state.step) == ((2, 0) if name == "Adagrad" else (0, None))


def test_optimizers_of_older_torch_and_of_others(describe: Describe) -> None:
    moments = {"step": 3, "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}

    def kind(group: dict[str, Any], state: dict[str, Any]) -> str:
        value = {"state": {0: state}, "param_groups": [{"params": [0], "lr": 0.1, **group}]}
        return found(describe(value)).optimizers[0].kind

    adam = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0}
    assert kind({**adam, "amsgrad": False}, moments) == "Adam or AdamW"
    assert kind({**adam, "correct_bias": True}, moments) == "AdamW (transformers)"
    assert kind({**adam, "bias_correction": True}, moments) == "a kind of Adam"
    assert kind({**adam, "decoupled_weight_decay": False}, moments) == "RAdam"
    assert kind(adam, {"step": 3, "exp_avg": torch.zeros(2), "exp_inf": torch.zeros(2)}) == "Adamax"
    assert kind({"betas": (0.9, 0.99), "weight_decay": 0.1}, {"exp_avg": torch.zeros(2)}) == "Lion"
    assert kind({"betas": (0.9, 0.999), "eps": 1e-8}, moments) == "SparseAdam"
    assert kind(adam, {"state1": torch.zeros(2), "state2": torch.zeros(2)}) == "Adam or AdamW, 8-bit"
    adafactor = {"eps": (1e-30, 1e-3), "scale_parameter": True, "relative_step": True, "decay_rate": -0.8}
    assert kind(adafactor, {"exp_avg_sq_row": torch.zeros(2)}) == "Adafactor"
    assert kind({"strange": 1}, {"odd": torch.zeros(2)}) == "unknown"


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1.0),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "ConstantLR": lr_scheduler.ConstantLR,
    "LinearLR": lr_scheduler.LinearLR,
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lr_scheduler.PolynomialLR,
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.05),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_every_torch_scheduler_is_named(describe: Describe, kind: str) -> None:
    _, optimizer = make("SGD", steps=1, momentum=0.9)
    scheduler = SCHEDULERS[kind](optimizer)
    optimizer.step()
    scheduler.step()
    (state,) = found(describe({"lr_scheduler": scheduler.state_dict()})).schedulers
    assert (state.where, state.kind, state.last_epoch) == ("lr_scheduler", kind, 1)
    assert state.last_lr == tuple(float(lr) for lr in scheduler.get_last_lr())


def test_plateau_and_chained_schedulers(describe: Describe) -> None:
    _, optimizer = make("SGD", steps=1)
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer, patience=3)
    plateau.step(0.5)
    (state,) = found(describe({"scheduler": plateau.state_dict()})).schedulers
    assert (state.kind, state.last_epoch, state.options["patience"]) == ("ReduceLROnPlateau", 1, 3)
    chained = lr_scheduler.ChainedScheduler([lr_scheduler.StepLR(optimizer, 2)])
    (state,) = found(describe({"scheduler": chained.state_dict()})).schedulers
    assert (state.kind, state.last_epoch) == ("ChainedScheduler", None)


def test_the_tutorials_checkpoint_in_words(describe: Describe) -> None:
    model, optimizer = make("AdamW", steps=3, lr=1e-3)
    scheduler = lr_scheduler.StepLR(optimizer, 10)
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000}
    training = found(
        describe(
            {
                "epoch": 5,
                "model_state_dict": model.state_dict(),
                "optimizer_state_dict": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "scaler": scaler,
                "loss": torch.tensor(0.25),
                "best_acc1": 71.5,
                "torch_rng": torch.get_rng_state(),
                "args": SimpleNamespace(epochs=90, lr=0.1),
            }
        )
    )
    assert training.progress == {"epoch": 5}
    assert training.metrics == {"loss": 0.25, "best_acc1": 71.5}
    assert training.model_key == "model_state_dict"
    assert training.sentences == [
        "epoch 5",
        "loss 0.25, best_acc1 71.5",
        "optimizer_state_dict: AdamW (lr 0.001, betas (0.9, 0.999), weight_decay 0.01), "
        "2 parameters with state, at step 3",
        "scheduler: StepLR at epoch 0, last lr 0.001",
        "scaler: gradient scaler at scale 65536",
        "states of random number generators: torch_rng",
        "the model's state dict is under 'model_state_dict'",
    ]


def test_groups_that_differ_show_each_value(describe: Describe) -> None:
    model = torch.nn.Linear(3, 2)
    groups = [{"params": [model.weight], "weight_decay": 0.1}, {"params": [model.bias], "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    (state,) = found(describe({"optim": optimizer.state_dict()})).optimizers
    assert [(group.num_params, group.options["lr"]) for group in state.groups] == [(1, 0.1), (1, 0.5)]
    assert state.sentence == (
        "optim: SGD with momentum (lr 0.1 / 0.5, weight_decay 0.1 / 0, momentum 0.9), "
        "2 parameter groups, 0 of 2 parameters with state"
    )


def test_a_learning_rate_in_a_tensor(describe: Describe) -> None:
    _, optimizer = make("Adam", steps=1, lr=torch.tensor(0.125))
    (state,) = found(describe(optimizer.state_dict())).optimizers
    assert (state.where, state.groups[0].options["lr"]) == ("", 0.125)


def test_hugging_face_files_hold_one_part_each(describe: Describe) -> None:
    _, optimizer = make("AdamW", steps=1)
    assert found(describe(optimizer.state_dict())).optimizers[0].where == ""
    schedule = lr_scheduler.LambdaLR(optimizer, lambda step: 1.0).state_dict()
    assert found(describe(schedule)).schedulers[0].kind == "LambdaLR"
    states = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.get_rng_state(),
        "cuda": [torch.zeros(16, dtype=torch.uint8)],
    }
    training = found(describe(states))
    assert training.rng == ("python", "numpy", "cpu", "cuda")
    assert training.optimizers == ()


def test_accelerates_random_states(describe: Describe) -> None:
    states = {
        "step": 40,
        "random_state": random.getstate(),
        "numpy_random_seed": np.random.get_state(),
        "torch_manual_seed": torch.get_rng_state(),
        "generator": np.random.default_rng(0).bit_generator.state,
    }
    training = found(describe(states))
    assert training.progress == {"step": 40}
    assert training.rng == tuple(key for key in states if key != "step")


def test_lightning(describe: Describe) -> None:
    model, optimizer = make("Adam", steps=2)
    checkpoint = {
        "epoch": 3,
        "global_step": 1200,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": model.state_dict(),
        "loops": {"fit_loop": {"epoch_progress": {"current": {"completed": 4}}, "step": 9}},
        "callbacks": {
            "ModelCheckpoint{'monitor': 'val_loss'}": {"best_model_score": torch.tensor(0.5), "dirpath": "x"}
        },
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [lr_scheduler.StepLR(optimizer, 1).state_dict()],
        "hyper_parameters": {"epochs": 100, "loss": 3},
    }
    training = found(describe(checkpoint))
    assert training.progress == {"epoch": 3, "global_step": 1200}
    assert list(training.metrics.values()) == [0.5]
    assert [o.where for o in training.optimizers] == ["optimizer_states.0"]
    assert [s.where for s in training.schedulers] == ["lr_schedulers.0"]
    assert training.model_key == "state_dict"


def test_fairseq(describe: Describe) -> None:
    model, optimizer = make("Adam", steps=1)
    checkpoint = {
        "args": SimpleNamespace(max_epoch=10),
        "model": model.state_dict(),
        "optimizer_history": [{"num_updates": 700, "optimizer_name": "FairseqAdam"}],
        "extra_state": {"train_iterator": {"epoch": 2}, "val_loss": 4.5, "best": 4.25},
        "last_optimizer_state": optimizer.state_dict(),
    }
    training = found(describe(checkpoint))
    assert training.progress == {
        "optimizer_history.0.num_updates": 700,
        "extra_state.train_iterator.epoch": 2,
    }
    assert training.metrics == {"extra_state.val_loss": 4.5, "extra_state.best": 4.25}
    assert [o.where for o in training.optimizers] == ["last_optimizer_state"]


def test_an_optimizer_deep_inside(describe: Describe) -> None:
    _, optimizer = make("AdamW", steps=1)
    zero = {"loss_scaler": {"cur_scale": 1024.0}, "base_optimizer_state": optimizer.state_dict()}
    (state,) = found(describe({"module": {}, "optimizer_state_dict": zero, "global_steps": 8})).optimizers
    assert state.where == "optimizer_state_dict.base_optimizer_state"


def test_numpy_scalars_count_as_numbers(describe: Describe) -> None:
    training = found(describe({"epoch": np.int64(7), "best_fitness": np.float64(0.5), "model": None}))
    assert (training.progress, training.metrics) == ({"epoch": 7}, {"best_fitness": 0.5})


def test_a_whole_pickled_optimizer_says_its_class(describe: Describe) -> None:
    _, optimizer = make("RAdam", steps=1)
    (state,) = found(describe({"optimizer": optimizer})).optimizers
    assert (state.kind, state.num_params, state.groups[0].options["lr"]) == ("RAdam", 2, 0.01)


def test_weights_alone_are_no_training(describe: Describe) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    model.register_buffer("step", torch.tensor(5))
    assert describe(model.state_dict()) is None
    assert describe({"state_dict": model.state_dict(), "arch": "resnet18"}) is None
    assert describe(torch.ones(3)) is None
    assert describe([]) is None
    assert describe({}) is None
    assert describe(model) is None


def test_a_flat_file_with_an_optimizer(tmp_path: Path) -> None:
    tensors = {
        "epoch_embedding.weight": torch.ones(2),
        "model_state_dict.fc.weight": torch.ones(2),
        "optimizer_state_dict.state.0.exp_avg": torch.ones(2),
        "optimizer_state_dict.state.0.exp_avg_sq": torch.ones(2),
        "optimizer_state_dict.state.0.step": torch.tensor(9.0),
        "optimizer_state_dict.state.fc.bias.exp_avg": torch.ones(2),
    }
    group = "optimizer_state_dict.param_groups.0"
    extras = {
        "epoch": 4,
        f"{group}.lr": 0.5,
        f"{group}.betas": [0.9, 0.99],
        f"{group}.decoupled_weight_decay": True,
        f"{group}.amsgrad": False,
        f"{group}.params": [0, 1],
        "scheduler.last_epoch": 4,
        "scheduler._last_lr": [0.5],
        "scheduler.step_size": 1,
        "scheduler.gamma": 0.5,
    }
    save_file(tensors, tmp_path / "a.safetensors", {"ptsave": Record(extras=extras).to_json()})
    with safetensors_read.FORMAT.read(LocalFile(tmp_path / "a.safetensors")) as checkpoint:
        training = found(describe_training(checkpoint))
    assert training.progress == {"epoch": 4}
    (state,) = training.optimizers
    assert (state.where, state.kind, state.num_params) == ("optimizer_state_dict", "AdamW", 2)
    assert (state.num_with_state, state.step) == (2, 9.0)
    (scheduler,) = training.schedulers
    assert (scheduler.kind, scheduler.last_epoch, scheduler.last_lr) == ("StepLR", 4, (0.5,))


def test_a_flat_file_without_groups_and_metadata_with_progress(tmp_path: Path) -> None:
    save_file({"opt.state.w.exp_avg_sq": torch.ones(2), "w": torch.ones(2)}, tmp_path / "a", {"epoch": "12"})
    with safetensors_read.FORMAT.read(LocalFile(tmp_path / "a")) as checkpoint:
        training = found(describe_training(checkpoint))
    assert training.progress == {"epoch": 12}
    assert [(o.where, o.num_with_state, o.groups) for o in training.optimizers] == [("opt", 1, ())]


def test_a_folder_that_torch_distributed_wrote(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as torch_dcp  # seconds, and for this test alone

    model, optimizer = make("AdamW", steps=2)
    state = {"epoch": 5, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it runs in a single process
        torch_dcp.save(state, checkpoint_id=tmp_path / "folder")
    with dcp_read.FORMAT.read(LocalFolder(tmp_path / "folder")) as checkpoint:
        training = found(describe_training(checkpoint))
    (part,) = training.optimizers
    assert training.progress == {"epoch": 5}
    assert (part.where, part.kind, part.num_params, part.num_with_state, part.step) == (
        "optimizer",
        "AdamW",
        2,
        2,
        2,
    )
    assert training.model_key == "model"


class Unreadable(Storage):
    """A storage whose bytes are damaged."""

    num_bytes = 4

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        raise CorruptError("damaged", "step")


def test_a_damaged_number_is_left_out_and_the_rest_described() -> None:
    step = TensorEntry("", BY_NAME["float32"], (), (), Unreadable(), 0)
    root = {"state": {0: {"step": step}}, "param_groups": [{"params": [0], "lr": step}]}
    (state,) = found(describe_training(Checkpoint("test", Path("test"), root))).optimizers
    assert (state.step, state.num_with_state, dict(state.groups[0].options)) == (None, 1, {})


HOSTILE = {
    "itself": lambda tree: tree.update(param=tree, epoch=tree),
    "no groups": lambda tree: tree.update(optimizer={"state": 3, "param_groups": [None, 4, {"params": 7}]}),
    "odd groups": lambda tree: tree.update(optimizer={"param_groups": {1: [], (2, 3): {"lr": {}}}}),
    "odd scheduler": lambda tree: tree.update(s={"last_epoch": [], "_last_lr": 4, "base_lrs": None}),
    "odd scaler": lambda tree: tree.update(s={"scale": {}, "growth_factor": 1, "backoff_factor": []}),
    "a huge number": lambda tree: tree.update(
        epoch=1 << 100_000, optimizer={"param_groups": [{"lr": 1 << 70_000}]}
    ),
    "a long text": lambda tree: tree.update(optimizer={"param_groups": [{"lr": "x" * 10**6}]}),
    "keys of all kinds": lambda tree: tree.update(
        {None: 1, 1.5: 2, (1, 2): {b"epoch": 3}, True: {"epoch": 1}}
    ),
    "many numbers": lambda tree: tree.update(x={i: i for i in range(200_000)}),
    "many groups": lambda tree: tree.update(param_groups=[{"lr": i} for i in range(20_000)]),
    "a long name": lambda tree: tree.update({".state." * 100_000 + "step": 1}),
    "not a tensor of one byte": lambda tree: tree.update(
        epoch=TensorEntry("", BY_NAME["int64"], (), (), MemoryStorage(memoryview(b"")), 0)
    ),
    "an object that holds itself": lambda tree: tree.update(o=_opaque_loop()),
}


def _opaque_loop() -> Opaque:
    loop = Opaque("pkg.Loop")
    loop.state = {"state": {"a": loop}, "param_groups": [loop], "last_epoch": loop, "_last_lr": [loop]}
    return loop


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_trees_are_described_in_bounded_time(what: str) -> None:
    tree: dict[Any, Any] = {}
    HOSTILE[what](tree)
    started = time.process_time()
    training = describe_training(Checkpoint("test", Path("test"), tree))
    if training is not None:
        assert sum(map(len, training.sentences)) < 10_000
    assert time.process_time() - started < 30  # unbounded, it would take minutes


@pytest.mark.slow
def test_a_deep_tree_is_given_up() -> None:
    tree: dict[str, Any] = {}
    inner = tree
    for _ in range(100_000):
        inner["x"] = inner = {}
    inner["epoch"] = 3
    assert describe_training(Checkpoint("test", Path("test"), tree)) is None


def test_no_numpy_is_needed() -> None:
    code = """
import sys
from pathlib import Path
from ptsave.core.checkpoint import Checkpoint
from ptsave.verbs.training import describe_training
root = {"epoch": 3, "optimizer": {"state": {}, "param_groups": [{"params": [0], "lr": 0.1}]}}
assert describe_training(Checkpoint("test", Path("t"), root)).progress == {"epoch": 3}
assert "numpy" not in sys.modules and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_checkpoint_is_searched_for_a_training_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []

    def search(root: Any) -> Parts:
        searched.append(root)
        return find_parts(root)

    monkeypatch.setattr("ptsave.core.checkpoint.find_parts", search)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "t.pt")
    with open_checkpoint(tmp_path / "t.pt") as checkpoint:
        assert found(describe_training(checkpoint)).optimizers
        assert has_training_state(checkpoint)
        assert [finding.level for finding in resumable(checkpoint)] == ["ok", "ok", "warn"]
    assert len(searched) == 1

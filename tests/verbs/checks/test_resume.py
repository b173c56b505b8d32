"""The check `resume`, on what real optimizers, and the tools around them, keep."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import ptsave
from ptsave.cli.main import run as run_cli
from ptsave.core.finding import Finding, Kind
from ptsave.errors import LossyError
from ptsave.formats import open_checkpoint
from ptsave.verbs.checks.resume import has_training_state, resumable

Run = Callable[..., list[Finding]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Save with torch, and check as ptsave does."""

    def check(value: Any, parameters: dict[str, tuple[int, ...]] | None = None) -> list[Finding]:
        torch.save(value, tmp_path / "file.pt")
        with open_checkpoint(tmp_path / "file.pt") as checkpoint:
            return list(resumable(checkpoint, parameters))

    return check


def failures(findings: Iterable[Finding]) -> list[str]:
    return [finding.message for finding in findings if finding.level == "fail"]


def warnings(findings: Iterable[Finding]) -> list[str]:
    """Of an optimizer: what a checkpoint does not hold besides is warned of in nearly all."""
    return [f.message for f in findings if f.level == "warn" and not f.message.startswith("does not have")]


class Net(nn.Module):
    """Five shapes, a batch norm with its buffers, and two biases of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.first = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.second = nn.Linear(5, 3)
        self.last = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.second(self.norm(self.first(self.embed(x)))))
        return y


class Reordered(Net):
    """The same, registered the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self._modules = dict(reversed(self._modules.items()))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> torch.optim.Optimizer:
    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value: torch.Tensor = model(torch.arange(8) % 11).square().mean()
        value.backward()
        return value

    for _ in range(steps):
        optimizer.step(loss)
    return optimizer


def trained(make: Any = torch.optim.AdamW, model: nn.Module | None = None, **options: Any) -> dict[str, Any]:
    model = Net() if model is None else model
    optimizer = train(model, make(model.parameters(), **{"lr": 0.01, **options}))
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


# --- sound checkpoints: never a failure -----------------------------------------------------------------


SIMPLE = [
    *("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD"),
    *("LBFGS", "Adafactor"),
]


@pytest.mark.parametrize("name", SIMPLE)
@pytest.mark.parametrize("make", [Net, Reordered])
def test_every_optimizer_of_torch(run: Run, name: str, make: type[nn.Module]) -> None:
    found = run(trained(getattr(torch.optim, name), make()))
    assert not failures(found)
    assert not warnings(found)
    assert [f.where for f in found if f.level == "ok"][:1] == ["optimizer"]


def test_the_message_of_a_whole_cover(run: Run) -> None:
    (line,) = [f.message for f in run(trained()) if f.level == "ok"]
    assert line == (
        "covers 9 of 9 weights (model), in their order and shapes "
        "(of 4, others have the shape: only `param_names` would tell them apart)"
    )


def test_momentum_amsgrad_and_nothing_kept(run: Run) -> None:
    assert not warnings(run(trained(torch.optim.SGD, momentum=0.9)))
    assert not warnings(run(trained(torch.optim.Adam, amsgrad=True)))
    (line,) = [
        f.message for f in run(trained(torch.optim.SGD)) if f.where == "optimizer" and "keeps" in f.message
    ]
    assert line == "keeps nothing for its 9 parameters: it has not stepped, or has no memory"


def test_two_groups_as_trainers_make_them(run: Run) -> None:
    model = Net()
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = train(model, torch.optim.AdamW(groups, lr=0.1))
    found = run({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    assert not failures(found)
    assert not warnings(found)


def test_a_head_that_learns_faster(run: Run) -> None:
    model = Net()
    body = [p for name, p in model.named_parameters() if not name.startswith("last")]
    groups = [{"params": model.last.parameters(), "lr": 1.0}, {"params": body}]
    optimizer = train(model, torch.optim.Adam(groups, lr=0.1))
    found = run({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    assert not failures(found)
    assert not warnings(found)


@pytest.mark.parametrize("is_given", [True, False])
def test_frozen_layers(run: Run, is_given: bool) -> None:
    model = Net()
    model.embed.requires_grad_(False)
    params = model.parameters() if is_given else [p for p in model.parameters() if p.requires_grad]
    optimizer = train(model, torch.optim.Adam(params))
    found = run({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    assert not failures(found)
    expected = (
        "1 of its 9 parameters has no state: frozen, or lost"
        if is_given
        else "covers 8 of 9 weights (model): the others are frozen, buffers, or forgotten"
    )
    assert warnings(found) == [expected]


def test_tied_weights_are_one_parameter(run: Run) -> None:
    model = nn.Sequential(nn.Embedding(11, 5), nn.Linear(5, 5), nn.Linear(5, 11, bias=False))
    model[2].weight = model[0].weight
    found = run(trained(torch.optim.Adam, model))
    assert not failures(found)
    assert not warnings(found)


def test_buffers_of_floats_among_the_weights(run: Run) -> None:
    model = Net()
    model.first.register_buffer("scale", torch.ones(5, 7))
    assert not failures(run(trained(torch.optim.Adam, model)))


def test_sparse_gradients(run: Run) -> None:
    model = nn.Sequential(nn.Embedding(11, 4, sparse=True))
    found = run(trained(torch.optim.SparseAdam, model))
    assert not failures(found)
    assert not warnings(found)


def test_one_optimizer_of_two_models(run: Run) -> None:
    """As image translation has it: `chain(a.parameters(), b.parameters())`."""
    a, b = Net(), nn.Sequential(nn.Embedding(11, 9), nn.Linear(9, 2))
    optimizer = torch.optim.Adam(itertools.chain(b.parameters(), a.parameters()))
    train(a, optimizer)
    train(b, optimizer)
    found = run({"netG": a.state_dict(), "netD": b.state_dict(), "optimizer": optimizer.state_dict()})
    assert not failures(found)
    assert not warnings(found)


def test_two_optimizers_of_two_models(run: Run) -> None:
    a, b = Net(), nn.Sequential(nn.Embedding(11, 9), nn.Linear(9, 2))
    one, two = train(a, torch.optim.Adam(a.parameters())), train(b, torch.optim.Adam(b.parameters()))
    found = run(
        {
            "generator": a.state_dict(),
            "discriminator": b.state_dict(),
            "opt_g": one.state_dict(),
            "opt_d": two.state_dict(),
        }
    )
    assert not failures(found)
    assert not warnings(found)


def test_an_average_of_the_weights_beside_them(run: Run) -> None:
    model = Net()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    document = trained(torch.optim.Adam, model)
    found = run({"ema": averaged.state_dict(), **document})
    assert not failures(found)
    assert not warnings(found)


def test_lightning(run: Run) -> None:
    document = trained()
    found = run(
        {
            "epoch": 3,
            "global_step": 30,
            "state_dict": {f"net.{name}": tensor for name, tensor in document["model"].items()},
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 3}}}},
            "callbacks": {},
            "optimizer_states": [document["optimizer"]],
            "lr_schedulers": [{"last_epoch": 3, "_last_lr": [0.1], "base_lrs": [0.1], "_step_count": 4}],
        }
    )
    assert not failures(found)
    assert not warnings(found)
    (message,) = [f.message for f in found if f.message.startswith("does not have")]
    assert "scheduler" not in message
    assert "random number generators" in message


def test_an_optimizer_alone_as_trainers_keep_it(run: Run) -> None:
    document = trained()["optimizer"]
    found = run(document)
    assert not failures(found)
    assert found[0].level == "skipped"
    parameters = {name: tuple(p.shape) for name, p in Net().named_parameters()}
    assert not failures(run(document, parameters))
    assert failures(run(document, dict(reversed(parameters.items()))))


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod."])
def test_states_under_names(run: Run, wrapper: str) -> None:
    """As torch.distributed.checkpoint.state_dict has them, and FSDP.optim_state_dict."""
    model = Net()
    raw = train(model, torch.optim.AdamW(model.parameters())).state_dict()
    names = [f"{wrapper}{name}" for name, _ in model.named_parameters()]
    optimizer = {
        "state": {names[i]: state for i, state in raw["state"].items()},
        "param_groups": [{**raw["param_groups"][0], "params": sorted(names)}],
    }
    weights = {f"{wrapper}{name}": tensor for name, tensor in model.state_dict().items()}
    found = run({"model": weights, "optim": optimizer})
    assert not failures(found)
    assert not warnings(found)
    optimizer["state"][names[1]] = raw["state"][0]
    (message,) = failures(run({"model": weights, "optim": optimizer}))
    assert message == "the state of 'first.weight' has the shape [11, 6], the weight [5, 6]"


def test_states_that_are_cut_into_pieces(run: Run) -> None:
    """FSDP's flat parameters, ZeRO's partitions: no weight has their shape."""
    document = trained()
    flat = torch.zeros(77)
    document["optimizer"]["state"] = {0: {"step": torch.tensor(3.0), "exp_avg": flat, "exp_avg_sq": flat}}
    document["optimizer"]["param_groups"][0]["params"] = [0]
    found = run(document)
    assert not failures(found)
    assert any("cannot be checked" in text for text in warnings(found))


def test_states_with_a_number_for_each_row(run: Run) -> None:
    document = trained(torch.optim.Adagrad)
    for state in document["optimizer"]["state"].values():
        state["sum"] = state["sum"].reshape(len(state["sum"]), -1).sum(1)
    assert not failures(run(document))


def test_low_rank_states(run: Run) -> None:
    document = trained()
    document["optimizer"]["param_groups"][0] |= {"rank": 2, "update_proj_gap": 200, "scale": 0.25}
    document["optimizer"]["state"][0]["exp_avg"] = torch.zeros(2, 6)
    assert not failures(run(document))


def test_what_an_optimizer_keeps_for_no_parameter(run: Run) -> None:
    document = trained()
    document["optimizer"]["state"]["global"] = {"d": 1e-6}
    assert not failures(run(document))


# --- faults ---------------------------------------------------------------------------------------------


def test_another_order_of_the_parameters(run: Run) -> None:
    document = trained()
    document["model"] = Reordered().state_dict()
    (message,) = failures(run(document))
    assert message == (
        "another order: the state of parameter 0 has the shape [11, 6], "
        "and 'last.weight' in its place has [5, 3]"
    )


def test_two_states_exchanged(run: Run) -> None:
    document = trained()
    state = document["optimizer"]["state"]
    state[1], state[2] = state[2], state[1]
    (message,) = failures(run(document))
    assert message.startswith("another order: the state of parameter 1 has the shape [5]")


def test_another_order_than_the_class_has_today(run: Run) -> None:
    """The file agrees with itself: today's class is the one that attaches the states."""
    document = trained()
    parameters = {name: tuple(p.shape) for name, p in Reordered().named_parameters()}
    (message,) = failures(run(document, parameters))
    assert message.startswith("another order: ")


def test_equal_shapes_need_names(run: Run) -> None:
    """Exchanged states of one shape: unseen without names, and said so; seen with them."""
    model = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    optimizer = train(model, torch.optim.Adam(model.parameters()))
    document = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    (line,) = [f.message for f in run(document) if f.level == "ok"]
    assert "only `param_names` would tell them apart" in line

    swapped = [p for _, p in reversed(list(model.named_parameters()))]
    names = [name for name, _ in reversed(list(model.named_parameters()))]
    named = torch.optim.Adam(zip(names, swapped, strict=True))
    document["optimizer"] = train(model, named).state_dict()
    (message,) = failures(run(document))
    assert message == "another order: parameter 0 is '2.weight', and '0.weight' is in its place"
    named = torch.optim.Adam(model.named_parameters())
    document["optimizer"] = train(model, named).state_dict()
    found = run(document)
    assert not failures(found)
    assert not any("param_names" in f.message for f in found)


def test_another_models_optimizer(run: Run) -> None:
    other = nn.Sequential(nn.Embedding(11, 9), nn.Linear(9, 2))
    document = {**trained(), "optimizer": trained(model=other)["optimizer"]}
    (message,) = failures(run(document))
    assert message == "the state of parameter 0 has the shape [11, 9], and no weight has it"
    document = {**trained(model=other), "optimizer": trained(torch.optim.LBFGS)["optimizer"]}
    (message,) = failures(run(document))
    assert message == "it is another model's: it has 9 parameters, there are 3 weights"


def test_a_state_that_is_gone(run: Run) -> None:
    document = trained()
    del document["optimizer"]["state"][4]
    assert warnings(run(document)) == ["1 of its 9 parameters has no state: frozen, or lost"]


def test_text_keys(run: Run) -> None:
    document = trained()
    document["optimizer"]["state"] = {str(k): v for k, v in document["optimizer"]["state"].items()}
    (message,) = failures(run(document))
    assert message.startswith("its states are under text keys ('0', not 0)")


def test_states_of_no_parameter(run: Run) -> None:
    document = trained()
    document["optimizer"]["param_groups"][0]["params"] = list(range(8))
    (message,) = failures(run(document))
    assert message == "1 state (8) belongs to no parameter of its groups"


def test_a_parameter_in_two_groups(run: Run) -> None:
    document = trained()
    group = document["optimizer"]["param_groups"][0]
    document["optimizer"]["param_groups"].append({**group, "params": [3]})
    assert failures(run(document)) == ["it has the parameter 3 twice in its groups"]


# --- what else is there ---------------------------------------------------------------------------------


def test_what_is_there_and_what_is_missing(run: Run) -> None:
    document = trained()
    present = {
        "epoch": 3,
        "rng": torch.get_rng_state(),
        "sampler": {"seed": 3},
        "scheduler": torch.optim.lr_scheduler.StepLR(
            torch.optim.SGD([nn.Parameter(torch.ones(1))]), 2
        ).state_dict(),
    }
    for part, word in (
        *(("epoch", "how far it came"), ("rng", "random number generators"), ("sampler", "a sampler")),
        ("scheduler", "a scheduler"),
    ):
        rest = {key: value for key, value in present.items() if key != part}
        (line,) = [f.message for f in run({**document, **rest}) if f.message.startswith("does not have")]
        assert word in line
        (line,) = [f.message for f in run({**document, **present}) if f.message.startswith("does not have")]
        assert word not in line
    assert "a gradient scaler" in line


def test_nothing_to_resume(run: Run, tmp_path: Path) -> None:
    (finding,) = run(Net().state_dict())
    assert (finding.level, finding.message) == (
        "skipped",
        "not a training checkpoint: it has no optimizer state",
    )
    with open_checkpoint(tmp_path / "file.pt") as checkpoint:
        assert not has_training_state(checkpoint)
    run(trained())
    with open_checkpoint(tmp_path / "file.pt") as checkpoint:
        assert has_training_state(checkpoint)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """A training checkpoint whose tensors safetensors wrote, in the order of its own."""
    document = trained(torch.optim.Adam)
    tensors = {f"model.{name}": value for name, value in document["model"].items()}
    for i, state in document["optimizer"]["state"].items():
        tensors |= {f"optimizer.state.{i}.{key}": value for key, value in state.items()}
    safetensors.torch.save_file(tensors, tmp_path / "flat.safetensors")
    return tmp_path / "flat.safetensors"


def test_a_flat_file(flat: Path) -> None:
    with open_checkpoint(flat) as checkpoint:
        found = list(resumable(checkpoint))
    assert not failures(found)
    assert warnings(found) == ["says nothing of its parameter groups: their order cannot be checked"]


def test_a_flat_file_is_no_yes_to_resuming(flat: Path, tmp_path: Path) -> None:
    with pytest.raises(LossyError, match="flattened into names"):
        ptsave.read_training(flat)
    asked = ptsave.verify(flat, checks="resume")
    assert not asked.is_yes
    assert "the training is flattened into names" in asked.because
    assert [(f.check, f.level) for f in ptsave.verify(flat).findings if f.kind is Kind.FLATTENED] == [
        ("resume", "warn")
    ]
    ptsave.save(tmp_path / "weights.safetensors", Net())
    skipped = ptsave.verify(tmp_path / "weights.safetensors", checks="resume").findings
    assert [finding.level for finding in skipped] == ["skipped"]


@pytest.mark.parametrize("format_", ["safetensors", "dcp"])
def test_what_convert_makes_of_a_training_checkpoint(tmp_path: Path, format_: str) -> None:
    model = Net()
    optimizer = train(model, torch.optim.AdamW(model.named_parameters()))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "t.pt")
    destination = str(tmp_path / f"t.{format_}")
    flags = ["--format", format_, "--extras", "keep", "-q"]
    assert run_cli(["convert", str(tmp_path / "t.pt"), destination, *flags]) == 0
    with open_checkpoint(Path(destination)) as checkpoint:
        found = list(resumable(checkpoint))
    assert not failures(found)
    assert not warnings(found)
    (line,) = [f.message for f in found if f.level == "ok"]
    assert line == "covers 9 of 9 weights (model), in their order and shapes"


def test_the_options_of_one_optimizer_and_the_state_of_another(run: Run) -> None:
    model = Net()
    adam = train(model, torch.optim.Adam(model.parameters())).state_dict()
    sgd = {**adam, "param_groups": torch.optim.SGD(model.parameters()).state_dict()["param_groups"]}
    assert failures(run({"model": model.state_dict(), "optimizer": sgd})) == [
        "its options are those of SGD, the state of parameter 0 is that of a kind of Adam"
    ]
    assert not failures(run({"model": model.state_dict(), "optimizer": adam}))

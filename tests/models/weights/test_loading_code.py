"""`load` is strict `load_state_dict`: the same models, and refused where that refuses, module by module."""

from __future__ import annotations

import io
import json
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import ptsave
from ptsave.cli.main import run
from ptsave.config.model import ConfigPlace, parse_model
from ptsave.core.parts.select import select_model
from ptsave.errors import LossyError, UsageError
from ptsave.formats import open_checkpoint
from ptsave.models.weights.fill import build_filled
from ptsave.training.foreign import read_training
from ptsave.training.modules import plan_module
from ptsave.training.state import TrainingState
from tests.support import some

State = dict[str, Any]


class Versioned(nn.Module):
    """Doubles what was saved before its version 2."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3))

    def _load_from_state_dict(self, state: State, prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version", 1) < 2:
            state[f"{prefix}w"] = state[f"{prefix}w"] * 2
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class Renaming(nn.Linear):
    """Knows its bias by an older name."""

    def _load_from_state_dict(self, state: State, prefix: str, *rest: Any) -> None:
        if f"{prefix}b" in state:
            state[f"{prefix}bias"] = state.pop(f"{prefix}b")
        super()._load_from_state_dict(state, prefix, *rest)


class Scalars(nn.Module):
    """A parameter and a buffer without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(()))
        self.register_buffer("count", torch.randn(()))


class Hooked(nn.Linear):
    """Splits its old fused weight by a hook, and keeps a flag of what it saw."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.register_load_state_dict_pre_hook(self.unfuse)  # type: ignore[no-untyped-call]

    @staticmethod
    def unfuse(module: nn.Module, state: State, prefix: str, *rest: Any) -> None:
        fused = state.pop(f"{prefix}fused", None)
        if fused is not None:
            state[f"{prefix}weight"], state[f"{prefix}bias"] = fused[:, :3], fused[:, 3]


class Forgiving(nn.Linear):
    """Lets its bias be absent, and keeps its own."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.register_load_state_dict_post_hook(self.forgive)  # type: ignore[no-untyped-call]

    @staticmethod
    def forgive(module: nn.Module, keys: Any) -> None:
        keys.missing_keys[:] = [key for key in keys.missing_keys if not key.endswith("bias")]


class FromItsOwn(nn.Linear):
    """Makes up for a missing bias with its own values."""

    def _load_from_state_dict(self, state: State, prefix: str, *rest: Any) -> None:
        state.setdefault(f"{prefix}bias", self.bias.detach() + 1)
        super()._load_from_state_dict(state, prefix, *rest)


class LooksAtValues(nn.Linear):
    def _load_from_state_dict(self, state: State, prefix: str, *rest: Any) -> None:
        if state[f"{prefix}weight"].abs().max().item() > 0:
            state[f"{prefix}weight"] = -state[f"{prefix}weight"]
        super()._load_from_state_dict(state, prefix, *rest)


class OwnMethod(nn.Linear):
    def load_state_dict(self, state_dict: Any, strict: bool = True) -> Any:  # type: ignore[override]
        return super().load_state_dict({k.removeprefix("old."): v for k, v in state_dict.items()}, strict)


class Extra(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 2)
        self.seen: Any = None

    def get_extra_state(self) -> Any:
        return {"seen": self.seen}

    def set_extra_state(self, state: Any) -> None:
        self.seen = state["seen"]


class Bytes(Extra):
    def get_extra_state(self) -> Any:
        return io.BytesIO(b"scales")

    def set_extra_state(self, state: Any) -> None:
        self.seen = state.read()


class Sparse(nn.Module):
    adj: Tensor

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(2))
        indices = torch.tensor([[0, 2], [1, 3]])
        self.register_buffer("adj", torch.sparse_coo_tensor(indices, torch.randn(2), (size, size)))


class Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.randn(3))
        self.register_buffer("made", torch.arange(3), persistent=False)
        self.register_buffer("nothing", None)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


class TiedRenaming(Tied):
    def _load_from_state_dict(self, state: State, prefix: str, *rest: Any) -> None:
        if "wte" in state:
            state["embed.weight"] = state.pop("wte")
        super()._load_from_state_dict(state, prefix, *rest)


class Plain(torch.Tensor):
    """A subclass without anything of its own."""


def norm(cls: type[nn.Module] = nn.BatchNorm1d, **options: Any) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), cls(4, **options))
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.add_(1)
    return model


def weight_norm() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)), nn.ReLU())


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 2)), nn.ReLU())


def spectral_norm() -> nn.Module:
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 2)))


def new_spectral_norm() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 2)))


def observed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(torch.ao.quantization.MinMaxObserver(), torch.ao.quantization.FakeQuantize())
        model(torch.randn(8))
    return model


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


def parametrized() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    register: Any = nn.utils.parametrize.register_parametrization
    register(model[0], "weight", Symmetric())
    return model


def pruned(is_more: bool = False) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    prune: Any = torch_prune
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.random_structured(model[2], "weight", amount=1, dim=0)
    if is_more:
        prune.random_unstructured(model[2], "bias", amount=1)
    return model


def without(*names: str) -> Callable[[State], State]:
    return lambda state: OrderedDict((k, v) for k, v in state.items() if k not in names)


def versionless(state: State) -> State:
    return dict(state)


def named(old: str, new: str) -> Callable[[State], State]:
    return lambda state: OrderedDict((k.replace(old, new), v) for k, v in state.items())


def same(state: State) -> State:
    return state


def fused(state: State) -> State:
    return {"fused": torch.cat([state["weight"], state["bias"][:, None]], 1)}


def old_spectral(state: State) -> State:
    kept: Any = OrderedDict((k, v) for k, v in state.items() if not k.endswith("_v"))
    kept["0.weight"] = kept["0.weight_orig"] / 2
    return kept  # type: ignore[no-any-return]


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[State], State]]] = {
    "linear": (lambda: nn.Linear(3, 2), same),
    "linear, one missing": (lambda: nn.Linear(3, 2), without("bias")),
    "linear, one too many": (lambda: nn.Linear(3, 2), lambda state: {**state, "more": torch.ones(1)}),
    "linear, another shape": (lambda: nn.Linear(3, 2), lambda state: {**state, "bias": torch.ones(5)}),
    "linear, a row": (lambda: nn.Linear(3, 1), lambda state: {**state, "bias": torch.tensor(1.0)}),
    "scalars": (Scalars, same),
    "scalars of one dimension": (Scalars, lambda state: {k: v.reshape(1) for k, v in state.items()}),
    "scalars of one dimension, cast": (Scalars, lambda s: {k: v.reshape(1).double() for k, v in s.items()}),
    "scalars of two dimensions": (Scalars, lambda state: {k: v.reshape(1, 1) for k, v in state.items()}),
    "another dtype": (lambda: nn.Linear(3, 2).half(), lambda s: {k: v.double() for k, v in s.items()}),
    "batch norm": (norm, same),
    "old batch norm": (norm, lambda state: dict(without("1.num_batches_tracked")(state))),
    "batch norm, missing mean": (norm, lambda state: dict(without("1.running_mean")(state))),
    "new batch norm, missing": (norm, lambda state: _keep(state, without("1.num_batches_tracked"))),
    "instance norm": (lambda: norm(nn.InstanceNorm1d, affine=True, track_running_stats=True), versionless),
    "old instance norm": (
        lambda: norm(nn.InstanceNorm1d, affine=True),
        lambda state: {**state, "1.running_mean": torch.ones(4), "1.running_var": torch.ones(4)},
    ),
    "attention": (lambda: nn.MultiheadAttention(4, 2), versionless),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2, 8), same),
    "weight norm": (weight_norm, same),
    "weight norm, old names": (weight_norm, lambda state: old_weight_norm().state_dict()),
    "weight norm, half of the old names": (
        weight_norm,
        lambda s: without("0.weight_g")(old_weight_norm().state_dict()),
    ),
    "old weight norm": (old_weight_norm, versionless),
    "spectral norm": (spectral_norm, same),
    "spectral norm of no version": (spectral_norm, old_spectral),
    "parametrized spectral norm": (new_spectral_norm, same),
    "spectral norm, new from old": (new_spectral_norm, lambda state: spectral_norm().state_dict()),
    "parametrized": (parametrized, same),
    "parametrized, from plain": (parametrized, named("parametrizations.weight.original", "weight")),
    "pruned": (pruned, same),
    "pruned, of more": (pruned, lambda state: pruned(is_more=True).state_dict()),
    "pruned, from plain": (pruned, named("weight_orig", "weight")),
    "observers": (observed, same),
    "observers of no version": (observed, versionless),
    "quantized": (quantized, same),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), lambda s: nn.Sequential(nn.Linear(4, 3)).state_dict()),
    "versions": (Versioned, same),
    "no versions": (Versioned, versionless),
    "renamed": (lambda: Renaming(3, 2), named("bias", "b")),
    "renamed, and one missing": (lambda: Renaming(3, 2), without("bias")),
    "hooked": (Hooked, same),
    "hooked, fused": (Hooked, fused),
    "forgiven": (Forgiving, without("bias")),
    "not forgiven": (Forgiving, without("weight")),
    "its own values": (lambda: FromItsOwn(3, 2), without("bias")),
    "values": (lambda: LooksAtValues(3, 2), same),
    "its own method": (lambda: OwnMethod(3, 2), lambda s: {f"old.{k}": v for k, v in s.items()}),
    "extra state": (Extra, lambda state: _set(state, "_extra_state", {"seen": [1, 2]})),
    "extra state, missing": (Extra, without("_extra_state")),
    "extra state, too many": (lambda: nn.Linear(3, 2), lambda s: {**s, "_extra_state": {"a": 1}}),
    "extra bytes": (Bytes, same),
    "sparse": (Sparse, same),
    "sparse, compressed": (lambda: _compressed(Sparse()), same),
    "sparse, another size": (Sparse, lambda state: Sparse(5).state_dict()),
    "sparse, dense in the file": (Sparse, lambda state: {**state, "adj": state["adj"].to_dense()}),
    "buffers": (Buffers, same),
    "tied": (Tied, same),
    "tied, renamed": (
        TiedRenaming,
        lambda state: {"wte": state["embed.weight"], "head.weight": state["embed.weight"]},
    ),
    "subclass in the file": (
        lambda: nn.Linear(3, 2),
        lambda s: {k: v.as_subclass(Plain) for k, v in s.items()},
    ),
    "subclass in the model": (lambda: _as_plain(nn.Linear(3, 2)), lambda s: nn.Linear(3, 2).state_dict()),
    "conjugate": (lambda: nn.Linear(3, 2, dtype=torch.cfloat), lambda s: {k: v.conj() for k, v in s.items()}),
    "negative": (lambda: nn.Linear(3, 2), lambda s: {k: torch._neg_view(v) for k, v in s.items()}),
}


def _keep(state: State, change: Callable[[State], State]) -> State:
    changed: Any = change(state)
    changed._metadata = state._metadata  # type: ignore[attr-defined]
    return changed  # type: ignore[no-any-return]


def _set(state: State, name: str, value: Any) -> State:
    state[name] = value
    return state


def _compressed(model: Sparse) -> Sparse:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its own layout a prototype
        model.adj = model.adj.to_sparse_csr()
    return model


def _as_plain(model: nn.Linear) -> nn.Linear:
    model.bias = nn.Parameter(model.bias.detach().as_subclass(Plain))
    return model


def contents(model: nn.Module) -> dict[str, Any]:
    found = dict(model.state_dict().items())
    found.update((f"buffer {name}", value) for name, value in model.named_buffers())
    return found | {"seen": getattr(model, "seen", None)}


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other) or isinstance(one, Tensor)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, (tuple, list)):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, Tensor):
        assert (one.dtype, one.shape, one.layout) == (other.dtype, other.shape, other.layout)
        dense = (x.dequantize() if x.is_quantized else x.to_dense() for x in (one, other))
        assert torch.equal(*dense)
    else:
        assert isinstance(one, io.BytesIO) or one == other


def build(case: str) -> nn.Module:
    torch.manual_seed(2)
    return CASES[case][0]()


def build_inside(case: str) -> nn.Module:
    """The model of a case inside another one, where a style of tensor parallelism can name it."""
    return nn.Sequential(OrderedDict(up=build(case)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["into", "skeleton", "resume"])
@pytest.mark.parametrize("case", some(CASES))
def test_it_is_strict_load_state_dict(case: str, way: str, tmp_path: Path) -> None:
    make, change = CASES[case]
    torch.manual_seed(1)
    torch.save(change(make().state_dict()), tmp_path / "m.pt")
    theirs, ours = build(case), build(case)
    is_refused = False
    try:
        theirs.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=False), strict=True)
    except (RuntimeError, NotImplementedError):
        is_refused = True

    def load() -> nn.Module:
        if way == "into":
            return ptsave.load(tmp_path / "m.pt", ours)
        if way == "resume":
            TrainingState(model=ours).load_state_dict(read_training(tmp_path / "m.pt"))
            return ours
        spec = parse_model(
            {"factory": f"{__name__}.build", "args": {"case": case}}, ConfigPlace("", ("model",))
        )
        spec = replace(spec, is_factory=False)
        with open_checkpoint(tmp_path / "m.pt") as checkpoint:
            selection = select_model(checkpoint)
            return build_filled(spec, checkpoint, selection, "cpu", warnings.warn, app_dir=None)[0]

    if is_refused:
        with pytest.raises(LossyError):
            load()
        assert_same(contents(build(case)), contents(ours))
    else:
        assert_same(contents(theirs), contents(load()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_versions_go_with_the_weights(prefix: str, suffix: str, tmp_path: Path) -> None:
    """A module that migrates what is old takes what was saved as it is, whatever holds it, wrapped or not."""
    model = nn.Sequential(Versioned())
    state: Any = OrderedDict((f"{prefix}{name}", value) for name, value in model.state_dict().items())
    versions: Any = model.state_dict()._metadata  # type: ignore[attr-defined]
    state._metadata = OrderedDict({"": {"version": 1}})
    state._metadata.update((f"{prefix}{name}".rstrip("."), about) for name, about in versions.items())
    torch.save({"model": state, "epoch": 3}, tmp_path / "training.pt")
    target = tmp_path / f"model.{suffix}"
    wrapped = nn.Sequential(checkpoint_wrapper(Versioned()))
    assert run(["convert", str(tmp_path / "training.pt"), str(target), "--select", "model"]) == 0
    for path in (target, tmp_path / "training.pt"):
        found = ptsave.load(path, nn.Sequential(Versioned()))
        assert torch.equal(found[0].w, model[0].w)  # type: ignore[arg-type]
    ptsave.load(target, wrapped)
    assert torch.equal(wrapped[0].w, model[0].w)  # type: ignore[arg-type]


TIED = '[model]\nclass = "tests.models.weights.test_loading_code.Tied"\n'


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    """A file with two different tensors for one parameter, and a config of the model."""
    (tmp_path / "tied.toml").write_text(TIED)
    torch.save({"embed.weight": torch.zeros(5, 3), "head.weight": torch.ones(5, 3)}, tmp_path / "two.pt")
    return tmp_path / "two.pt"


@pytest.mark.parametrize(("name", "value"), [("embed.weight", 0.0), ("head.weight", 1.0)])
@pytest.mark.parametrize("way", ["into", "config"])
def test_two_tensors_for_one_parameter(untied: Path, name: str, value: float, way: str) -> None:
    options: Any = {"config": untied.parent / "tied.toml"} if way == "config" else {"model": Tied()}
    with pytest.raises(LossyError, match=r"'embed\.weight' and 'head\.weight' are one parameter") as caught:
        ptsave.load(untied, **options)
    assert 'tie="NAME"' in caught.value.hint
    model = ptsave.load(untied, tie=name, **options)
    assert model.head.weight is model.embed.weight
    assert (model.head.weight == value).all()
    with pytest.raises(UsageError, match="no tensor"):
        ptsave.load(untied, tie="tail.weight", **options)


def test_two_tensors_for_one_parameter_on_the_command_line(
    untied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(untied.parent / "tied.toml")
    assert run(["load", str(untied), "-c", config]) == 4
    assert "--tie NAME: 'embed.weight' or 'head.weight'" in capsys.readouterr().err
    assert run(["load", str(untied), "-c", config, "--tie", "head.weight"]) == 0
    saved = str(untied.parent / "one.pt")
    assert run(["save", config, saved, "--weights", str(untied)]) == 4
    assert run(["save", config, saved, "--weights", str(untied), "--tie", "head.weight"]) == 0
    assert (torch.load(saved)["embed.weight"] == 1).all()
    assert run(["verify", str(untied), "-c", config]) == 1
    assert run(["save", config, saved, "--overwrite", "--tie", "head.weight"]) == 2


def test_equal_tensors_for_one_parameter_are_one(tmp_path: Path) -> None:
    one = torch.randn(5, 3)
    torch.save({"embed.weight": one, "head.weight": one.clone()}, tmp_path / "two.pt")
    assert torch.equal(ptsave.load(tmp_path / "two.pt", Tied()).head.weight, one)
    torch.save({"head.weight": one}, tmp_path / "one.pt")
    assert torch.equal(ptsave.load(tmp_path / "one.pt", Tied()).embed.weight, one)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    """Weights without a head, with another one's tail, whose body has another bias."""
    (tmp_path / "two.toml").write_text(TIED.replace("Tied", "Two"))
    state = {"body.weight": torch.ones(3, 3), "body.bias": torch.ones(7), "tail.weight": torch.ones(2)}
    torch.save(state, tmp_path / "part.pt")
    return tmp_path / "part.pt"


FLAGS = ("--allow-missing", "head.*", "--allow-missing", "body.bias", "--min-coverage", "0.4")
MORE = ("--allow-unexpected", "tail.*", "--allow-unexpected", "body.bias")


def test_what_is_allowed(partial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(partial.parent / "two.toml")
    for flags in ((), FLAGS, MORE, (*FLAGS, *MORE[:2])):
        assert run(["load", str(partial), "-c", config, *flags]) == 4
    capsys.readouterr()
    assert run(["load", str(partial), "-c", config, *FLAGS, *MORE, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert sorted(document["missing"]) == ["body.bias", "head.bias", "head.weight"]
    assert sorted(document["unexpected"]) == ["body.bias", "tail.weight"]
    assert run(["load", str(partial), "-c", config, *FLAGS, *MORE]) == 0
    said = capsys.readouterr()
    assert "head, 2 tensors" in said.out + said.err
    assert "every key matched" not in said.out + said.err


def test_what_is_fresh_is_fresh(partial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`save --weights` gives what the weights lack the values of its seed, and writes down which they are."""
    config, fresh, saved = (str(partial.parent / name) for name in ("two.toml", "fresh.pt", "saved.pt"))
    assert run(["save", config, fresh, "--seed", "7"]) == 0
    assert run(["save", config, saved, "--seed", "7", "--weights", str(partial), *FLAGS, *MORE]) == 0
    expected = torch.load(fresh) | {"body.weight": torch.ones(3, 3)}
    assert_same(dict(expected), dict(torch.load(saved)))
    with open_checkpoint(saved) as checkpoint:
        assert checkpoint.record is not None
        assert checkpoint.record.model is not None
        assert sorted(checkpoint.record.model["fresh"]) == ["body.bias", "head.bias", "head.weight"]
        assert sorted(checkpoint.record.model["left"]) == ["body.bias", "tail.weight"]


def test_what_is_allowed_in_python(partial: Path) -> None:
    model = Two()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    some: Any = {
        "allow_missing": ["head.*", "body.bias"],
        "allow_unexpected": ["tail.*", "body.bias"],
    }
    ptsave.load(partial, model, **some, min_coverage=0.4)
    assert_same(before | {"body.weight": torch.ones(3, 3)}, dict(model.state_dict()))
    with pytest.raises(
        LossyError, match=r"9 of 20 elements \(45\.0%\) of the model: less than 50%"
    ) as caught:
        ptsave.load(partial, model, **some)
    assert "min_coverage" in caught.value.hint
    with pytest.raises(UsageError, match="not a share"):
        ptsave.load(partial, model, **some, min_coverage=40)


def test_what_is_fresh_is_said_by_module(partial: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["load", str(partial), "-c", str(partial.parent / "two.toml"), *FLAGS, *MORE]
    assert run(line) == 0
    said = capsys.readouterr().err
    assert "from the weights: 1 of 4 tensors, 9 of 20 elements (45.0%)" in said
    assert "fresh, for the weights lack it: head, 2 tensors, 8 elements" in said
    assert "fresh, for the weights lack it: body.bias, 1 tensor, 3 elements" in said
    assert "left in the weights: tail.weight, body.bias" in said
    assert run([*line, "--json"]) == 0
    coverage = json.loads(capsys.readouterr().out)["coverage"]
    assert sum(part["num_elements"] for part in coverage["parts"]) == coverage["num_elements"] == 20
    assert run([word for word in line if word not in ("--min-coverage", "0.4")]) == 4
    assert (
        "hint: look at what may be missing, or accept it with --min-coverage 0.45" in capsys.readouterr().err
    )
    assert run(["load", str(partial), "-c", str(partial.parent / "two.toml"), "--min-coverage", "0.1"]) == 2


@pytest.mark.parametrize(
    ("names", "kept"), [(["embed.weight"], True), (["head.weight"], True), (["other"], False)]
)
def test_a_tied_head_is_fresh_with_what_it_is_tied_to(tmp_path: Path, names: list[str], kept: bool) -> None:
    torch.save(dict.fromkeys(names, torch.ones(5, 3)), tmp_path / "tied.pt")
    model = Tied()
    before = model.embed.weight.detach().clone()
    ptsave.load(tmp_path / "tied.pt", model, allow_missing="*", allow_unexpected="*", min_coverage=0)
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.embed.weight, torch.ones(5, 3) if kept else before)


@pytest.mark.parametrize("way", ["into", "config"])
def test_a_tied_head_of_another_shape_stays_fresh(tmp_path: Path, way: str) -> None:
    """Its one name that the file has is allowed to stay there; the other is the same parameter."""
    torch.save({"head.weight": torch.ones(7, 3)}, tmp_path / "tied.pt")
    (tmp_path / "tied.toml").write_text(TIED)
    options: Any = {"config": tmp_path / "tied.toml"} if way == "config" else {"model": Tied()}
    allowed: Any = {"allow_missing": "head.*", "allow_unexpected": "head.*"}
    model = ptsave.load(tmp_path / "tied.pt", **options, **allowed, min_coverage=0)
    assert model.head.weight is model.embed.weight
    assert tuple(model.head.weight.shape) == (5, 3)


def test_all_may_be_missing_and_the_right_names_are_found(tmp_path: Path) -> None:
    """Of the readings of a file, the one that covers the model is taken: here, without a prefix."""
    two = Two()
    torch.save({f"_orig_mod.{name}": value for name, value in two.state_dict().items()}, tmp_path / "w.pt")
    model = ptsave.load(tmp_path / "w.pt", Two(), allow_missing="*", allow_unexpected="*")
    assert_same(dict(two.state_dict()), dict(model.state_dict()))


def test_an_optimizer_of_a_replaced_layer_is_named(tmp_path: Path) -> None:
    two = Two()
    optimizer = torch.optim.SGD(two.parameters(), momentum=0.9)
    two.head(two.body(torch.ones(1, 3))).sum().backward()
    optimizer.step()
    state = {"model": two.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "training.pt")
    model = Two()
    model.head = nn.Linear(3, 4)
    with pytest.warns(
        UserWarning, match="the optimizer's state in the checkpoint is not loaded; what it has of"
    ):
        ptsave.load(
            tmp_path / "training.pt",
            model,
            allow_missing="head.*",
            allow_unexpected="head.*",
            min_coverage=0.4,
        )
    assert torch.equal(model.body.weight, two.body.weight)


class Unreadable:
    """What no reader of plain data makes again."""


@pytest.mark.parametrize("way", ["into", "config"])
def test_an_extra_state_is_left_alone(tmp_path: Path, way: str) -> None:
    state = Extra().state_dict()
    torch.save({**state, "_extra_state": {"seen": Unreadable()}}, tmp_path / "m.pt")
    torch.save({k: v for k, v in state.items() if k != "_extra_state"}, tmp_path / "less.pt")
    (tmp_path / "extra.toml").write_text(TIED.replace("Tied", "Extra"))
    options: Any = {"config": tmp_path / "extra.toml"} if way == "config" else {"model": Extra()}
    glob = "*_extra_state"
    with pytest.raises(LossyError, match="Unreadable, which is not plain data") as caught:
        ptsave.load(tmp_path / "m.pt", **options)
    assert "allow_missing" in caught.value.hint
    for file in ("m.pt", "less.pt"):
        loaded = ptsave.load(tmp_path / file, **options, allow_missing=glob, allow_unexpected=glob)
        assert loaded.seen is None
        assert torch.equal(loaded.weight, state["weight"])
    assert ptsave.load(tmp_path / "m.pt", nn.Linear(3, 2), allow_unexpected=glob).bias is not None


def test_a_training_refuses_two_tensors_for_one_parameter() -> None:
    one = torch.randn(5, 3)
    plan_module(Tied(), {"embed.weight": one, "head.weight": one.clone()}, "the model")
    plan_module(Tied(), {"head.weight": one}, "the model")
    with pytest.raises(LossyError, match=r"'embed\.weight' and 'head\.weight' are one parameter"):
        plan_module(Tied(), {"embed.weight": one, "head.weight": one + 1}, "the model")

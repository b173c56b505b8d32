"""Skeletons: what is on the meta device, what is real, and when a model is built for real altogether.

Each kind of model is built, filled with another one's state dict, and must then be that other one.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Thread

import pytest
import torch
from torch import Tensor, nn

from ptsave.examples import TinyTransformer
from ptsave.models.skeleton import ParametersOnMeta, build_skeleton, defects, reachable_tensors

X = torch.linspace(-1, 1, 24).reshape(4, 6)


class Wrapped(nn.Module):
    """Any one layer that maps (4, 6) to a tensor, or to a tuple of which the first is one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        return out[0] if isinstance(out, tuple) else out


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6, bias=False)
        self.second = nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


class TiedThroughLocal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        weight = nn.Parameter(torch.randn(6, 6))
        self.a, self.b = weight, weight

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.a @ self.b


class Rotary(nn.Module):
    """A buffer that no state dict holds, computed at construction."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        frequencies = 10000 ** -(torch.arange(0, 6, 2) / 6)
        self.register_buffer("frequencies", frequencies.repeat(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.frequencies.cos()


class PlainAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.scale = torch.arange(6.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.scale


class DerivedAttribute(nn.Module):
    """A tensor computed from a weight at construction: without real weights there is nothing to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        with torch.no_grad():
            nn.init.ones_(self.fc.weight)
            self.cache = {"norms": [self.fc.weight.norm(dim=1)]}

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) / self.cache["norms"][0]


class ReadsItsWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.is_large = float(self.fc.weight.detach().abs().max()) > 100

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * (0 if self.is_large else 1)


class MovesItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.to("cpu", torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.double())


class CopiesAnother(nn.Module):
    """A layer filled from another, and one cast in place."""

    def __init__(self) -> None:
        super().__init__()
        source = nn.Linear(6, 6)
        self.fc = nn.Linear(6, 6)
        self.fc.weight.data.copy_(source.weight.data)
        self.fc.bias = nn.Parameter(source.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class SharesStorage(nn.Module):
    """Two parameters over one memory: writing to one changes the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(6, 6))
        self.b = nn.Parameter(self.a.data.view(36))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.a + self.b[:6]


class SharesStorageOfLocal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        memory = torch.randn(12, 6)
        self.a, self.b = nn.Parameter(memory[:6]), nn.Parameter(memory[6:])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.a + x @ self.b


class SharesWithAttribute(nn.Module):
    """A plain attribute over a parameter's memory: it follows the parameter's values."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = torch.randn(6, 6)
        self.weight = nn.Parameter(self.memory)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + x @ self.memory


class ListsItsParameters(nn.Module):
    """A parameter held in a plain list as well: assignment would not reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.weights = [self.fc.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + x @ self.weights[0]


class OwnParameter(nn.Parameter):
    def __new__(cls, data: Tensor, scale: float) -> OwnParameter:
        parameter = super().__new__(cls, data * scale)
        parameter.scale = scale
        return parameter


class HasOwnParameter(nn.Module):
    """A parameter of the user's own class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = OwnParameter(torch.randn(6, 6), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight / self.weight.scale


class ParameterWithAttribute(nn.Module):
    """An attribute on a parameter that forward needs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.fc.weight.scale = 3.0

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.fc.weight.scale


class LoadsItself(nn.Module):
    """A constructor that loads pretrained weights: torch warns that they go nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.fc.load_state_dict({"weight": torch.eye(6), "bias": torch.zeros(6)})

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


@dataclass(slots=True)
class Holder:
    tensor: Tensor


class ListsItsBuffers(nn.Module):
    """A view of a buffer, kept in an object of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.register_buffer("scale", torch.rand(2, 6))
        self.holder = deque([Holder(self.scale[0])])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.holder[0].tensor


class TiesBuffers(nn.Module):
    """One buffer under two names, one of them not in the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.rand(6))
        self.register_buffer("b", self.a)
        self.fc = nn.Linear(6, 6)
        self.fc.register_buffer("c", self.a, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.a * self.b * self.fc.c


class Closes(nn.Module):
    """A parameter held by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        weight = self.fc.weight
        self.function = lambda x: x @ weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + self.function(x)


class DropsFromStateDict(nn.Module):
    """A hook that leaves a parameter out of the state dict, as adapters do for frozen weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        nn.init.eye_(self.fc.weight)
        self.head = nn.Linear(6, 6)
        self.register_state_dict_post_hook(self.drop)

    @staticmethod
    def drop(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
        del state[f"{prefix}fc.weight"]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(x))


def spectral_norm_new() -> nn.Module:
    return Wrapped(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)))


def weight_norm_old() -> nn.Module:
    with warnings.catch_warnings(action="ignore"):
        return Wrapped(nn.utils.weight_norm(nn.Linear(6, 6)))


SKELETONS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 3),
    "lstm": lambda: Wrapped(nn.LSTM(6, 5, num_layers=2, bidirectional=True)),
    "gru": lambda: Wrapped(nn.GRU(6, 5)),
    "batch_norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)),
    "transformer_layer": lambda: nn.TransformerEncoderLayer(6, 2, 8),
    "deep_copies": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2, enable_nested_tensor=False
    ),
    "weight_norm": lambda: Wrapped(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))),
    "orthogonal_init": lambda: nn.Linear(6, 6).apply(lambda module: nn.init.orthogonal_(module.weight)),
    "tied": Tied,
    "tied_through_local": TiedThroughLocal,
    "rotary": Rotary,
    "plain_attribute": PlainAttribute,
    "copies_another": CopiesAnother,
    "loads_itself": LoadsItself,
    "prelu": lambda: nn.Sequential(nn.Linear(6, 6), nn.PReLU()),
}
REAL: dict[str, Callable[[], nn.Module]] = {
    "own_parameter": HasOwnParameter,
    "parameter_with_attribute": ParameterWithAttribute,
    "weight_norm_old": weight_norm_old,
    "derived_attribute": DerivedAttribute,
    "reads_its_weights": ReadsItsWeights,
    "moves_itself": MovesItself,
    "shares_storage": SharesStorage,
    "shares_storage_of_local": SharesStorageOfLocal,
    "shares_with_attribute": SharesWithAttribute,
    "lists_its_parameters": ListsItsParameters,
    "closes": Closes,
    "lists_its_buffers": ListsItsBuffers,
    "drops_from_state_dict": DropsFromStateDict,
    "script": lambda: torch.jit.script(nn.Linear(6, 3)),
}
EITHER: dict[str, Callable[[], nn.Module]] = {
    "ties_buffers": TiesBuffers,
    "spectral_norm": spectral_norm_new,
    "spectral_norm_old": lambda: Wrapped(nn.utils.spectral_norm(nn.Linear(6, 6))),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.Linear(6, 2)),
}


def outputs(model: nn.Module) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(X)


def filled(construct: Callable[[], nn.Module], state: dict[str, Tensor]) -> nn.Module:
    model = build_skeleton(construct)
    if model is None:
        model = construct()
        model.load_state_dict(state, strict=False)
    else:
        model.load_state_dict(state, strict=False, assign=True)
    return model


@pytest.mark.parametrize("name", SKELETONS)
def test_parameters_have_no_memory(name: str) -> None:
    model = build_skeleton(SKELETONS[name])
    assert model is not None
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


@pytest.mark.parametrize("name", REAL)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_what_cannot_do_without_weights_is_built_for_real(name: str) -> None:
    assert build_skeleton(REAL[name]) is None


@pytest.mark.parametrize("name", [*SKELETONS, *REAL, *EITHER])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_filled_from_another_it_is_that_other(name: str) -> None:
    construct = {**SKELETONS, **REAL, **EITHER}[name]
    torch.manual_seed(1)
    original = construct()
    expected = outputs(original)
    model = filled(construct, original.state_dict())
    assert torch.equal(outputs(model), expected)
    assert not any(tensor.is_meta for _, tensor, _ in reachable_tensors(model))


def test_ties_are_one_object() -> None:
    model = build_skeleton(TinyTransformer)
    assert isinstance(model, TinyTransformer)
    assert model.head.weight is model.embed.weight
    assert len(list(model.parameters())) == len(list(TinyTransformer().parameters()))


def test_requires_grad_and_dtype_are_kept() -> None:
    model = build_skeleton(lambda: nn.Linear(2, 2, dtype=torch.bfloat16).requires_grad_(False))
    assert model is not None
    assert not model.weight.requires_grad
    assert model.weight.dtype == torch.bfloat16


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        raise OSError("no such file")


class Nests(nn.Module):
    """A constructor that builds another skeleton."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.num_inner = sum(p.is_meta for p in build_skeleton(Tied).parameters())
        self.last = nn.Linear(6, 6)


def test_what_is_older_than_the_build_is_left_alone() -> None:
    shared = nn.Parameter(torch.ones(3))

    class Borrows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)
            self.shared = shared

    assert build_skeleton(Borrows) is None
    assert torch.equal(shared.detach(), torch.ones(3))


def test_registries_that_are_filled_by_hand_and_old_constructors() -> None:
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._parameters["weight"] = nn.Parameter(torch.zeros(6))

    class Old(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.Tensor(6, 6))

    model = build_skeleton(ByHand)
    assert model is not None
    assert model.get_parameter("weight").is_meta
    assert build_skeleton(Old) is None


def test_nothing_is_patched_for_any_thread() -> None:
    """Skeletons in many threads, of constructors that raise and that nest, beside a user's own modules."""
    before = {name: value for name, value in vars(nn.Parameter).items() if callable(value)}
    registering, filters = nn.Module.register_parameter, list(warnings.filters)
    constructs = [TinyTransformer, Raises, Nests, LoadsItself, ReadsItsWeights, lambda: nn.LSTM(6, 6)]
    built: list[nn.Module | None] = []
    ordinary: list[nn.Module] = []
    problems: list[BaseException] = []

    def run(work: Callable[[], None]) -> Thread:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                problems.append(error)

        return Thread(target=guarded)

    def build(first: int) -> None:
        built.extend(build_skeleton(constructs[(first + k) % len(constructs)]) for k in range(12))

    threads = [run(partial(build, i)) for i in range(8)]
    threads += [run(lambda: ordinary.extend(nn.Linear(6, 6) for _ in range(200))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    skeletons = [model for model in built if model is not None]
    assert len(skeletons) == 8 * 12 * 4 // 6
    assert all(parameter.is_meta for model in skeletons for parameter in model.parameters())
    assert all(model.num_inner == 1 for model in skeletons if isinstance(model, Nests))
    assert not any(parameter.is_meta for model in ordinary for parameter in model.parameters())
    assert not any(parameter.is_meta for parameter in TinyTransformer().parameters())
    assert before == {name: value for name, value in vars(nn.Parameter).items() if callable(value)}
    assert nn.Module.register_parameter is registering
    assert warnings.filters == filters


def test_a_defect_names_its_place() -> None:
    with ParametersOnMeta():
        model = ListsItsParameters()
    assert list(defects(model)) == ["weights.0: shares its memory with a name of the state dict"]


MEASURE = """
import resource, sys, torch
from torch import nn
from ptsave.models.skeleton import build_skeleton
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2048, 2048) for _ in range(8))
        self.random = nn.ParameterList(nn.Parameter(torch.randn(2048, 2048)) for _ in range(8))
build_skeleton(lambda: nn.Linear(8, 8))
torch.randn(2048, 2048)  # the random generator's own memory
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert build_skeleton(Net) is not None
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_stays_at_one_layer() -> None:
    """The model has 16 layers of 16 MiB."""
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(run.stdout) * unit < 2 * 2048 * 2048 * 4

"""Building models from specs: what is imported and called, and every way that it can go wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ptsave.config.model import ConfigPlace, ModelSpec
from ptsave.errors import PtsaveError, UsageError
from ptsave.models.build import build_model, resolve_device
from ptsave.models.imports import import_object, import_path
from ptsave.models.seeding import seeded
from ptsave.own_process import own_process

SOURCE = '''
import random
import numpy
import torch
from torch import nn

print("importing")

class Net(nn.Module):
    """Takes anything."""
    def __init__(self, size, *, dtype=None, inner=None, **rest):
        super().__init__()
        print("building")
        self.fc = nn.Linear(size, size, dtype=dtype)
        self.inner, self.rest = inner, rest

class Strict(nn.Module):
    def __init__(self, hidden_size: int, output_size: int = 2) -> None:
        super().__init__()

class Outer:
    class Inner(nn.Module):
        pass

class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        raise RuntimeError("no\\n  such   thing")

class Leaves(nn.Module):
    def __init__(self):
        raise SystemExit(3)

class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.a, self.b = random.random(), numpy.random.rand()

def make(size=1):
    return Net(size)

def make_dict():
    return {"fc.weight": torch.zeros(1)}

calls = 0

def train():
    global calls
    calls += 1
    model = nn.Linear(2, 2)
    model.weight.data.fill_(7.0)
    return model

class Part:
    def __init__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs

built = nn.Linear(1, 1)
number = 3
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with `nets.py`, `broken.py` and others, none of them imported yet."""
    (tmp_path / "nets.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("import nets\nx = (1,\n")
    (tmp_path / "needy.py").write_text("import no_such_dependency\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit('usage: …')\n")
    package = tmp_path / "pkg" / "models"
    package.mkdir(parents=True)
    (tmp_path / "pkg" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("from pkg.models.net import net\n")
    (package / "net.py").write_text("from nets import Net\ndef net(): return Net(1)\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("nets", "broken", "needy", "exits", "pkg"):
            del sys.modules[name]


def build(folder: Path, target: str, device: str = "cpu", **args: Any) -> nn.Module:
    spec = ModelSpec(target, args, place=ConfigPlace("c.toml", ("model",)))
    return build_model(spec, device=device, app_dir=folder)


def refusal(folder: Path, target: str, device: str = "cpu", **args: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        build(folder, target, device, **args)
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("nets.Net", "Net"),
        ("nets:Net", "Net"),
        ("nets.make", "Net"),
        ("nets.Outer.Inner", "Inner"),
        ("nets:Outer.Inner", "Inner"),
        ("pkg.models.net.Net", "Net"),
        ("pkg.models.net:net", "Net"),
        ("pkg.models.net.net", "Net"),
    ],
)
def test_spellings(folder: Path, target: str, name: str) -> None:
    args = {"size": 3} if name == "Net" and not target.endswith("net") else {}
    assert type(build(folder, target, **args)).__name__ == name


def test_prints_of_a_command_go_to_stderr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with own_process():
        build(folder, "nets.Net", size=1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "importing" in captured.err
    assert "building" in captured.err
    build(folder, "nets.Net", size=1)  # in somebody's own process, they go where theirs go
    assert "building" in capsys.readouterr().out


def test_arguments(folder: Path) -> None:
    model = build(
        folder,
        "nets.Net",
        size=4,
        dtype={"_dtype_": "float16"},
        inner={
            "_target_": "nets.Part",
            "_args_": [1, {"_dtype_": "torch.int8"}],
            "children": [{"_target_": "nets:Part", "deep": {"_import_": "nets.Net"}}, {"plain": [1, "a"]}],
            "bound": {"_float_": "-inf"},
        },
        norm={"_target_": "torch.nn.LayerNorm", "_partial_": True, "eps": 0.5},
    )
    assert model.fc.weight.dtype == torch.float16
    part = model.inner
    assert part.args == (1, torch.int8)
    first, second = part.kwargs["children"]
    assert first.kwargs["deep"] is type(model)
    assert second == {"plain": [1, "a"]}
    assert part.kwargs["bound"] == float("-inf")
    assert model.rest["norm"](3).eps == 0.5


def test_a_model_without_code() -> None:
    layers = [
        {"_target_": "torch.nn.Linear", "_args_": [3, 4]},
        {"_target_": "torch.nn.ReLU"},
        {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 2, "bias": False},
    ]
    model = build_model(ModelSpec("torch.nn.Sequential", {"_args_": layers}), device="meta")
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight"]
    assert all(parameter.is_meta for parameter in model.parameters())


def test_meta(folder: Path) -> None:
    assert build(folder, "nets.Net", "meta", size=2).fc.weight.is_meta


def test_a_factory_is_called_once_and_for_real(folder: Path) -> None:
    model = build_model(ModelSpec("nets:train", is_factory=True), device="meta", app_dir=folder)
    assert model.weight.tolist() == [[7.0, 7.0], [7.0, 7.0]]
    assert sys.modules["nets"].calls == 1


def test_seed(folder: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()

    def once(seed: int | None) -> tuple[list[float], float, float]:
        model = build_model(ModelSpec("nets.Random"), app_dir=folder, seed=seed)
        return model.fc.bias.tolist(), model.a, model.b

    assert once(3) == once(3)
    assert all(a != b for a, b in zip(once(3), once(4), strict=True))
    assert once(-1) == once(-1)
    assert torch.equal(torch.get_rng_state(), state)


def test_seeding_puts_back_the_states_after_an_error() -> None:
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(1):
        torch.rand(3).tolist()[0] / 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("target", "what", "where", "hint"),
    [
        ("netz.Net", "there is no module 'netz'", "model.class", "did you mean 'nets'?"),
        ("no_such_thing_at_all:X", "no module 'no_such_thing_at_all'", "model.class", "--app-dir"),
        ("nets.Nett", "'nets' has no 'Nett'", "model.class", "did you mean 'Net'?"),
        ("nets:Outer.Iner", "'Outer' has no 'Iner'", "model.class", "did you mean 'Inner'?"),
        ("pkg.modles.net.Net", "'pkg' has no 'modles'", "model.class", "did you mean 'models'?"),
        ("pkg.modles:Net", "there is no module 'pkg.modles'", "model.class", "did you mean 'pkg.models'?"),
        ("nets.sub:Net", "there is no module 'nets.sub'", "model.class", "--app-dir"),
        ("broken.Net", "importing broken raised SyntaxError", "model.class", "broken.py:2"),
        ("needy.Net", "raised ModuleNotFoundError: No module named 'no_such", "model.class", "needy.py:1"),
        ("exits.Net", "importing exits raised SystemExit: usage", "model.class", "exits.py:2"),
        ("nets.number", "'nets.number' is a int, not a class", "model.class", "name what to call"),
        ("pkg.models", "is a module, not a class or a function", "model.class", "name what to call"),
        (
            "nets.built",
            "is a module that was built at import",
            "model.class",
            "torch.nn.modules.linear.Linear",
        ),
        ("nets.make_dict", "gave a builtins.dict, not a module", "model.class", "torch.nn.Module"),
        ("nets.Part", "gave a nets.Part, not a module", "model.class", "torch.nn.Module"),
        ("nets.Strict", "missing a required argument: 'hidden_size'", "model.args", "Strict(hidden_size"),
        (
            "nets.Fails",
            "nets.Fails raised RuntimeError: no such thing",
            "model.args",
            "nets.py:28 in __init__",
        ),
        ("nets.Leaves", "nets.Leaves raised SystemExit: 3", "model.args", "nets.py:32 in __init__"),
    ],
)
def test_refused(folder: Path, device: str, target: str, what: str, where: str, hint: str) -> None:
    error = refusal(folder, target, device)
    assert what in error.what
    assert error.where == f"c.toml: {where}"
    assert hint in error.hint


def test_the_cause_is_kept_for_the_traceback(folder: Path) -> None:
    assert isinstance(refusal(folder, "nets.Fails").__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("args", "what", "where", "hint"),
    [
        (
            {"hiden_size": 1},
            "Strict got an unexpected keyword argument 'hiden_size'",
            ".hiden_size",
            "'hidden_size'",
        ),
        ({"hidden_size": 1, "zzz": 2}, "unexpected keyword argument 'zzz'", ".zzz", "output_size"),
        ({"hidden_size": 1, "_args_": [1]}, "multiple values for argument 'hidden_size'", "", "Strict("),
        ({"_args_": [1, 2, 3]}, "too many positional arguments", "", "Strict(hidden_size"),
    ],
)
def test_arguments_refused(folder: Path, args: dict[str, Any], what: str, where: str, hint: str) -> None:
    error = refusal(folder, "nets.Strict", **args)
    assert what in error.what
    assert error.where == f"c.toml: model.args{where}"
    assert hint in error.hint


@pytest.mark.parametrize(
    ("inner", "what", "where"),
    [
        ({"_target_": "nets.Prt"}, "'nets' has no 'Prt'", ".inner._target_"),
        ({"_target_": "nets.number"}, "is a int, not a class", ".inner._target_"),
        ([{"_target_": "nets.Fails"}], "nets.Fails raised RuntimeError", ".inner.0"),
        ({"a": {"_target_": "nets.Strict", "b": 1}}, "unexpected keyword argument 'b'", ".inner.a.b"),
        ({"_import_": "nets.Nt"}, "'nets' has no 'Nt'", ".inner._import_"),
    ],
)
def test_inner_objects_refused(folder: Path, inner: Any, what: str, where: str) -> None:
    error = refusal(folder, "nets.Net", size=1, inner=inner)
    assert what in error.what
    assert error.where == f"c.toml: model.args{where}"


def test_a_wrong_type_shows_where_it_hurts(folder: Path) -> None:
    error = refusal(folder, "nets.Net", size="ten")
    assert "nets.Net raised TypeError" in error.what
    assert "nets.py:14 in __init__" in error.hint


def test_a_target_without_a_signature() -> None:
    error = refusal(Path(), "builtins.print", file={"_import_": "sys.stderr"})
    assert "gave a builtins.NoneType" in error.what


def test_our_own_errors_pass(folder: Path) -> None:
    (folder / "nets.py").write_text(
        "from ptsave.errors import PtsaveError\ndef f(): raise PtsaveError('a', 'b', 'c')"
    )
    with pytest.raises(PtsaveError) as caught:
        build(folder, "nets.f")
    assert (caught.value.what, caught.value.where) == ("a", "b")


@pytest.mark.parametrize("name", ["cud", "cpu:x", "", "cuda:99", "privateuseone"])
def test_devices_refused(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_device(name)
    assert "device" in caught.value.what
    assert caught.value.hint


def test_import_path() -> None:
    assert import_path(nn.Linear) == "torch.nn.modules.linear.Linear"
    assert import_object(import_path(nn.Linear) or "", ConfigPlace("")) is nn.Linear

    class Local(nn.Module):
        pass

    assert import_path(Local) is None
    Local.__qualname__ = "Linear"
    Local.__module__ = nn.Linear.__module__
    assert import_path(Local) is None

"""The source digest: what changes it, what does not, and that no version of Python changes it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from ptsave.examples import SimpleNet, TinyTransformer
from ptsave.models import source
from ptsave.models.source import changed_parts, source_digest, source_parts

NET = '''
import torch
from torch import nn
import layers
from layers import Block, EPS
from layers import helper as renamed

SCALE = 2.0
TABLE = {"a": torch.tensor(1.0)}
UNUSED = 1

def unused():
    return 1

class Base(nn.Module):
    def shift(self, x):
        return x + EPS

class Net(Base):
    """Docstring."""
    def __init__(self):
        super().__init__()
        self.block = Block()
    def forward(self, x):
        # comment
        return self.shift(renamed(self.block(x))) * SCALE * TABLE["a"] + layers.other(x)
'''
LAYERS = """
from torch import nn
EPS = 1e-5
def deep(x): return x + 1
def helper(x): return deep(x)
def other(x): return x
class Block(nn.Module):
    def forward(self, x): return x
class Unrelated(nn.Module):
    pass
"""


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, str]]]:
    """The parts of `net.Net`, once texts were replaced in its source (or in that of `layers`)."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def make(*edits: tuple[str, str]) -> dict[str, str]:
        net, layers = NET, LAYERS
        for old, new in edits:
            assert old in net or old in layers
            net, layers = net.replace(old, new), layers.replace(old, new)
        (tmp_path / "net.py").write_text(net)
        (tmp_path / "layers.py").write_text(layers)
        for name in ("net", "layers"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        module = importlib.import_module("net")
        assert source_digest(module.Net) is not None
        parts = source_parts(module.Net)
        assert parts is not None
        return parts

    yield make
    for name in ("net", "layers"):
        sys.modules.pop(name, None)


def test_what_counts(digest: Callable[..., dict[str, str]]) -> None:
    assert set(digest()) == {
        "net.Net",
        "net.Net.__init__",
        "net.Net.forward",
        "net.Base",
        "net.Base.shift",
        "net.SCALE",
        "net.TABLE",
        "net.EPS",
        "layers.Block",
        "layers.Block.forward",
        "layers.helper",
        "layers.deep",
        "layers.other",
    }


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("self.shift(renamed", "self.shift(1 + renamed", {"net.Net.forward"}),
        ("SCALE = 2.0", "SCALE = 2.5", {"net.SCALE"}),
        ("torch.tensor(1.0)", "torch.tensor(3.0)", {"net.TABLE"}),
        ("EPS = 1e-5", "EPS = 1e-6", {"net.EPS"}),
        ("return x + EPS", "return x - EPS", {"net.Base.shift"}),
        ("return x + 1", "return x + 2", {"layers.deep"}),
        ("def other(x): return x", "def other(x): return -x", {"layers.other"}),
        (
            "def forward(self, x): return x\n",
            "def forward(self, x): return x.relu()\n",
            {"layers.Block.forward"},
        ),
        ("class Net(Base):", "class Net(Base, nn.Identity):", {"net.Net"}),
        ('    """Docstring."""', "    flag = True", {"net.Net"}),
        ("self.block = Block()", "self.block = Block().eval()", {"net.Net.__init__"}),
    ],
)
def test_a_change_of_behaviour_shows(
    digest: Callable[..., dict[str, str]], old: str, new: str, changed: set[str]
) -> None:
    before, after = digest(), digest((old, new))
    assert {name for name in before | after if before.get(name) != after.get(name)} == changed
    assert set(changed_parts(before, sys.modules["net"].Net) or ()) == changed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# comment", "# another"),
        ('"""Docstring."""', '"""Another."""'),
        ('"""Docstring."""', ""),
        ("return x + EPS", "return (x\n            + EPS)"),
        ('TABLE["a"]', "TABLE['a']"),
        ("UNUSED = 1", "UNUSED = 2"),
        ("def unused():\n    return 1", "def unused():\n    return 2"),
        ("    pass", "    x = 1"),
        ("1e-5", "0.00001"),
    ],
)
def test_what_changes_nothing_does_not_show(
    digest: Callable[..., dict[str, str]], old: str, new: str
) -> None:
    assert digest() == digest((old, new))


def test_the_digest_is_of_the_module_that_defines_the_class(digest: Callable[..., dict[str, str]]) -> None:
    digest()
    first = source_digest(sys.modules["net"].Net)
    digest(("return x + 1", "return x + 2"))
    assert source_digest(sys.modules["net"].Net) == first
    digest(("SCALE = 2.0", "SCALE = 2.5"))
    assert source_digest(sys.modules["net"].Net) not in (first, None)


def test_fewer_parts_are_not_a_change(digest: Callable[..., dict[str, str]]) -> None:
    recorded = {name: value for name, value in digest().items() if name.startswith("net.")}
    net = sys.modules["net"].Net
    assert changed_parts(recorded, net) == []
    assert changed_parts({**recorded, "net.Net.extra": "00"}, net) == ["net.Net.extra"]
    assert changed_parts({"other.Net": "00"}, net) is None
    assert changed_parts(recorded, int) is None


def test_the_same_on_every_version_of_python() -> None:
    """Pinned: the spelling of the tree must not depend on what runs it."""
    parts = source_parts(SimpleNet)
    assert parts is not None
    assert parts["ptsave.examples.simple_net.SimpleNet.forward"] == ("f1c6ecc1ec628efc")


def test_a_model_of_several_classes() -> None:
    parts = source_parts(TinyTransformer)
    assert parts is not None
    assert "ptsave.examples.tiny_transformer.Block.forward" in parts


def test_an_installed_package_is_followed_within_its_module() -> None:
    parts = source_parts(Console)
    assert parts is not None
    assert "rich.console.ConsoleOptions.update" in parts
    assert all(name.startswith("rich.console.") for name in parts)


def test_layers_count_and_torchs_own_do_not() -> None:
    assert source_parts(nn.Sequential(nn.Linear(1, 1))) is None
    assert source_parts(nn.Linear) is None
    parts = source_parts(nn.Sequential(nn.Linear(1, 1), SimpleNet(1, 1, 1)))
    assert parts == source_parts(SimpleNet(1, 1, 1)) == source_parts(SimpleNet)


def test_a_function(digest: Callable[..., dict[str, str]]) -> None:
    digest()
    assert set(source_parts(sys.modules["layers"].helper) or ()) == {"layers.helper", "layers.deep"}


def test_no_source() -> None:
    namespace: dict[str, type] = {}
    exec("class Net:\n    pass", namespace)
    assert source_digest(namespace["Net"]) is None
    assert source_digest(type("Made", (nn.Module,), {})) is None
    assert source_digest(int) is None
    assert source_digest(torch.Tensor.__base__) is None


def test_a_class_inside_a_function() -> None:
    class Local(nn.Module):
        def forward(self, x: int) -> int:
            return x

    parts = source_parts(Local)
    assert parts is not None
    assert [name.rpartition("<locals>.")[2] for name in parts] == ["Local", "Local.forward"]
    assert source._index(sys.modules[__name__]) is not None

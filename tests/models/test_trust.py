"""--trust-recorded: what a record may have imported and called, and that all of it is listed before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.workshop import Saved, Workshop, edit_record

FILE = Path("net.safetensors")

HELPERS = """
import dataclasses
import functools
import os
from pathlib import Path

import torch
from torch import nn


@dataclasses.dataclass
class Size:
    width: int = 4


class Plain:
    def __init__(self, width=4):
        self.width = width


class Net(nn.Module):
    def __init__(self, width=4, size=None, act=None, dtype=None):
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.act = act

    def forward(self, x):
        return self.fc(x)


def make() -> nn.Module:
    return Net()


def make_quietly():
    return Net()


def write(path):
    Path(path).write_text("called")
    return Net()


def lie(path) -> nn.Module:
    return Path(path)


bound = functools.partial(write, "ran")
"""


@pytest.fixture
def shop(workshop: Workshop, saved: Saved) -> Workshop:
    workshop.write_code(net=HELPERS)
    workshop.write_config('[model]\nclass = "nets.net.Net"\n[inputs.x]\nshape = [2, 4]\n')
    workshop.save_once(saved)
    return workshop


def name(**model: Any) -> None:
    edit_record(FILE, model=model)


HOSTILE: dict[str, dict[str, Any]] = {
    "a factory of the system": {
        "class": "nets.net.Net",
        "factory": "os.system",
        "args": {"command": "touch ran"},
    },
    "eval": {"class": "builtins.eval", "args": {"_args_": ["open('ran', 'w')"]}},
    "a module's own import": {"class": "nets.net:os.system", "args": {"_args_": ["touch ran"]}},
    "a target deep inside": {
        "class": "nets.net.Net",
        "args": {"size": {"a": [{"_target_": "nets.net:os.system", "_args_": ["touch ran"]}]}},
    },
    "a class that runs": {
        "class": "nets.net.Net",
        "args": {"size": {"_target_": "subprocess.Popen", "_args_": [["touch", "ran"]]}},
    },
    "a partial": {
        "class": "nets.net.Net",
        "args": {
            "size": {"_target_": "functools.partial", "_args_": [{"_import_": "os.system"}, "touch ran"]}
        },
    },
    "a partial that is there": {"class": "nets.net.bound"},
    "a bound function": {
        "class": "nets.net.Net",
        "args": {"act": {"_target_": "nets.net:os.system", "_partial_": True, "_args_": ["touch ran"]}},
    },
    "an import to be called": {"class": "nets.net.Net", "args": {"act": {"_import_": "nets.net:os.system"}}},
    "a mapping that opens a file": {
        "class": "nets.net.Net",
        "args": {"size": {"_target_": "shelve.DbfilenameShelf", "_args_": ["ran"]}},
    },
    "a method of torch": {
        "class": "nets.net.Net",
        "args": {"size": {"_target_": "torch.load", "f": "net.pt", "weights_only": False}},
    },
    "a function that does not say": {"factory": "nets.net.write", "args": {"path": "ran"}},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_model_is_not_called(shop: Workshop, what: str) -> None:
    name(**HOSTILE[what])
    for command in ("load", "verify"):
        code, out, err = shop.run(command, FILE, "--trust-recorded")
        assert code == 4, (out, err)
        assert "the record names" in err
        assert not Path("ran").exists()


@pytest.mark.parametrize("what", HOSTILE)
def test_everything_that_would_be_imported_is_listed_before(shop: Workshop, what: str) -> None:
    model = HOSTILE[what]
    name(**model)
    named = [model.get("factory", model.get("class"))]
    waiting: list[Any] = [model.get("args", {})]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            named += [value[key] for key in ("_target_", "_import_") if key in value]
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    _, out, _ = shop.run("inspect", FILE)
    _, as_json, _ = shop.run("inspect", FILE, "--json")
    code, _, hint = shop.run("load", FILE)
    assert code == 2
    assert {code["path"] for code in json.loads(as_json)["record_imports"]} == set(named)
    for path in named:
        assert path in out
        assert path in hint


def test_a_pattern_is_all_that_is_trusted(shop: Workshop) -> None:
    name(**{"class": "nets.net.Net", "args": {"size": {"_target_": "nets.net.Size", "width": 3}}})
    assert shop.run("load", FILE, "--trust-recorded", "nets.net.*")[0] == 0
    assert shop.run("load", "--trust-recorded", FILE)[0] == 0
    assert (
        shop.run("load", "--trust-recorded", "nets.net.Net", "--trust-recorded", "nets.net.Size", FILE)[0]
        == 0
    )
    code, _, err = shop.run("load", FILE, "--trust-recorded", "nets.net.Net")
    assert code == 4
    assert "does not cover: 'nets.net.Size' (called, model.args.size._target_)" in err
    assert shop.run("verify", "--trust-recorded=other.*", FILE)[0] == 4


@pytest.mark.parametrize(
    ("model", "needs_a_name"),
    [
        ({"factory": "nets.net.make"}, False),
        ({"factory": "nets.net.make_quietly"}, True),
        ({"class": "nets.net.Net", "args": {"size": {"_target_": "nets.net.Plain"}}}, True),
        ({"class": "nets.net.Net", "args": {"size": {"_target_": "collections.OrderedDict", "a": 1}}}, False),
        ({"class": "nets.net.Net", "args": {"act": {"_target_": "torch.nn.ReLU", "_partial_": True}}}, False),
        ({"class": "nets.net.Net", "args": {"act": {"_import_": "torch.nn.functional.gelu"}}}, False),
        ({"class": "nets.net.Net", "args": {"act": {"_import_": "torch.tanh"}}}, False),
        ({"class": "nets.net.Net", "args": {"act": {"_import_": "torch.nn.ReLU"}}}, False),
        ({"class": "nets.net.Net", "args": {"dtype": {"_import_": "torch.float16"}}}, False),
        ({"class": "nets.net.Net", "args": {"dtype": {"_dtype_": "float16"}}}, False),
    ],
)
def test_what_makes_models_is_called(shop: Workshop, model: dict[str, Any], needs_a_name: bool) -> None:
    name(**model)
    code, _, err = shop.run("load", FILE, "--trust-recorded")
    assert code == (4 if needs_a_name else 0), err
    assert shop.run("load", FILE, "--trust-recorded", "nets.*", "--trust-recorded", "[!n]*")[0] == 0


def test_what_comes_back_is_checked(shop: Workshop) -> None:
    name(**{"class": "nets.net.Net", "args": {"size": {"_target_": "nets.net.lie", "_args_": ["x"]}}})
    code, _, err = shop.run("load", FILE, "--trust-recorded")
    assert code == 4
    assert "neither a module nor a config object nor a dtype" in err


def test_a_config_of_the_user_s_own_may_name_anything(shop: Workshop) -> None:
    shop.write_config('[model]\nfactory = "nets.net.write"\n[model.args]\npath = "ran"\n')
    assert shop.run("load", FILE, "-c", "net.toml")[0] == 0
    assert Path("ran").exists()

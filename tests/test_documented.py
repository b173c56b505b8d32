"""Every public parameter is in a docstring, every flag and every key of the TOML in the docs."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import ptsave
from ptsave.cli.app import app
from ptsave.config.input_tables import FORMS
from ptsave.config.toml import MESH_DIMENSIONS, PARALLEL_STYLES
from ptsave.core.finding import Finding
from ptsave.core.verdict import Verdict
from ptsave.models.opened import OpenCheckpoint
from ptsave.verbs.convert import Conversion
from ptsave.verbs.inspect import Inspection

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def public_callables() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Name, function and all that is said of it: the functions of the API, and its classes' methods."""
    for name in ptsave.__all__:
        thing = getattr(ptsave, name)
        if isinstance(thing, type):
            for key, function in vars(thing).items():
                if callable(function) and (key == "__init__" or not key.startswith("_")):
                    yield f"{name}.{key}", function, f"{thing.__doc__}\n{function.__doc__}"
        elif callable(thing):
            yield name, thing, str(thing.__doc__)


@pytest.mark.parametrize("name", [name for name, _, _ in public_callables()])
def test_every_parameter_is_in_the_docstring(name: str) -> None:
    function, said = next((function, said) for known, function, said in public_callables() if known == name)
    assert function.__doc__
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", said)))) | set(
        re.findall(r"(\w+)=", said)
    )
    parameters = [p for p in inspect.signature(function).parameters if p not in ("self", "args", "kwargs")]
    assert [p for p in parameters if p not in named] == []


def test_what_results_have_is_documented() -> None:
    for kind in (OpenCheckpoint, Inspection, Conversion, Verdict, Finding):
        assert kind.__doc__
        for name, value in vars(kind).items():
            if not name.startswith("_") and (callable(value) or isinstance(value, property)):
                assert value.__doc__, f"{kind.__name__}.{name}"


def test_every_flag_is_on_its_page() -> None:
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        page = (DOCS / "commands" / f"{name}.md").read_text(encoding="utf-8")
        for flag in (flag for parameter in command.params for flag in parameter.opts if flag.startswith("-")):
            assert re.search(rf"(?<![\w-]){flag}(?![\w-])", page), f"{name} {flag}"


def keys_of_the_toml() -> set[str]:
    """The keys that `check_keys` is told of, and what else has a meaning in a config."""
    keys = {*FORMS, *(key for others in FORMS.values() for key in others), *MESH_DIMENSIONS, *PARALLEL_STYLES}
    for file in ("toml.py", "model.py"):
        for node in ast.walk(ast.parse((ROOT / "ptsave" / "config" / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check_keys":
                keys |= {n.value for n in ast.walk(node.args[1]) if isinstance(n, ast.Constant)}
            elif isinstance(node, ast.Constant) and re.fullmatch(r"_[a-z]+_", str(node.value)):
                keys.add(node.value)
    return keys


def test_every_key_of_the_toml_is_documented() -> None:
    page = (DOCS / "config.md").read_text(encoding="utf-8")
    code = "\n".join("".join(found) for found in re.findall(r"```toml\n(.*?)```|`([^`\n]+)`", page, re.S))
    keys = keys_of_the_toml()
    assert {"class", "factory", "args", "rtol", "mesh", "wrap", "shape", "_target_", "_dtype_"} <= keys
    assert {key for key in keys if not re.search(rf"(?<!\w){key}(?!\w)", code)} == set()

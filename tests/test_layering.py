"""The arrows between the packages, function-level imports included; who may print; what may be imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ptsave"

ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "stopping": set(),
    "streams": {"errors"},
    "core": {"core", "errors", "stopping"},
    "specs": {"core", "errors"},
    "input_specs": {"specs", "core", "errors"},
    "recorded": {"input_specs", "specs", "core", "errors"},
    "config": {"input_specs", "specs", "core", "errors"},
    "formats": {"formats", "core", "errors"},
    "verbs": {"verbs", "formats", "core", "errors", "config", "recorded", "input_specs", "specs"},
    "torch_layer": {
        "torch_layer",
        "formats",
        "core",
        "errors",
        "config",
        "recorded",
        "input_specs",
        "specs",
        "stopping",
        "streams",
    },
    "examples": {"examples"},
    "reports": {"reports", "words", "core", "errors"},
    "as_json": {"verbs", "core", "errors"},
    "words": {"core"},
    "render": {"render", "as_json", "words", "streams", "verbs", "core", "errors"},
    "commands": {
        "commands",
        "render",
        "as_json",
        "reports",
        "verbs",
        "torch_layer",
        "formats",
        "core",
        "errors",
        "config",
        "input_specs",
        "specs",
    },
    "options": set(),
    "cli": {
        "options",
        "commands",
        "render",
        "verbs",
        "torch_layer",
        "formats",
        "core",
        "errors",
        "stopping",
        "streams",
    },
    "__main__": {"cli", "stopping"},
    "__init__": {"torch_layer", "verbs", "formats", "core", "errors", "config", "input_specs", "specs"},
}
"""Layer → the layers that it may import, at any depth of its code."""

TYPE_ARROWS: dict[str, set[str]] = {"render": {"torch_layer", "specs"}, "as_json": {"torch_layer"}}
"""Layer → the layers whose results it may name under `if TYPE_CHECKING:`, where nothing is imported."""

OWNERS: dict[str, set[str]] = {
    "torch": {"torch_layer", "examples"},
    "typer": {"cli", "options"},
    "rich": {"render"},
    "pickle": set(),
    "marshal": set(),
    "shelve": set(),
}
"""Library → the layers that may import it. Nothing may unpickle."""

NOT_AT_START = {"numpy": {"torch_layer", "examples"}}
"""Library → the layers that may import it at module level; the others import it where they need it."""


def layer_of(path: Path) -> str:
    """`core` for `core/files.py`, `cli` for `cli.py`."""
    return path.parts[0] if len(path.parts) > 1 else path.stem


def imports(tree: ast.Module, path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Every imported dotted name, relative imports and import_module("literal") resolved."""
    package = ("ptsave", *path.parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                yield node, f"{source}.{alias.name}"
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node, argument.value


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def only_types(tree: ast.Module) -> set[ast.AST]:
    """The nodes inside `if TYPE_CHECKING:`, which never run."""
    return {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in block.body
        for node in ast.walk(statement)
    }


def runs_at_import(tree: ast.Module) -> set[ast.AST]:
    """The nodes outside functions."""
    found: set[ast.AST] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        found.add(node)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            pending += ast.iter_child_nodes(node)
    return found


def violations(source: str, path: Path) -> list[str]:
    """What the file at `path` (relative to the package) does that its layer may not."""
    layer = layer_of(path)
    tree = ast.parse(source)
    types = only_types(tree)
    at_import = runs_at_import(tree) - types
    found = []
    for node, name in imports(tree, path):
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        root, _, rest = name.partition(".")
        if root == "ptsave":
            target = rest.partition(".")[0]
            allowed = ARROWS.get(layer, set()) | (TYPE_ARROWS.get(layer, set()) if node in types else set())
            if target in ARROWS and target not in allowed:
                found.append(f"{where} imports {name}, and {layer} may not")
        if root in OWNERS and layer not in OWNERS[root]:
            found.append(f"{where} imports {name}, and {layer} may not")
        if root in NOT_AT_START and layer not in NOT_AT_START[root] and node in at_import:
            found.append(f"{where} imports {name} at module level")
    if layer != "render":
        found += [f"{path}:{node.lineno} prints" for node in ast.walk(tree) if prints(node)]
    return found


def prints(node: ast.AST) -> bool:
    """Whether the node is a call of print, or of a method of sys.stdout or sys.stderr, or an echo."""
    if not isinstance(node, ast.Call):
        return False
    if _called(node) in ("print", "echo", "secho", "pprint"):
        return True
    function = ast.unparse(node.func)
    return function.startswith(("sys.stdout.", "sys.stderr.")) and _called(node) in ("write", "writelines")


def files() -> list[Path]:
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=str)
def test_a_file_keeps_to_its_layer(path: Path) -> None:
    assert violations((PACKAGE / path).read_text(encoding="utf-8"), path) == []


def test_every_layer_is_drawn() -> None:
    """A new file or folder at the top of the package gets its arrows here first."""
    assert {layer_of(path) for path in files()} <= ARROWS.keys()


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/x.py", "import ptsave.formats.base"),
        ("render/x.py", "from ptsave.torch_layer import load"),
        ("render/x.py", "if not TYPE_CHECKING:\n    from ptsave.torch_layer import load"),
        ("verbs/x.py", "if TYPE_CHECKING:\n    from ptsave.torch_layer import load"),
        ("core/x.py", "from ptsave import formats"),
        ("core/x.py", "from ..formats import base"),
        ("formats/x.py", "def f():\n    from ptsave.verbs import inspect"),
        ("verbs/x.py", "from ptsave.torch_layer import live"),
        ("verbs/x.py", "import importlib\nimportlib.import_module('ptsave.torch_layer')"),
        ("verbs/x.py", "if TYPE_CHECKING:\n    import torch"),
        ("formats/x.py", "def f():\n    import torch.nn"),
        ("formats/x.py", "from pickle import loads"),
        ("torch_layer/x.py", "import pickle"),
        ("verbs/x.py", "import typer"),
        ("verbs/x.py", "class A:\n    import numpy as np"),
        ("cli.py", "def f():\n    print('x')"),
        ("cli.py", "def f():\n    typer.echo('x')"),
        ("verbs/x.py", "import sys\nsys.stderr.write('x')"),
        ("examples/x.py", "import ptsave.core.files"),
    ],
)
def test_the_checker_sees(path: str, source: str) -> None:
    assert len(violations(source, Path(path))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("formats/x.py", "def f():\n    import numpy as np"),
        ("formats/x.py", "from ptsave.core.files import InputFile\nfrom ptsave.errors import CorruptError"),
        ("formats/x.py", "from . import base"),
        ("torch_layer/x.py", "import torch\nfrom ptsave.core import nodes"),
        ("render/x.py", "print('x')"),
        ("render/x.py", "if TYPE_CHECKING:\n    from ptsave.torch_layer.load import Loaded"),
        ("verbs/x.py", "import pickletools, torchlike"),
    ],
)
def test_the_checker_allows(path: str, source: str) -> None:
    assert violations(source, Path(path)) == []

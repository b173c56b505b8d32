"""What import-linter cannot see: who prints, what is imported at start, and how full a room is.

Which package may import which stands in `pyproject.toml`; `scripts/check` runs `lint-imports`.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ptsave"
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

MAY_IMPORT_NUMPY_AT_START = {"models", "training", "distributed", "examples"}
MAX_FILES = 16
"""The most modules in one folder, `__init__.py` not counted: a reader takes in no more at a glance."""


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _runs_at_import(tree: ast.Module) -> list[ast.AST]:
    """The nodes outside functions and outside `if TYPE_CHECKING:`."""
    found: list[ast.AST] = []
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        found.append(node)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            pending += ast.iter_child_nodes(node)
    return found


def _prints(node: ast.Call) -> bool:
    """Whether the call is of print, or of a method of sys.stdout or sys.stderr, or an echo."""
    if _called(node) in ("print", "echo", "secho", "pprint"):
        return True
    if _called(node) not in ("write", "writelines"):
        return False
    return ast.unparse(node.func).startswith(("sys.stdout.", "sys.stderr."))


def _imports_by_name(node: ast.Call) -> bool:
    """Whether the call imports a module named in the code, out of import-linter's sight."""
    return _called(node) in ("import_module", "__import__") and any(
        isinstance(argument, ast.Constant) for argument in node.args[:1]
    )


def faults(source: str, path: Path) -> list[str]:
    """What the file at `path` (relative to the package) does that its package may not."""
    package, tree = path.parts[0], ast.parse(source)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = []
    if package != "render":
        found += [f"{path}:{node.lineno} prints" for node in calls if _prints(node)]
    found += [f"{path}:{node.lineno} imports by name" for node in calls if _imports_by_name(node)]
    if package not in MAY_IMPORT_NUMPY_AT_START:
        for node in _runs_at_import(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.partition(".")[0] == "numpy" for name in names):
                found.append(f"{path}:{node.lineno} imports numpy at module level")
    return found


def test_every_file_keeps_to_its_place() -> None:
    assert [
        fault for path in FILES for fault in faults((PACKAGE / path).read_text(encoding="utf-8"), path)
    ] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cli/x.py", "def f():\n    print('x')"),
        ("cli/x.py", "def f():\n    typer.echo('x')"),
        ("verbs/x.py", "import sys\nsys.stderr.write('x')"),
        ("verbs/x.py", "class A:\n    import numpy as np"),
        ("verbs/x.py", "from numpy import lib"),
        ("verbs/x.py", "import importlib\nimportlib.import_module('ptsave.models')"),
    ],
)
def test_the_checker_sees(path: str, source: str) -> None:
    assert len(faults(source, Path(path))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("formats/x.py", "def f():\n    import numpy as np"),
        ("formats/x.py", "if TYPE_CHECKING:\n    import numpy as np"),
        ("render/x.py", "print('x')"),
        ("models/x.py", "import_module(name)"),
    ],
)
def test_the_checker_allows(path: str, source: str) -> None:
    assert faults(source, Path(path)) == []


def test_no_room_is_too_full() -> None:
    rooms = Counter(str(path.parent) for path in FILES if path.name != "__init__.py")
    assert {room: count for room, count in rooms.items() if count > MAX_FILES} == {}


@pytest.mark.slow
def test_the_contracts_see_what_they_forbid(tmp_path: Path) -> None:
    """Each contract breaks when one import that it forbids is added, inside a function too."""
    pytest.importorskip("importlinter")
    shutil.copytree(PACKAGE, tmp_path / "ptsave", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    forbidden = {
        "core/names.py": "from ptsave import formats",
        "config/model.py": "from ptsave.formats import base",
        "verbs/stats.py": "import torch",
        "render/words.py": "import torch.nn",
        "models/build.py": "import rich",
        "training/state.py": "import typer",
        "formats/base.py": "from pickle import loads",
        "formats/stored.py": "import botocore",
        "core/record.py": "import cryptography",
        "verbs/signing.py": "import sigstore",
        "examples/simple_net.py": "import ptsave.api",
    }
    for name, statement in forbidden.items():
        with (tmp_path / "ptsave" / name).open("a", encoding="utf-8") as file:
            file.write(f"\n\ndef _added():\n    {statement}\n")
    run = [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports_command as c; c()"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    for name in forbidden:
        module = "ptsave." + name.removesuffix(".py").replace("/", ".")
        assert f"{module} -> " in done.stdout, f"no contract minds {name}\n{done.stdout}"
    assert "0 broken" not in done.stdout
    assert "0 kept" in done.stdout, done.stdout

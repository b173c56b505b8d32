"""What is built and installed: the wheel, the console script, the shell completion."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from functools import cache
from pathlib import Path

import pytest

from ptsave import __version__
from tests.support import Command


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel of the checkout, built by the real backend."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (built,) = folder.glob("ptsave-*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile, root: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "ptsave"], cwd=root, check=True, capture_output=True, text=True
    ).stdout.split()
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held >= set(tracked)
    assert "ptsave/py.typed" in held
    assert {name.partition("/")[0] for name in held} == {"ptsave"}
    assert not [name for name in held if name.endswith((".pt", ".safetensors", ".pyc"))]


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
    assert metadata["Name"] == "ptsave"
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert any(entry.endswith("licenses/LICENSE") for entry in wheel.namelist())
    scripts = configparser.ConfigParser()
    scripts.read_string(wheel.read(name.replace("METADATA", "entry_points.txt")).decode())
    assert dict(scripts["console_scripts"]) == {"ptsave": "ptsave.__main__:main"}
    assert dict(scripts["pytest11"]) == {"ptsave": "ptsave.pytest_plugin"}


@pytest.mark.slow
def test_the_console_script_and_the_module_are_the_same_program(
    ptsave: Command, clean_env: dict[str, str]
) -> None:
    script = Path(sys.executable).with_name("ptsave")
    for arguments in (["--version"], ["--help"], ["inspect", "--help"]):
        done = subprocess.run([script, *arguments], env=clean_env, capture_output=True, text=True, check=True)
        assert done.stdout == ptsave(*arguments).stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_is_offered(shell: str, ptsave: Command) -> None:
    """For the shell that is named: typer otherwise asks which one runs the test, and there may be none."""
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "true"}
    script = ptsave("--show-completion", shell, env=named).stdout
    assert f"_PTSAVE_COMPLETE=complete_{shell}" in script


def test_a_shell_without_completion_is_a_usage_error(clean_env: dict[str, str]) -> None:
    """And not exit code 1, which only a verdict of no has."""
    line = f"{sys.executable} -m ptsave --show-completion; exit $?"
    done = subprocess.run(["sh", "-c", line], env=clean_env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "error: completion is for bash, zsh, fish and PowerShell" in done.stderr


def test_bash_completes_the_commands(ptsave: Command) -> None:
    done = ptsave(env={"_PTSAVE_COMPLETE": "complete_bash", "COMP_WORDS": "ptsave in", "COMP_CWORD": "1"})
    assert done.stdout.split() == ["inspect"]


EXTRAS = {
    "storage/remote": ["http", "s3", "gcs", "azure", "hf", "fs"],
    "storage/upload": ["http", "s3", "gcs", "azure", "hf", "fs"],
    "formats/wrapped/zstd.py": ["zst"],
    "sign": ["sign", "sigstore"],
    "verbs/programs": ["export"],
    "models": ["torch"],
    "distributed": ["torch"],
    "training": ["torch"],
    "api": ["torch"],
    "examples": ["torch"],
    "export": ["torch", "export"],
}
"""Room or file → the extras whose packages it may import; all else imports the dependencies alone."""


def test_every_dependency_is_imported_and_every_import_is_one(root: Path) -> None:
    text = (root / "pyproject.toml").read_text()
    listed = _listed("dependencies", text)
    # click comes with the releases of typer that do not carry it
    own = set(sys.stdlib_module_names) | {"ptsave", "click"}
    paths = set((root / "ptsave").rglob("*.py"))
    paths.discard(root / "ptsave" / "pytest_plugin.py")  # pytest imports it, and nothing else does
    for room, extras in EXTRAS.items():
        place = root / "ptsave" / room
        inside = set(place.rglob("*.py")) if place.is_dir() else {place}
        allowed = listed.union(*(_listed(extra, text) for extra in extras))
        assert inside
        assert _imported(inside) - own <= allowed, room
        paths -= inside
    assert _imported(paths) - own <= listed
    assert listed <= _imported(paths)


def _listed(name: str, text: str) -> set[str]:
    """What a list of requirements installs, as it is imported."""
    (found,) = re.findall(rf"^{name} = \[(.*?)\]$", text, re.M | re.S)
    imported_as = {
        "google-auth": "google",
        "google-crc32c": "google_crc32c",
        "azure-storage-blob": "azure",
        "onnx-ir": "onnx_ir",
    }
    return {imported_as.get(listed, listed) for listed in re.findall(r'"([\w-]+)', found)}


def _imported(paths: set[Path]) -> set[str]:
    return set().union(*map(_imported_by, paths))


@cache
def _imported_by(path: Path) -> set[str]:
    """The packages that the statements of a file import."""
    nodes = ast.walk(ast.parse(path.read_bytes()))
    return {name.partition(".")[0] for node in nodes for name in _imports(node)}


def _imports(node: ast.AST) -> list[str]:
    """The modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


def test_every_direct_dependency_has_a_tested_version(root: Path) -> None:
    """constraints.txt pins what pyproject.toml names."""
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (root / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    text = (root / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:dependencies|test|check) = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    wanted = set(re.findall(r'"([A-Za-z0-9-]+)', "".join(lists)))
    models = (root / "requirements-no-deps.txt").read_text().splitlines()
    wanted |= {line.partition(";")[0] for line in models if line and not line.startswith("#")}
    assert len(lists) == 3
    assert wanted - {"tomli"} <= pinned  # tomli: only below Python 3.11

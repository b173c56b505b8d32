"""What needs no torch, installed anew for every supported Python found here: it says the same on each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MINORS = range(10, 15)
MAX_INSTALLED_MB = 150
COMMANDS = [
    "inspect training.pt --stats",
    "inspect whole_model.pt --tree",
    "inspect hostile.pt --json",
    "convert training.pt model.safetensors --select model",
    "convert model.safetensors half.npz --dtype float16",
    "convert model.safetensors shards --format safetensors-sharded --shard-size 200B",
    "convert shards back.pt",
    "convert back.pt folder --format dcp",
    "inspect folder --diff model.safetensors",
    "verify back.pt --against folder",
    "verify hostile.pt",
    "verify damaged.safetensors",
    "inspect missing.pt",
    "load back.pt -c configs/simple_net.toml",
    "save configs/simple_net.toml new.pt",
    "--version",
]


def _version(python: str) -> tuple[int, ...] | None:
    """None where it cannot make environments."""
    command = [python, "-c", "import ensurepip, venv, sys; print(*sys.version_info[:2])"]
    done = subprocess.run(command, capture_output=True, text=True)
    return None if done.returncode else tuple(map(int, done.stdout.split()))


def _pythons() -> dict[int, str]:
    """By minor version: on the path, kept by pyenv, or the one that runs this."""
    kept = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = {sys.version_info.minor: sys.executable}
    for minor in MINORS:
        name = f"python3.{minor}"
        for candidate in (shutil.which(name), *map(str, kept.glob(f"3.{minor}*/bin/{name}"))):
            if minor not in found and candidate and _version(candidate) == (3, minor):
                found[minor] = candidate
    return found


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def files(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the docs are about."""
    folder = tmp_path_factory.mktemp("files")
    shutil.copytree(root / "configs", folder / "configs")
    subprocess.run([sys.executable, root / "scripts" / "docs_files.py"], cwd=folder, check=True)
    made = ["-m", "ptsave", "convert", "-q", "training.pt", "whole.safetensors", "--select", "model"]
    subprocess.run(
        [sys.executable, *made], cwd=folder, check=True, env=os.environ | {"PYTHONPATH": str(root)}
    )
    flip = ["flip_last_bit.py", "whole.safetensors", "damaged.safetensors"]
    subprocess.run([sys.executable, *flip], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def here(
    files: Path, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[tuple[str, int, str, str]]]:
    """Where the Python that runs this did it all, as if it had no torch; and what it said."""
    folder = tmp_path_factory.mktemp("run") / "here"
    shutil.copytree(files, folder)
    program = "import sys; sys.modules['torch'] = None; from ptsave.__main__ import main; main()"
    return folder, _run_all([sys.executable, "-c", program], folder, os.environ | {"PYTHONPATH": str(root)})


def _run_all(command: list[str], folder: Path, env: dict[str, str]) -> list[tuple[str, int, str, str]]:
    said = []
    for line in COMMANDS:
        done = subprocess.run([*command, *line.split()], cwd=folder, env=env, capture_output=True, text=True)
        said.append((line, done.returncode, done.stdout, done.stderr))
    return said


@pytest.mark.slow
@pytest.mark.parametrize("minor", MINORS)
def test_a_python_of_its_own(
    minor: int,
    wheel: Path,
    files: Path,
    here: tuple[Path, list[tuple[str, int, str, str]]],
    root: Path,
    tmp_path: Path,
    clean_env: dict[str, str],
) -> None:
    python = _pythons().get(minor)
    if python is None:
        pytest.skip(f"there is no python3.{minor} here")
    env = clean_env | {"PIP_CONSTRAINT": str(root / "constraints.txt"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    venv = tmp_path / "venv"
    subprocess.run([python, "-m", "venv", venv], check=True, env=env)
    done = subprocess.run(
        [venv / "bin" / "python", "-m", "pip", "install", "-q", wheel],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (installed,) = (venv / "lib").glob("python*/site-packages")
    sizes = {path: path.stat().st_size for path in installed.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < MAX_INSTALLED_MB * 10**6
    assert not (installed / "torch").exists()

    folder = tmp_path / "there"
    shutil.copytree(files, folder)
    found = _run_all([str(venv / "bin" / "ptsave")], folder, clean_env)
    before, wanted = here
    assert found == wanted
    codes = [code for _, code, _, _ in found]
    assert codes == [0] * 10 + [1, 1, 3, 4, 4, 0], found
    for name in ("model.safetensors", "half.npz", "back.pt"):
        assert (before / name).read_bytes() == (folder / name).read_bytes()

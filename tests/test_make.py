"""The Makefile rule and the CI step of docs/ci.md, run as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ptsave
from tests.support import Command, some

Shell = subprocess.CompletedProcess[str]


@pytest.fixture
def page(root: Path) -> str:
    return (root / "docs" / "ci.md").read_text(encoding="utf-8")


def block(page: str, language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return str(text)


@pytest.fixture
def run(tmp_path: Path, clean_env: dict[str, str]):  # type: ignore[no-untyped-def]
    """A shell command in `tmp_path`, with the environment's ptsave on the path."""

    def shell(command: str) -> Shell:
        path = os.pathsep.join([str(Path(sys.executable).parent), clean_env["PATH"]])
        return subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=clean_env | {"PATH": path},
            capture_output=True,
            text=True,
        )

    return shell


@pytest.fixture
def make(tmp_path: Path, page: str, run):  # type: ignore[no-untyped-def]
    """Real make, with the page's rules and a weights.pt that torch wrote."""
    (tmp_path / "Makefile").write_text(block(page, "make"))
    torch.save({"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}, tmp_path / "weights.pt")
    return lambda target: run(f"make -s {target}")


def test_make_converts_quietly(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = make("weights.safetensors")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    state = load_file(tmp_path / "weights.safetensors")
    assert torch.equal(state["weight"], torch.arange(6.0).reshape(2, 3))
    assert state.keys() == {"weight", "bias"}


@pytest.fixture
def converted(make, tmp_path: Path) -> bytes:  # type: ignore[no-untyped-def]
    """weights.safetensors, which is newer than its source."""
    ptsave.convert(tmp_path / "weights.pt", tmp_path / "weights.safetensors")
    return (tmp_path / "weights.safetensors").read_bytes()


def test_make_converts_again_only_when_the_source_is_newer(make, converted: bytes, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    before = (tmp_path / "weights.safetensors").stat()
    assert make("weights.safetensors").returncode == 0
    assert (tmp_path / "weights.safetensors").stat().st_ino == before.st_ino
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pt")
    later = before.st_mtime + 5
    os.utime(tmp_path / "weights.pt", (later, later))
    assert make("weights.safetensors").returncode == 0
    assert load_file(tmp_path / "weights.safetensors").keys() == {"weight"}


@pytest.mark.parametrize("damage", some(["truncated", "flipped", "empty", "html"]))
def test_make_stops_and_keeps_the_old_file(damage: str, make, converted: bytes, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = tmp_path / "weights.pt"
    data = bytearray(source.read_bytes())
    payload = data.index(torch.arange(6.0).numpy().tobytes())
    if damage == "truncated":
        del data[payload + 10 :]
    elif damage == "flipped":
        data[payload + 5] ^= 1
    else:
        data = bytearray(b"" if damage == "empty" else b"<!DOCTYPE html><html>404</html>")
    source.write_bytes(data)
    later = (tmp_path / "weights.safetensors").stat().st_mtime + 5
    os.utime(source, (later, later))

    done = make("weights.safetensors")

    assert done.returncode == 2
    assert done.stdout == ""
    assert re.search(r"^error: .*weights\.pt", done.stderr, re.MULTILINE), done.stderr
    assert "Error 3" in done.stderr  # make's own words for the exit code of the contract
    assert (tmp_path / "weights.safetensors").read_bytes() == converted
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "Makefile",
        "weights.pt",
        "weights.safetensors",
    ]


@pytest.mark.slow
def test_make_verifies_and_says_yes_and_no(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert make("weights.safetensors.verified").returncode == 0
    (tmp_path / "weights.safetensors.verified").unlink()
    data = bytearray((tmp_path / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(data)
    done = make("weights.safetensors.verified")
    assert done.returncode == 2
    assert "Error 1" in done.stderr
    assert not (tmp_path / "weights.safetensors.verified").exists()


@pytest.mark.slow
def test_the_ci_step_verifies(page: str, root: Path, tmp_path: Path, ptsave: Command, run) -> None:  # type: ignore[no-untyped-def]
    (step,) = re.findall(r"^ +run: (ptsave verify .*)$", block(page, "yaml"), re.MULTILINE)
    shutil.copytree(root / "configs", tmp_path / "configs")
    checkpoint = tmp_path / step.split()[2]
    ptsave("save", "configs/simple_net.toml", checkpoint)
    assert run(step).returncode == 0
    data = bytearray(checkpoint.read_bytes())
    data[-1] ^= 1
    checkpoint.write_bytes(data)
    assert run(step).returncode == 1
    checkpoint.unlink()
    assert run(step).returncode == 3

"""What a command says when nobody listens, as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch


def to_nobody(*arguments: object) -> tuple[int, str]:
    """The exit code and stderr of a command whose reader has closed stdout before it begins."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ptsave", *map(str, arguments)],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Enough names to fill the stream's buffer, and a NaN in the first."""
    path = tmp_path / "m.safetensors"
    names = [f"layer.{i}.weight" for i in range(400)]
    safetensors.torch.save_file({name: torch.full((1,), torch.nan) for name in names}, path)
    return path


def test_a_reader_that_has_what_it_wanted(many: Path) -> None:
    assert to_nobody("inspect", many) == (0, "")


@pytest.mark.slow
def test_a_verdict_is_the_same_without_a_reader(many: Path) -> None:
    assert to_nobody("verify", many, "--checks", "finite", "--quiet") == (1, "")
    assert to_nobody("verify", many, "--checks", "bytes", "--quiet") == (0, "")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_what_an_encoding_lacks_is_printed_plainly(encoding: str) -> None:
    text = "a → b … 3 × 4 ├─ ▁█ 蛇"
    program = f"from ptsave import streams; streams.prepare(); print({text!a})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    )
    expected = {
        "cp1252": "a -> b … 3 × 4 |- _@ \\u86c7",
        "ascii": "a -> b ... 3 x 4 |- _@ \\u86c7",
        "utf-8": text,
    }
    assert done.stdout.decode(encoding).rstrip() == expected[encoding]
